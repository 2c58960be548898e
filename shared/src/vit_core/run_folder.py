"""The folder of one run: config.json, metrics.csv, checkpoints; and its TensorBoard events."""

import csv
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess  # only to ask git for the commit
import sys
from pathlib import Path
from typing import Any

import torch

from vit_core.checkpoint import remove_leftovers, save_checkpoint
from vit_core.errors import UserError

METRICS = (
    "epoch", "step", "lr", "train_loss", "train_acc1", "train_acc5", "val_loss", "val_acc1", "val_acc5", "grad_norm",
    "images_per_second", "seconds",
)  # fmt: skip
_TAGS = {  # as TensorBoard shows them: one chart for train and val
    "train_loss": "Loss/train", "val_loss": "Loss/val", "train_acc1": "Top1/train", "val_acc1": "Top1/val",
    "train_acc5": "Top5/train", "val_acc5": "Top5/val", "lr": "LearningRate", "grad_norm": "GradientNorm",
}  # fmt: skip


class RunFolder:
    """Files of a run. Only the main process may write; the others hold the same paths."""

    def __init__(self, path: Path, log_dir: Path) -> None:
        self.path, self.log_dir = path, log_dir
        self._events: Any = None

    @classmethod
    def create(cls, save_dir: str | Path, log_dir: str | Path, name: str) -> "RunFolder":
        """`name_YYYYMMDD_HHMMSS` under `save_dir`, with a number behind it where that exists already.

        Raises UserError when the folders cannot be written.
        """
        stamp = f"{name}_{datetime.datetime.now():%Y%m%d_%H%M%S}"
        for number in range(1, 1000):
            path = Path(save_dir) / (stamp if number == 1 else f"{stamp}_{number}")
            try:
                path.mkdir(parents=True)
                events = Path(log_dir) / path.name
                events.mkdir(parents=True, exist_ok=True)
                _check_writable(path)
                _check_writable(events)
                return cls(path, events)
            except FileExistsError:
                if not path.is_dir():
                    raise UserError(f"{path.parent} is a file, not a folder: choose another --save-dir") from None
            except NotADirectoryError as e:
                raise UserError(f"{e.filename}: a part of this path is a file: choose another --save-dir") from e
            except OSError as e:
                raise UserError(
                    f"cannot write to {e.filename or path}: {e.strerror}; choose another --save-dir and --log-dir"
                ) from e
        raise UserError(f"too many runs named {stamp} in {save_dir}")

    @classmethod
    def of_checkpoint(cls, checkpoint: Path, log_dir: str | Path) -> "RunFolder":
        """The folder that `checkpoint` lies in, to go on with it. UserError when it cannot be written."""
        run = cls(checkpoint.parent, Path(log_dir) / checkpoint.parent.resolve().name)
        try:
            _check_writable(run.path)
            run.log_dir.mkdir(parents=True, exist_ok=True)
            _check_writable(run.log_dir)
            remove_leftovers(run.path)
        except OSError as e:
            raise UserError(f"cannot write to {e.filename or run.path}: {e.strerror}") from e
        return run

    def checkpoint(self, name: str) -> Path:
        return self.path / f"{name}.pth"

    def save(self, checkpoint: dict[str, Any], also: list[str]) -> None:
        """Write last.pth, and give the same file the names in `also` (best, epoch_N)."""
        save_checkpoint(self.checkpoint("last"), checkpoint, [self.checkpoint(name) for name in also])

    def write_config(self, config: dict[str, Any]) -> None:
        """config.json: the settings and what they ran with."""
        text = json.dumps(config | {"environment": environment()}, indent=2)
        temporary = self.path / ".config.json"
        temporary.write_text(text + "\n")
        temporary.replace(self.path / "config.json")

    def keep_metrics_until(self, epoch: int, source: Path | None = None) -> None:
        """Drop the rows after `epoch` (a resumed run writes them anew), or take those of another run up to it."""
        target = self.path / "metrics.csv"
        source = source or target
        if not source.is_file():
            return
        with source.open(newline="") as f:
            rows = [row for row in csv.DictReader(f) if _is_whole(row) and int(row["epoch"]) <= epoch]
        temporary = self.path / ".metrics.csv"
        with temporary.open("w", newline="") as f:
            writer = csv.DictWriter(f, METRICS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(target)

    def log(self, row: dict[str, Any]) -> None:
        """Append an epoch to metrics.csv and to TensorBoard. Accuracies in percent; missing ones stay empty."""
        target = self.path / "metrics.csv"
        is_new = not target.exists()
        with target.open("a", newline="") as f:
            writer = csv.DictWriter(f, METRICS)
            if is_new:
                writer.writeheader()
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            self._events = SummaryWriter(str(self.log_dir), purge_step=row["epoch"])
        for key, tag in _TAGS.items():
            if row.get(key) is not None:
                self._events.add_scalar(tag, row[key], row["epoch"])
        self._events.flush()

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


def _is_whole(row: dict[str, str]) -> bool:
    """Not cut short by a full disk or a power cut."""
    return (row["epoch"] or "").isdecimal() and all(row.get(name) is not None for name in METRICS)


def _check_writable(folder: Path) -> None:
    probe = folder / f".write_test_{os.getpid()}"
    probe.write_bytes(b"")
    probe.unlink()


def environment() -> dict[str, Any]:
    """Command, versions, git commit and machine, for config.json and results."""
    packages = ("torch", "torchvision", "timm", "numpy")
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "git_commit": git_commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}",
    }


def git_commit() -> str | None:
    """The commit of this source tree, with "+changes" where it differs from it; None outside a checkout."""
    git = shutil.which("git")
    if git is None:
        return None
    here = Path(__file__).parent

    def ask(*words: str) -> str | None:
        answer = subprocess.run([git, *words], cwd=here, capture_output=True, text=True, check=False)  # noqa: S603
        return answer.stdout.strip() if answer.returncode == 0 else None

    commit = ask("rev-parse", "--short=12", "HEAD")
    return commit and commit + ("+changes" if ask("status", "--porcelain", "--untracked-files=no") else "")
