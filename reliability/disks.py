"""Fill the disk under a training, make it read-only, and let two trainings into one folder.

    uv run python -m reliability.disks          # as root: it mounts a small tmpfs

A disk that fills up while a checkpoint is written must end the run with one line that names the folder and the space;
the checkpoint before it must be whole, and once there is room the run must go on from it to the same end as one that
was never disturbed. Exit code 1 where one of the findings is not as it should be.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from reliability.small_images import small_images
from vit_core.errors import UserError
from vit_core.flags import command, flag, parse
from vit_core.training.checkpoint import load_checkpoint
from vit_core.training.run_folder import environment

TRAIN = (
    "-m",
    "zoom_vit.cifar_train",
    "--model",
    "micro",
    "--dataset",
    "imagefolder",
    "--device",
    "cpu",
    "--epochs",
    "2",
    "--batch-size",
    "8",
    "--warmup-epochs",
    "0",
)


def mount(*words: str) -> None:
    """UserError where this user may not."""
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)  # noqa: S603, S607
    if done.returncode:
        raise UserError(f"mount {' '.join(words)}: {done.stderr.strip()}; this needs root")


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system in memory of so many bytes, at `folder`."""
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S603, S607


def train(images: Path, logs: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, *TRAIN, "--data-path", str(images), "--log-dir", str(logs), *argv]
    return subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603


def last_of(folder: Path) -> Path:
    (last,) = folder.glob("*/last.pth")
    return last


def findings(place: Path) -> dict[str, bool]:
    """What was looked at -> whether it is as it should be."""
    images, logs = small_images(place / "images", train=32, val=8), place / "logs"
    found = {"an uninterrupted run finishes": train(images, logs, "--save-dir", str(place / "whole")).returncode == 0}
    whole = last_of(place / "whole")
    size = whole.stat().st_size

    with small_disk(place / "disk", int(1.6 * size)) as disk:  # room for one checkpoint, not for two
        ended = train(images, logs, "--save-dir", str(disk))
        line = ended.stderr
        print(line.replace(str(place), "…"), end="")
        last = last_of(disk)
        found["a full disk: one line, exit code 2"] = ended.returncode == 2 and line.count("\n") == 1
        found["… that names the folder and its space"] = bool(
            re.search(rf"the disk is full \([\d.]+ MB free in {re.escape(str(last.parent))}", line)
        )
        found["… and the previous checkpoint is intact"] = load_checkpoint(last)["epoch"] == 1
        found["… and no temporary files remain"] = not [f for f in last.parent.iterdir() if f.name.startswith(".")]

        mount("-o", "remount,ro", str(disk))
        ended = train(images, logs, "--resume", str(last))
        print(ended.stderr.replace(str(place), "…"), end="")
        found["a read-only folder: one line, exit code 2"] = ended.returncode == 2 and ended.stderr.count("\n") == 1
        found["… that names it"] = str(last.parent) in ended.stderr

        mount("-o", f"remount,rw,size={4 * size}", str(disk))
        found["with free space, the run resumes"] = train(images, logs, "--resume", str(last)).returncode == 0
        found["… and ends bit-identical to the uninterrupted run"] = (
            load_checkpoint(last)["checksum"] == load_checkpoint(whole)["checksum"]
        )

    words = [sys.executable, *TRAIN, "--data-path", str(images), "--log-dir", str(logs), "--epochs", "500"]
    with subprocess.Popen([*words, "--resume", str(whole)], stdout=subprocess.PIPE, text=True) as first:  # noqa: S603
        assert first.stdout is not None
        while not first.stdout.readline().startswith("epoch"):
            pass
        second = train(images, logs, "--resume", str(whole), "--epochs", "500")
        first.kill()
    print(second.stderr.replace(str(place), "…"), end="")
    found["a second run in a run's folder: one line, exit code 2"] = (
        second.returncode == 2 and second.stderr.count("\n") == 1 and str(whole.parent) in second.stderr
    )
    again = train(images, logs, "--resume", str(whole), "--epochs", "500", "--early-stopping", "1")
    found["… and after the first is killed, another can resume"] = again.returncode == 0
    return found


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Fill the disk under a training, make it read-only, and let two trainings into one folder."""

    json: Path | None = flag(None, "write the findings to this JSON file", metavar="FILE", output=True)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Flags, argv, "reliability.disks")
    os.environ["OMP_NUM_THREADS"] = "1"  # of all trainings alike: sums in another order differ in the last bit
    with tempfile.TemporaryDirectory() as folder:
        found = findings(Path(folder))
    print("\n".join(f"{'yes' if good else 'NO '}  {what}" for what, good in found.items()))
    if args.json:
        args.json.write_text(json.dumps({"findings": found, "environment": environment()}, indent=2) + "\n")
    return int(not all(found.values()))


if __name__ == "__main__":
    sys.exit(main())
