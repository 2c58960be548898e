"""Resident memory of a training over hundreds of epochs.

    uv run python -m reliability.memory --epochs 300 --figure memory.png

Two trainings of the same tiny model: images in memory, and images read from the disk by a worker process. After each
epoch (training, evaluation, checkpoint, metrics, TensorBoard) the proportional resident set of the process and its
workers is read from /proc (Linux). Growth is the slope of a straight line through the epochs after the first fifth.
Exit code 1 where it is over a stated bound.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from reliability.kill_study import Victim
from reliability.small_images import small_images
from vit_core.errors import UserError
from vit_core.flags import command, flag, parse
from vit_core.training.run_folder import environment

mpl.use("Agg")
from matplotlib import pyplot as plt

BOUND = 2.0  # MiB in 100 epochs
FLAGS = (
    "--model",
    "micro",
    "--model-kwargs",
    "depth=1",
    "--dataset",
    "imagefolder",
    "--device",
    "cpu",
    "--batch-size",
    "8",
    "--warmup-epochs",
    "0",
    "--ema-decay",
    "0.9",
    "--mixup",
    "0.8",
    "--save-freq",
    "0",
)
KINDS = {
    "images in memory": ("--cache", "memory"),
    "images read by a worker process": ("--cache", "disk", "--num-workers", "1"),
}


def resident(pid: int) -> float:
    """MiB of the process and all that it started; of pages that several share, each has its part."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    (kib,) = [int(line.split()[1]) for line in lines if line.startswith("Pss:")]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return kib / 1024 + sum(resident(int(c)) for c in children)


def follow(victim: Victim, folder: Path) -> list[float]:
    """MiB after each epoch."""
    process = victim.start(folder)
    measured: list[float] = []
    while process.is_alive():
        table = next(folder.glob("checkpoints/*/metrics.csv"), None)
        rows = table.read_text().count("\n") - 1 if table is not None else 0
        if rows > len(measured):
            assert process.pid is not None
            try:
                measured += [resident(process.pid)] * (rows - len(measured))
            except (OSError, ValueError):  # it, or its worker, has just ended
                continue
        time.sleep(0.01)
    if process.exitcode != 0:
        raise UserError(f"the training ended with {process.exitcode}: {(folder / 'log.txt').read_text()[-500:]}")
    return measured


def growth(measured: Sequence[float]) -> float:
    """MiB in 100 epochs."""
    first = len(measured) // 5
    slope, _ = np.polyfit(np.arange(first, len(measured)), measured[first:], 1)
    return float(100 * slope)


def draw(measured: dict[str, list[float]], file: Path) -> None:
    figure, ax = plt.subplots(figsize=(7, 3.2), constrained_layout=True)
    for name, values in measured.items():
        ax.plot(range(1, len(values) + 1), values, label=f"{name}: {growth(values):+.2f} MiB in 100 epochs")
    ax.set(xlabel="epoch", ylabel="resident memory, MiB", ylim=(0, None))
    ax.legend(loc="lower right")
    ax.grid(alpha=0.3)
    figure.savefig(file, dpi=110)
    plt.close(figure)


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Resident memory of a training over hundreds of epochs."""

    epochs: int = flag(300, "number of epochs")
    figure: Path | None = flag(None, "draw the curves into this PNG", metavar="FILE", output=True)
    json: Path | None = flag(None, "write the findings to this JSON file", metavar="FILE", output=True)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Flags, argv, "reliability.memory")
    os.environ["OMP_NUM_THREADS"] = "1"
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        images = small_images(Path(folder) / "images", train=16, val=8)
        for name, flags in KINDS.items():
            words = (*FLAGS, "--data-path", str(images), "--epochs", str(args.epochs), *flags)
            measured[name] = follow(Victim("zoom_vit.cifar_train", words), Path(folder) / name.replace(" ", "_"))
    record: dict[str, Any] = {
        name: {
            "epochs": len(values),
            "MiB after the first": round(values[0], 1),
            "MiB at the end": round(values[-1], 1),
            "MiB in 100 epochs": round(growth(values), 3),
        }
        for name, values in measured.items()
    }
    print(json.dumps(record, indent=2))
    if args.figure:
        draw(measured, args.figure)
    if args.json:
        args.json.write_text(json.dumps(record | {"environment": environment()}, indent=2) + "\n")
    return int(any(growth(values) > BOUND for values in measured.values()))


if __name__ == "__main__":
    sys.exit(main())
