"""What differs between classification, detection and segmentation; the rest of training is in `Trainer`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vit_core.training.distributed import all_sum
from vit_core.training.precision import Precision


class Task(Protocol):
    """Loss and metrics of a task. Batches come from its loaders; columns are those of metrics.csv."""

    best: str  # the column that selects the best epoch; higher is better
    measure: str  # its name in messages

    @property
    def sums(self) -> Sequence[str]:
        """Names of the values from `loss` that are summed over an epoch."""
        ...

    @property
    def columns(self) -> Sequence[str]:
        """Columns of `training_row` and `evaluate`, in the order of metrics.csv: train_…, then val_…."""
        ...

    def loss(self, model: nn.Module, batch: Any, precision: Precision) -> tuple[Tensor, Sequence[Tensor]]:
        """The mean loss over a batch, and one scalar for each name in `sums`."""
        ...

    def training_row(self, sums: Mapping[str, float], images: float) -> dict[str, float]:
        """The columns train_loss and others, from the sums over `images` images."""
        ...

    def evaluate(
        self,
        model: nn.Module,
        loader: Any,
        precision: Precision,
        should_stop: Callable[[], bool],
        on_batch: Callable[[], object],
    ) -> dict[str, float]:
        """The columns val_loss, `best` and others, over all ranks. Raises StopEvaluation if `should_stop()` is True."""
        ...

    def line(self, row: Mapping[str, float], split: str) -> str:
        """Log text for the columns of a split ("train" or "val"): "loss 0.1234 top-1 98.76%"."""
        ...


class Sums:
    """Named sums over the batches of the current epoch on this rank, stored in one tensor on its device."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = tuple(names)
        exact = torch.float32 if device.type == "mps" else torch.float64
        self.values = torch.zeros(len(self.names), dtype=exact, device=device)

    def add(self, more: Mapping[str, Tensor | float]) -> None:
        for name, value in more.items():
            self.values[self.names.index(name)] += value

    def totals(self, *, local: bool = False) -> dict[str, float]:
        """Sums over all ranks, or of this rank if `local`; synchronizes with the device."""
        values = self.values.clone() if local else all_sum(self.values.clone())
        return dict(zip(self.names, values.tolist(), strict=True))

    def reset(self) -> None:
        self.values.zero_()
