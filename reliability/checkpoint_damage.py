"""Damage a checkpoint in many ways, and check that it is loaded completely or rejected with one line.

    uv run python -m reliability.checkpoint_damage

Files truncated or with one bit flipped at random places, empty files, those of another model or format version, files
without a checksum, and pickles that would run code are each passed to `train --resume`, `evaluate` and `--weights`. Two
outcomes are allowed: exit code 2 with one line on stderr, or, if the damaged byte is not read, all values as written.
Otherwise, or if a pickle runs code, the exit code is 1.
"""

import contextlib
import io
import json
import os
import pickle
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from reliability.small_images import small_images
from vit_core.errors import UserError
from vit_core.flags import command, flag, parse
from vit_core.training.checkpoint import FORMAT, load_checkpoint, save_checkpoint
from vit_core.training.run_folder import environment
from zoom_vit import cifar_evaluate, cifar_train


class Trap:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.file),)


def damaged(whole: Path, place: Path, count: int, seed: int) -> list[tuple[str, Path]]:
    """(kind, file) for each damaged copy of the checkpoint `whole`, in the folder `place`. Traps would make `ran`."""
    rng = random.Random(seed)  # noqa: S311 -- no secret
    content, checkpoint = whole.read_bytes(), torch.load(whole, weights_only=True)
    found: list[tuple[str, Path]] = []

    def add(kind: str, write: Callable[[Path], object]) -> None:
        file = place / f"{len(found)}.pth"
        write(file)
        found.append((kind, file))

    for _ in range(count):
        cut = content[: rng.randrange(1, len(content))]
        add("truncated", partial(Path.write_bytes, data=cut))
    for _ in range(count):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        add("one bit flipped", partial(Path.write_bytes, data=flipped))
    add("empty", lambda f: f.write_bytes(b""))
    add("not a checkpoint", lambda f: f.write_bytes(b"hello" * 100))
    unsigned = {k: v for k, v in checkpoint.items() if k not in ("format", "checksum")}
    add("no checksum", lambda f: torch.save(unsigned, f))
    add("other format version", lambda f: torch.save(checkpoint | {"format": FORMAT + 1}, f))
    changed = dict(checkpoint["model_state_dict"])
    changed["pos_embed"] = changed["pos_embed"] + 1e-6
    add("one weight changed", lambda f: torch.save(checkpoint | {"model_state_dict": changed}, f))
    fewer = {k: v for k, v in checkpoint["model_state_dict"].items() if "blocks.0." not in k}
    add(
        "other model",
        lambda f: save_checkpoint(f, checkpoint | {"model_state_dict": fewer, "ema_state_dict": None}),
    )
    wider = {k: torch.cat([v, v]) if v.ndim else v for k, v in checkpoint["model_state_dict"].items()}
    add("other model", lambda f: save_checkpoint(f, checkpoint | {"model_state_dict": wider, "ema_state_dict": {}}))
    trap = Trap(place / "ran")
    add("malicious pickle", lambda f: torch.save(checkpoint | {"epoch": trap}, f))
    add("malicious pickle", lambda f: torch.save(trap, f))
    add("malicious pickle", lambda f: f.write_bytes(pickle.dumps(checkpoint["config"] | {"trap": trap})))
    add("malicious pickle", lambda f: torch.save([trap], f, _use_new_zipfile_serialization=False))
    return found


def attempts(file: Path, images: Path, place: Path) -> list[tuple[str, Callable[[], int]]]:
    """What a user may do with a checkpoint."""
    where = ["--save-dir", str(place / "runs"), "--log-dir", str(place / "logs"), "--device", "cpu"]
    data = ["--dataset", "imagefolder", "--data-path", str(images)]
    output = ["--output-dir", str(place / "results")]
    return [
        ("resume", lambda: cifar_train.main(["--resume", str(file), "--epochs", "9", *where])),
        ("evaluate", lambda: cifar_evaluate.main(["--checkpoint", str(file), *output, "--device", "cpu", *data])),
        ("weights", lambda: cifar_train.main(["--weights", str(file), "--model", "micro", *data, *where])),
    ]


def outcome(attempt: Callable[[], int]) -> str:
    """ "rejected" for one line and exit code 2; else what happened instead."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = attempt()
    except BaseException as e:  # would be a traceback
        return f"{type(e).__name__}: {e}"
    line = said.getvalue()
    return "rejected" if code == 2 and line.count("\n") == 1 else f"exit code {code}: {line[-300:]}"


def is_same(a: Any, b: Any) -> bool:
    """Of one type and value throughout; asks torch itself, and not the checksum that is to be tested."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(is_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(is_same, a, b))
    return bool(a == b)


def study(whole: Path, images: Path, place: Path, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """The number of files by damage and outcome, and a line for each outcome that is not allowed."""
    written = torch.load(whole, weights_only=True)
    counts: Counter[str] = Counter()
    wrong = []
    (place / "damaged").mkdir()
    for kind, file in damaged(whole, place / "damaged", count, seed):
        try:
            found = load_checkpoint(file)
        except UserError:
            found = None
        if kind in ("truncated", "one bit flipped") and found is not None:
            same = is_same(found, written)
            counts[f"{kind}: loaded, all values intact" if same else f"{kind}: LOADED WRONGLY"] += 1
            wrong += [] if same else [f"{file.name} ({kind}) was loaded wrongly"]
            continue
        results = {name: outcome(attempt) for name, attempt in attempts(file, images, place)}
        counts[f"{kind}: rejected"] += all(r == "rejected" for r in results.values())
        wrong += [f"{file.name} ({kind}), {name}: {r}" for name, r in results.items() if r != "rejected"]
    if (place / "damaged" / "ran").exists():
        wrong.append("a pickle ran")
    return counts, wrong


def trained(place: Path, images: Path) -> Path:
    """last.pth of a short training."""
    argv = ["--model", "micro", "--dataset", "imagefolder", "--data-path", str(images), "--epochs", "1"]
    argv += ["--batch-size", "8", "--device", "cpu", "--warmup-epochs", "0", "--ema-decay", "0.9"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert cifar_train.main([*argv, "--save-dir", str(place / "first"), "--log-dir", str(place / "logs")]) == 0
    (last,) = (place / "first").glob("*/last.pth")
    return last


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Damage a checkpoint in many ways, and check that it is loaded completely or rejected with one line."""

    count: int = flag(100, "files of each random kind")
    seed: int = flag(0, "random seed of the places")
    json: Path | None = flag(None, "write the findings to this JSON file", metavar="FILE", output=True)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Flags, argv, "reliability.checkpoint_damage")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        images = small_images(place / "images", train=16, val=8)
        counts, wrong = study(trained(place, images), images, place, args.count, args.seed)
    record = {"seed": args.seed, "counts": counts, "wrong": wrong}
    print(json.dumps(record, indent=2))
    if args.json:
        args.json.write_text(json.dumps(record | {"environment": environment()}, indent=2) + "\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
