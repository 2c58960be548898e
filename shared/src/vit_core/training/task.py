"""What differs between classification, detection and segmentation: all else of a training is `Trainer`'s."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vit_core.training.distributed import all_sum
from vit_core.training.precision import Precision


class Task(Protocol):
    """Batches are what its loaders give; columns are those of metrics.csv."""

    best: str  # the column that says which epoch is best: more is better
    measure: str  # the same in words

    @property
    def sums(self) -> Sequence[str]:
        """Names of what `loss` gives to be added up over an epoch."""
        ...

    @property
    def columns(self) -> Sequence[str]:
        """What `training_row` and `evaluate` give, in the order of metrics.csv: train_…, then val_…."""
        ...

    def loss(self, model: nn.Module, batch: Any, precision: Precision) -> tuple[Tensor, Sequence[Tensor]]:
        """The mean loss of a batch's images, to be minimized, and a scalar for each name in `sums`."""
        ...

    def training_row(self, sums: Mapping[str, float], images: float) -> dict[str, float]:
        """The columns train_loss and others from what was added up over so many images."""
        ...

    def evaluate(
        self,
        model: nn.Module,
        loader: Any,
        precision: Precision,
        should_stop: Callable[[], bool],
        on_batch: Callable[[], object],
    ) -> dict[str, float]:
        """The columns val_loss, `best` and others, over all ranks. Raises StopEvaluation when `should_stop` says so."""
        ...

    def line(self, row: Mapping[str, float], split: str) -> str:
        """What the log says of the columns of a split ("train" or "val"): "loss 0.1234 top-1 98.76%"."""
        ...


class Sums:
    """Named sums over the batches of the running epoch, on this rank, in one tensor on its device."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = tuple(names)
        exact = torch.float32 if device.type == "mps" else torch.float64
        self.values = torch.zeros(len(self.names), dtype=exact, device=device)

    def add(self, more: Mapping[str, Tensor | float]) -> None:
        for name, value in more.items():
            self.values[self.names.index(name)] += value

    def totals(self, *, local: bool = False) -> dict[str, float]:
        """Over all ranks, or of this one; waits for the device."""
        values = self.values.clone() if local else all_sum(self.values.clone())
        return dict(zip(self.names, values.tolist(), strict=True))

    def reset(self) -> None:
        self.values.zero_()
