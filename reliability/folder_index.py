"""How long a large image folder takes to be indexed, and how much memory that needs.

    uv run python -m reliability.folder_index --files 100000 --classes 1000 --json FILE

The folder is made up of small valid PNGs. Indexing is `load_dataset("imagefolder", cache="disk")`, what a training run
does first, in a process of its own, whose memory before and at its peak is told apart. In turns with it, a process
that walks over the same folder with `os.walk` and keeps nothing tells how fast the file system is. The files were just
written, so the system has them in its cache: from a cold disk both take longer.
"""

import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

from vit_core.data import DiskSource, load_dataset
from vit_core.errors import UserError
from vit_core.flags import command, flag, parse
from vit_core.training.run_folder import environment

_STATUS = Path("/proc/self/status")


def make_folder(root: Path, files: int, classes: int) -> None:
    """root/train/<class>/<image>.png, `files` in all, and one image a class in root/val."""
    png = root / "example.png"
    Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)).save(png)
    for c in range(classes):
        for split, count in (("train", files * (c + 1) // classes - files * c // classes), ("val", 1)):
            folder = root / split / f"class_{c:05d}"
            folder.mkdir(parents=True)
            for i in range(count):
                image = folder / f"image_{c:05d}_{i:07d}.png"
                if i % 1000 == 0:
                    written = shutil.copyfile(png, image)
                else:
                    image.hardlink_to(written)  # far quicker, and the same to who lists the folder


def index(root: Path) -> int:
    """Find the images as a training run does; returns how many there are to train on."""
    data = load_dataset("imagefolder", data_path=root, img_size=32, cache="disk")
    assert isinstance(data.train, DiskSource)
    return len(data.train)


def walk(root: Path) -> int:
    """How many files the standard library sees in the same time."""
    return sum(len(files) for _, _, files in os.walk(root / "train"))


def _measure(work: Callable[[Path], int], root: Path, answer: Connection) -> None:
    """Target of a process: seconds, MiB that its memory grew by at its peak, images."""
    # Sets the peak back to what is in use now; ru_maxrss cannot be, and begins with that of the parent process.
    _STATUS.with_name("clear_refs").write_text("5")
    before, started = _memory("VmRSS"), time.perf_counter()
    count = work(root)
    answer.send((time.perf_counter() - started, _memory("VmHWM") - before, count))


def _memory(what: str) -> float:
    """VmRSS, the memory in use, or VmHWM, its peak, in MiB."""
    (line,) = [line for line in _STATUS.read_text().splitlines() if line.startswith(what)]
    return int(line.split()[1]) / 1024


def run(files: int, classes: int, rounds: int) -> dict[str, float | int]:
    """Medians of `rounds` turns."""
    taken: dict[Callable[[Path], int], list[tuple[float, float, int]]] = {index: [], walk: []}
    context = multiprocessing.get_context("spawn")
    root = Path(tempfile.mkdtemp())
    try:
        make_folder(root, files, classes)
        for _ in range(rounds):
            for work, turns in taken.items():
                ours, theirs = context.Pipe()
                process = context.Process(target=_measure, args=(work, root, theirs))
                process.start()
                theirs.close()
                turns.append(ours.recv())
                process.join()
                assert turns[-1][2] == files
    finally:
        shutil.rmtree(root)
    seconds = statistics.median(t[0] for t in taken[index])
    walked = statistics.median(t[0] for t in taken[walk])
    return {
        "files": files,
        "classes": classes,
        "rounds": rounds,
        "seconds": round(seconds, 3),
        "files_per_second": round(files / seconds),
        "peak_mib": round(statistics.median(t[1] for t in taken[index]), 1),
        "walk_seconds": round(walked, 3),
        "times_walk": round(seconds / walked, 2),
    }


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Time and memory to index a large image folder."""

    files: int = flag(100_000, "training images")
    classes: int = flag(1_000, "class folders")
    rounds: int = flag(3, "turns; the median counts")
    most_seconds: float = flag(10.0, "limit; above it the exit code is 1")
    most_mib: float = flag(100.0, "limit; above it the exit code is 1")
    json: Path | None = flag(None, "write the findings to this JSON file", metavar="FILE", output=True)

    def __post_init__(self) -> None:
        if not (1 <= self.classes <= self.files and self.rounds >= 1):
            raise ValueError("--classes must lie between 1 and --files, and --rounds be at least 1")


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Flags, argv, "reliability.folder_index")
    if not _STATUS.is_file():
        raise UserError(f"{_STATUS}: no such file; the memory is read there, on Linux")
    result = run(args.files, args.classes, args.rounds)
    if args.json:
        args.json.write_text(json.dumps(result | {"environment": environment()}, indent=2) + "\n")
    print(
        f"{args.files:,} files in {args.classes:,} classes indexed in {result['seconds']:.2f} s "
        f"({result['files_per_second']:,} files/s), {result['times_walk']} times as long as os.walk; "
        f"at its peak {result['peak_mib']} MiB more than before"
    )
    return int(result["seconds"] > args.most_seconds or result["peak_mib"] > args.most_mib)


if __name__ == "__main__":
    sys.exit(main())
