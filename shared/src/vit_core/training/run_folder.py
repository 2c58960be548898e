"""A run's folder (config.json, metrics.csv, checkpoints) and its TensorBoard events."""

import csv
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess  # only to ask git for the commit
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from vit_core.errors import UserError
from vit_core.files import check_writable, lock_folder, remove_leftovers, replacing, write_whole
from vit_core.training.checkpoint import save_checkpoint

_CHARTS = {"loss": "Loss", "acc1": "Top1", "acc5": "Top5"}  # TensorBoard charts, each with train and val
_TAGS = {"lr": "LearningRate", "grad_norm": "GradientNorm"}


class RunFolder:
    """Files of a run. Only the main process writes and holds the folder's lock; other ranks only know the paths."""

    def __init__(self, path: Path, log_dir: Path, lock: FileLock | None = None) -> None:
        self.path, self.log_dir = path, log_dir
        self._lock = lock
        self._events: Any = None

    @classmethod
    def create(cls, save_dir: str | Path, log_dir: str | Path, name: str) -> "RunFolder":
        """Create `name_YYYYMMDD_HHMMSS` under `save_dir`, with a number appended if it already exists.

        Raises UserError if the folders are not writable.
        """
        stamp = f"{name}_{datetime.datetime.now():%Y%m%d_%H%M%S}"
        for number in range(1, 1000):
            path = Path(save_dir) / (stamp if number == 1 else f"{stamp}_{number}")
            events = Path(log_dir) / path.name
            with _choosing("--save-dir", path):
                try:
                    path.mkdir(parents=True)
                except FileExistsError:
                    continue
                check_writable(path)
            try:
                with _choosing("--log-dir", events):
                    events.mkdir(parents=True, exist_ok=True)
                    check_writable(events)
            except UserError:
                path.rmdir()
                raise
            return cls(path, events, lock_folder(path))
        raise UserError(f"too many runs named {stamp} in {save_dir}")

    @classmethod
    def of_checkpoint(cls, checkpoint: Path, log_dir: str | Path) -> "RunFolder":
        """The folder that contains `checkpoint`, to resume its run.

        UserError if it is not writable or another run is writing to it.
        """
        path, events = checkpoint.parent, Path(log_dir) / checkpoint.parent.resolve().name
        lock = None
        try:
            lock = lock_folder(path)
            check_writable(path)
            events.mkdir(parents=True, exist_ok=True)
            check_writable(events)
            remove_leftovers(path)
            remove_leftovers(events)
        except OSError as e:
            if lock is not None:
                lock.release()
            raise UserError(f"cannot write to {e.filename or path}: {e.strerror}") from e
        return cls(path, events, lock)

    @classmethod
    def latest_of_job(cls, save_dir: str | Path, job: str) -> Path | None:
        """last.pth of the newest run under `save_dir` started by torchrun's job `job`; None if there is none."""
        found = []
        for config in Path(save_dir).glob("*/config.json"):
            last = config.with_name("last.pth")
            try:
                if last.is_file() and json.loads(config.read_text()).get("job") == job:
                    found.append((last.stat().st_mtime, last))
            except (OSError, ValueError, AttributeError):  # not one of ours
                continue
        return max(found)[1] if found else None

    def checkpoint(self, name: str) -> Path:
        return self.path / f"{name}.pth"

    def save(self, checkpoint: dict[str, Any], also: list[str]) -> None:
        """Write last.pth, and make the names in `also` (best, epoch_N) refer to the same file."""
        save_checkpoint(self.checkpoint("last"), checkpoint, [self.checkpoint(name) for name in also])

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.json: the settings and the environment."""
        write_whole(self.path / "config.json", json.dumps({**config, "environment": environment()}, indent=2) + "\n")

    def keep_metrics_until(self, epoch: int, source: Path | None = None) -> None:
        """Drop the metrics.csv rows after `epoch`, which a resumed run writes again; or copy those of `source`."""
        target = self.path / "metrics.csv"
        source = source or target
        if not source.is_file():
            return
        try:
            with source.open(newline="") as f:
                reader = csv.DictReader(f)
                rows = [row for row in reader if _is_whole(row) and int(row["epoch"]) <= epoch]
                columns = reader.fieldnames or ()
        except (UnicodeDecodeError, csv.Error) as e:
            raise UserError(f"{source} is damaged ({e}): remove the invalid lines, or the file") from e
        with replacing(target) as temporary, temporary.open("w", newline="") as f:
            if rows:  # otherwise the first logged row writes the header
                writer = csv.DictWriter(f, columns, extrasaction="ignore")
                writer.writeheader()
                writer.writerows(rows)

    def log(self, row: dict[str, Any]) -> None:
        """Append an epoch to metrics.csv and TensorBoard. The first row defines the columns; None is left empty."""
        with _naming(self.path):
            self._append(row)
        with _naming(self.log_dir):
            self._add_events(row)

    def _append(self, row: dict[str, Any]) -> None:
        target = self.path / "metrics.csv"
        with target.open("a+", newline="") as f:
            f.seek(0)
            columns = next(csv.reader(f), None)
            writer = csv.DictWriter(f, columns or list(row))
            if columns is None:
                writer.writeheader()
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
            f.flush()
            os.fsync(f.fileno())  # must be on disk before the checkpoint that follows

    def _add_events(self, row: dict[str, Any]) -> None:
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._events = SummaryWriter(str(self.log_dir), purge_step=row["epoch"])
        for name, value in row.items():
            split, _, what = name.partition("_")
            tag = f"{_CHARTS.get(what, what)}/{split}" if split in ("train", "val") else _TAGS.get(name)
            if tag is not None and value is not None:
                self._events.add_scalar(tag, value, row["epoch"])
        self._events.flush()

    def close(self) -> None:
        """Close the event file and release the folder's lock."""
        try:
            if self._events is not None:
                self._events.close()
        finally:
            self._events = None
            if self._lock is not None:
                self._lock.release()


@contextmanager
def _choosing(flag: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise UserError(f"cannot write to {e.filename or folder}: {e.strerror}; choose another {flag}") from e


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Add the folder's name to write errors, and report them only once.

    TensorBoard's writer thread prints a traceback and also passes the error on to this thread.
    """
    before, threading.excepthook = threading.excepthook, lambda _: None
    try:
        yield
    except OSError as e:
        e.filename = e.filename or str(folder)
        raise
    finally:
        threading.excepthook = before


def _is_whole(row: dict[str, str]) -> bool:
    """False for a row that was cut off by a full disk or a power failure."""
    return (row.get("epoch") or "").isdecimal() and None not in row.values()


def environment() -> dict[str, Any]:
    """Command, package versions, git commit and machine, for config.json and results."""
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
    """The commit of this source tree, with "+changes" if there are uncommitted changes; None outside a checkout."""
    git = shutil.which("git")
    if git is None:
        return None
    here = Path(__file__).parent

    def ask(*words: str) -> str | None:
        answer = subprocess.run([git, *words], cwd=here, capture_output=True, text=True, check=False)  # noqa: S603
        return answer.stdout.strip() if answer.returncode == 0 else None

    commit = ask("rev-parse", "--short=12", "HEAD")
    return commit and commit + ("+changes" if ask("status", "--porcelain", "--untracked-files=no") else "")
