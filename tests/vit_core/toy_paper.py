"""A paper for tests of the core: timm's smallest ViT on digits, with faults that can be asked for."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit_core.flags import command
from vit_core.recipe import Recipe
from vit_core.tasks.classification import classification_loss


class Faults:
    """What the loss function shall do at which call: set by `main`."""

    calls = 0
    at = -1
    what = ""


def loss(model: nn.Module, images: Tensor, targets: Tensor, criterion: nn.Module) -> tuple[Tensor, Tensor]:
    Faults.calls += 1
    value, logits = classification_loss(model, images, targets, criterion)
    if Faults.calls == Faults.at:
        if Faults.what == "nan":
            value = value * float("nan")
        elif Faults.what == "gradient":  # the loss is fine, what flows back is not
            value = value + 0.0 * (logits.sum() * 0.0).abs().sqrt()
        elif Faults.what == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        else:
            os.kill(os.getpid(), getattr(signal, Faults.what))
    return value, logits


def presets(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": given.get("model") or "toy", "dataset": "digits", "epochs": 3, "batch_size": 256, "lr": 3e-3,
        "warmup_epochs": 1, "img_size": 32, "crop": "pad", "hflip": 0.0, "save_freq": 0,
    }  # fmt: skip


RECIPE = Recipe(
    paper="Toy",
    description="A toy.",
    command="toy",
    models={"toy": "test_vit", "other": "test_vit2"},
    presets=presets,
    loss_function=loss,
    aliases={"output_dir": "save_dir"},
)
SMALL = (
    "--model-kwargs",
    "patch_size=8",
    "depth=2",
    "proj_drop_rate=0.1",
    "drop_path_rate=0.1",
)  # draws masks: resume must too


@command
def main(argv: list[str]) -> int:
    its_own = "--resume" in argv or "--model-kwargs" in argv
    return RECIPE.train(argv if its_own else [*argv, *SMALL])


@command
def evaluate(argv: list[str]) -> int:
    return RECIPE.evaluate(argv)


def train(folder: str, *argv: str, at: int = -1, what: str = "") -> int:
    """Train in this process, with run folders under `folder`; the fault `what` at the `at`-th batch."""
    Faults.calls, Faults.at, Faults.what = 0, at, what
    return main(["--save-dir", f"{folder}/checkpoints", "--log-dir", f"{folder}/logs", *argv])


def _kill_at(name: str, time: int) -> None:
    """SIGKILL when a file takes the name `name` for the `time`-th time."""
    replace, times = Path.replace, []

    def watched(self: Path, target: str | Path) -> Path:
        if Path(target).name == name:
            times.append(target)
            if len(times) == time:
                os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Path.replace = watched  # type: ignore[method-assign]


def train_process(folder: str, argv: list[str], at: int, what: str, environment: dict[str, str]) -> None:
    """Target of a process: as `train`, and exit with its code."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    if what.startswith("kill at "):
        _kill_at(what.removeprefix("kill at "), at)
        at = -1
    raise SystemExit(train(folder, *argv, at=at, what=what))
