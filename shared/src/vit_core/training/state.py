"""All of a run that moves: into a checkpoint and back.

Exact resume: data order and augmentation follow from (seed, epoch, batch) alone (`BatchLoader`); everything else that
moves (weights, optimiser, scaler, schedule, EMA, generators of every rank, sums of the running epoch, best accuracy)
is here.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from vit_core.errors import UserError
from vit_core.training.checkpoint import load_weights, unwrap
from vit_core.training.distributed import gather, rng_state, set_rng_state
from vit_core.training.optimisation import Schedule


@dataclass
class Progress:
    """Where a run is, and what it remembers beside tensors."""

    epoch: int = 0  # epochs completed, evaluation included
    batch: int = 0  # batches done of the running epoch
    step: int = 0  # optimiser steps since the start
    best_acc1: float = 0.0
    best_epoch: int = 0
    evaluations_without_gain: int = 0


def check_resumable(checkpoint: dict[str, Any], source: Path) -> None:
    """UserError for a checkpoint without what `TrainingState.restore` needs."""
    types = {"progress": dict, "epoch_plan": dict, "ranks": list, "schedule_state_dict": dict, "epoch": int}
    wrong = [k for k, kind in types.items() if not isinstance(checkpoint.get(k), kind)]
    wrong += [k for k in ("ema_state_dict",) if k not in checkpoint]
    if not wrong:
        wrong = [f"progress.{f.name}" for f in dataclasses.fields(Progress) if f.name not in checkpoint["progress"]]
    if wrong:
        raise UserError(f"{source} cannot be resumed from: it lacks {', '.join(wrong)}")


@dataclass
class TrainingState:
    """The moving parts of a `Trainer`, which holds the same objects: `restore` changes them in place."""

    model: nn.Module  # without DistributedDataParallel and torch.compile around it
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    schedule: Schedule
    sums: Tensor
    progress: Progress = field(default_factory=Progress)

    def checkpoint(self, settings: dict[str, Any], epoch_plan: dict[str, int]) -> dict[str, Any]:
        """What last.pth holds. All ranks take part: each has its own generators and sums.

        settings: the run's flags, as the key `config`. epoch_plan: what a batch and a step mean in this run.
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
        """Take up the state of `checkpoint`, read from `source`.

        Returns what differs in `epoch_plan` ("" for nothing): then the running epoch starts at its beginning, and the
        caller sets the step. Raises UserError for a checkpoint of something else; `check_resumable` comes first.
        """
        load_weights(self.model, checkpoint["model_state_dict"], source)
        try:
            self._restore_optimizer(checkpoint["optimizer_state_dict"])
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise UserError(f"{source}: its optimiser does not fit the --optimizer of this run ({e})") from e
        try:
            return self._restore_rest(checkpoint, epoch_plan, rank)
        except (TypeError, KeyError, IndexError, ValueError, AttributeError, RuntimeError) as e:
            raise UserError(f"{source} is damaged: {' '.join(str(e).split())[:120]}") from e

    def _restore_optimizer(self, state: dict[str, Any]) -> None:
        # The flags of this run, which `load_state_dict` would replace by those of the earlier one; not the rate.
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
