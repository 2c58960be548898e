"""What claims.yaml's instant entries measure of QAViT's recipe: presets, schedule, augmentation, a run's files.

A preset is a setting and no result: that the flags settle on it is all that is measured.
"""

import functools
import math
import re
import tempfile
from collections.abc import Callable

import torch

from qavit.recipe import RECIPE
from qavit.registry import qavit_micro, qavit_tiny
from vit_core.checkpoint import KEYS
from vit_core.claims import Value
from vit_core.config import OutputConfig, TrainConfig
from vit_core.optimisation import Schedule, build_optimizer
from vit_core.recipe import Run, settle
from vit_core.run_folder import METRICS
from vit_core.train_command import _choose_folder  # what names a run's folder
from vit_core.training_state import TrainingState


def named(docstring: str, work: Callable[[], Value]) -> Callable[[], Value]:
    """A check with the sentence that the report shows for it."""

    def check() -> Value:
        return work()

    check.__doc__ = docstring
    return check


def _run(*flags: str) -> Run:
    return settle(RECIPE, RECIPE.parse(flags), None)


def _rates() -> tuple[TrainConfig, list[float]]:
    """The learning rate of each step of QAViT-Tiny's recipe, at ten steps an epoch, and of the step after the last."""
    config = _run("--model", "tiny").train
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.lr)
    schedule = Schedule(optimizer, config, steps_per_epoch=10)
    rates = []
    for step in range(10 * config.epochs + 1):
        schedule.set_step(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return config, rates


def schedule_difference() -> Value:
    """Largest difference between QAViT-Tiny's rate after warm-up and the README's formula, in parts of the peak."""
    c, rates = _rates()
    start, end = 10 * c.warmup_epochs, 10 * c.epochs
    cosine = [0.5 * (1 + math.cos(math.pi * (s - start) / (end - start))) for s in range(start, end)]
    formula = [c.min_lr + (c.lr - c.min_lr) * factor for factor in cosine]
    return max(abs(a - b) for a, b in zip(rates[start:end], formula, strict=True)) / c.lr


def _rate(epoch: int) -> Value:
    return _rates()[1][10 * epoch]


def _setting(field: str, *flags: str) -> Value:
    value: Value = getattr(_run(*flags).train, field)
    return value


def _table() -> dict[str, Callable[[], Value]]:
    """The cells of the README's hyperparameter table, and its flags' defaults."""
    checks: dict[str, Callable[[], Value]] = {}
    fields = ("batch_size", "lr", "weight_decay", "warmup_epochs")
    for size in ("tiny", "small"):
        for dataset in ("cifar100", "imagenet"):
            flags = ("--model", size, "--dataset", dataset)
            for field in fields:
                checks[f"{size}_{dataset}_{field}"] = named(
                    f"The {field} that {' '.join(('qavit-train', *flags))} settles on.",
                    functools.partial(_setting, field, *flags),
                )
    for field in ("epochs", "min_lr", "save_freq", "grad_clip", "label_smoothing"):
        checks[f"default_{field}"] = named(
            f"The {field} that qavit-train --model tiny settles on.",
            functools.partial(_setting, field, "--model", "tiny"),
        )
    for field in ("lr", "warmup_epochs"):
        checks[f"stable_{field}"] = named(
            f"The {field} that qavit-train --model tiny --preset stable settles on.",
            functools.partial(_setting, field, "--model", "tiny", "--preset", "stable"),
        )
    for epoch, when in ((0, "first step"), (10, "step after 10 epochs"), (20, "step after the warm-up's 20 epochs"),
                        (300, "end of the 300 epochs")):  # fmt: skip
        checks[f"rate_after_{epoch}"] = named(
            f"Learning rate of QAViT-Tiny's recipe at the {when}.", functools.partial(_rate, epoch)
        )
    return checks


def default_amp() -> Value:
    """Whether qavit-train --model tiny asks for mixed precision (which then runs on a GPU alone)."""
    return _run("--model", "tiny").train.amp != "off"


def crop_size() -> Value:
    """Pixels of the random crop of qavit-train --model tiny; 0 where the augmentation has none."""
    return qavit_tiny(depth=1).config.img_size if _run("--model", "tiny").augment.crop == "random" else 0


def flip_chance() -> Value:
    """Chance of a mirrored image in qavit-train --model tiny."""
    return _run("--model", "tiny").augment.hflip


def run_name() -> Value:
    """Name of the run folder that qavit-train --model tiny makes, with letters for the digits of date and time."""
    with tempfile.TemporaryDirectory() as folder:
        output = OutputConfig(save_dir=f"{folder}/checkpoints", log_dir=f"{folder}/logs")
        run, _ = _choose_folder(_run("--model", "tiny"), output, None, None)
    return re.sub(r"\d{8}_\d{6}$", "YYYYMMDD_HHMMSS", run.path.name)


def checkpoint_types() -> Value:
    """The published keys of a checkpoint that a training writes, with their types."""
    run, model = _run("--model", "micro"), qavit_micro(depth=1)
    optimizer = build_optimizer(model, run.train)
    state = TrainingState(
        model, None, optimizer, torch.amp.GradScaler("cpu"), Schedule(optimizer, run.train, 1), torch.zeros(6)
    )
    checkpoint = state.checkpoint({}, {})
    return ", ".join(f"{key}: {type(checkpoint[key]).__name__}" for key in KEYS)


def tracked_metrics() -> Value:
    """How many of the README's tracked metrics are columns of a run's metrics.csv, from which TensorBoard is fed."""
    losses = [f"{part}_{metric}" for part in ("train", "val") for metric in ("loss", "acc1", "acc5")]
    return sum(name in METRICS for name in (*losses, "lr", "grad_norm"))


RECIPE_CHECKS: dict[str, Callable[[], Value]] = {
    **_table(),
    **{
        check.__name__: check
        for check in (
            schedule_difference, default_amp, crop_size, flip_chance, run_name, checkpoint_types, tracked_metrics,
        )
    },
}  # fmt: skip
