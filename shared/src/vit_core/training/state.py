"""Save and restore a run's mutable state.

Exact resume: data order and augmentation depend only on (seed, epoch, batch) (see `BatchLoader`); all other mutable
state (weights, optimizer, scaler, schedule, EMA, random generators of every rank, sums of the current epoch, best
accuracy) is saved here.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from vit_core.errors import UserError
from vit_core.training.checkpoint import load_weights, unwrap
from vit_core.training.distributed import gather, rng_state, set_rng_state
from vit_core.training.optimization import Schedule


@dataclass
class Progress:
    """Position of a run in its training, and its best accuracy so far."""

    epoch: int = 0  # epochs completed, including their evaluation
    batch: int = 0  # batches completed in the current epoch
    step: int = 0  # optimizer steps since the start
    best_acc1: float = 0.0
    best_epoch: int = 0
    evaluations_without_gain: int = 0


def check_resumable(checkpoint: dict[str, Any], source: Path) -> None:
    """UserError for a checkpoint that lacks what `TrainingState.restore` needs."""
    types = {"progress": dict, "epoch_plan": dict, "ranks": list, "schedule_state_dict": dict, "epoch": int}
    wrong = [k for k, kind in types.items() if not isinstance(checkpoint.get(k), kind)]
    wrong += [k for k in ("ema_state_dict",) if k not in checkpoint]
    if not wrong:
        wrong = [f"progress.{f.name}" for f in dataclasses.fields(Progress) if f.name not in checkpoint["progress"]]
    if wrong:
        raise UserError(f"cannot resume from {source}: missing or invalid entries: {', '.join(wrong)}")


@dataclass
class TrainingState:
    """The mutable state of a `Trainer`, which holds the same objects: `restore` changes them in place."""

    model: nn.Module  # without DistributedDataParallel and torch.compile around it
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    schedule: Schedule
    sums: Tensor
    progress: Progress = field(default_factory=Progress)

    def checkpoint(self, settings: Mapping[str, Any], epoch_plan: dict[str, int]) -> dict[str, Any]:
        """Contents of last.pth. To be called on all ranks: each has its own random generators and sums.

        settings: the run's settings, stored under `config`. epoch_plan: batches and steps per epoch of this run.
        """
        return {
            "epoch": self.progress.epoch,
            "model_state_dict": unwrap(self.model).state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "scaler_state_dict": self.scaler.state_dict(),
            "best_acc1": self.progress.best_acc1,
            "config": settings,
            "ema_state_dict": None if self.ema is None else self.ema.module.state_dict(),
            "schedule_state_dict": self.schedule.state_dict(),
            "progress": dataclasses.asdict(self.progress),
            "epoch_plan": epoch_plan,
            "ranks": gather({"rng": rng_state(), "sums": self.sums.tolist()}),
        }

    def restore(self, checkpoint: dict[str, Any], source: Path, epoch_plan: dict[str, int], rank: int) -> str:
        """Restore the state of `checkpoint`, which was read from `source` and passed `check_resumable`.

        Returns the differences in `epoch_plan` ("" for none). If there are any, the current epoch restarts from its
        first batch, and the caller sets the step. Raises UserError for a checkpoint of another model or optimizer.
        """
        load_weights(self.model, checkpoint["model_state_dict"], source)
        try:
            self._restore_optimizer(checkpoint["optimizer_state_dict"])
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise UserError(f"{source}: its optimizer state does not match this run's --optimizer ({e})") from e
        try:
            return self._restore_rest(checkpoint, epoch_plan, rank)
        except (TypeError, KeyError, IndexError, ValueError, AttributeError, RuntimeError) as e:
            raise UserError(f"{source} is damaged: {' '.join(str(e).split())[:120]}") from e

    def _restore_optimizer(self, state: dict[str, Any]) -> None:
        # Keep this run's flags, except the learning rate; `load_state_dict` would restore those of the earlier run.
        flags = [{k: v for k, v in g.items() if k not in ("params", "lr")} for g in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state)
        for group, values in zip(self.optimizer.param_groups, flags, strict=True):
            group.update(values)

    def _restore_rest(self, checkpoint: dict[str, Any], epoch_plan: dict[str, int], rank: int) -> str:
        if self.scaler.is_enabled() and checkpoint["scaler_state_dict"]:
            self.scaler.load_state_dict(checkpoint["scaler_state_dict"])
        self.schedule.load_state_dict(checkpoint["schedule_state_dict"])
        if self.ema is not None:
            self.ema.module.load_state_dict(checkpoint["ema_state_dict"] or checkpoint["model_state_dict"])
        vars(self.progress).update(dataclasses.asdict(Progress(**checkpoint["progress"])))
        ranks, earlier = checkpoint["ranks"], checkpoint["epoch_plan"]
        if earlier["processes"] == epoch_plan["processes"]:
            set_rng_state(ranks[rank]["rng"])
        if earlier != epoch_plan:
            self.progress.batch = 0
            return ", ".join(f"{k} {earlier[k]} -> {v}" for k, v in epoch_plan.items() if earlier[k] != v)
        self.sums.copy_(torch.tensor(ranks[rank]["sums"], dtype=self.sums.dtype))
        return ""
