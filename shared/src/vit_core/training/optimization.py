"""Optimizer and learning-rate schedule for a `TrainConfig`, built from timm and torch components."""

from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from vit_core.training.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Build the optimizer. Biases, norms and parameters named by `model.no_weight_decay()` get no weight decay, unless
    `decay_all` is set; `layer_decay` scales learning rates by depth.
    """
    no_decay: Any = getattr(model, "no_weight_decay", tuple)()
    if config.decay_all:
        parameters = [p for p in model.parameters() if p.requires_grad]
        groups: Any = [{"params": parameters, "weight_decay": config.weight_decay}]
    elif config.layer_decay is not None:
        groups = param_groups_layer_decay(
            model,
            weight_decay=config.weight_decay,
            no_weight_decay_list=no_decay,
            layer_decay=config.layer_decay,
        )
        for group in groups:  # the schedule scales each group's own rate
            group["lr"] = config.lr * group.pop("lr_scale")  # otherwise timm's scheduler would apply it again
    else:
        groups = param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=no_decay)
    betas = (config.beta1, config.beta2)
    # The fused kernels update all parameters in one call; in float32 they are deterministic.
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True)
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.lr, betas=betas, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)


class Schedule:
    """Learning rate per optimizer step: linear warm-up from 0, then cosine, constant, or reduced on plateaus.

    cosine: lr = min_lr + (lr - min_lr) (1 + cos(π progress)) / 2, with progress from 0 at the end of the warm-up to 1
    at the end of training. `schedule_by="epoch"` keeps the rate constant within an epoch, at the value of its first
    step, or of its last step during warm-up (the first step's rate would be 0 in the first epoch).
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int) -> None:
        self.optimizer, self.config, self.steps_per_epoch = optimizer, config, steps_per_epoch
        self.warmup = config.warmup_steps if config.warmup_steps is not None else config.warmup_epochs * steps_per_epoch
        self._base = [group["lr"] for group in optimizer.param_groups]
        self._cosine = CosineLRScheduler(
            optimizer,
            t_initial=max(config.epochs * steps_per_epoch - self.warmup, 1),
            lr_min=config.min_lr,
            warmup_t=self.warmup,
            warmup_prefix=True,
            t_in_epochs=False,
        )
        # torch's ReduceLROnPlateau on a dummy optimizer, whose rate is the factor for every group's rate.
        self._factor = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        self._plateau = ReduceLROnPlateau(
            self._factor, mode="max", factor=config.plateau_factor, patience=config.plateau_patience
        )

    def set_step(self, step: int) -> None:
        """Set the rates for optimizer step `step`, counted from 0 over the whole training."""
        if self.config.schedule_by == "epoch":
            step -= step % self.steps_per_epoch
            if step < self.warmup:
                step += self.steps_per_epoch - 1
        if self.config.schedule == "cosine":
            self._cosine.step_update(step)
            return
        factor = step / self.warmup if step < self.warmup else self._factor.param_groups[0]["lr"]
        for group, base in zip(self.optimizer.param_groups, self._base, strict=True):
            group["lr"] = base * factor if step < self.warmup else max(base * factor, self.config.min_lr)

    def end_epoch(self, acc1: float, next_step: int) -> None:
        """Update the plateau schedule with an epoch's validation accuracy; warm-up epochs are ignored."""
        if self.config.schedule == "plateau" and next_step > self.warmup:
            self._plateau.step(acc1)

    def state_dict(self) -> dict[str, Any]:
        state = {k: v for k, v in self._plateau.state_dict().items() if isinstance(v, int | float | str | bool)}
        return {"plateau": state, "factor": self._factor.param_groups[0]["lr"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._plateau.load_state_dict(state["plateau"])
        self._factor.param_groups[0]["lr"] = state["factor"]
