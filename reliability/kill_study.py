"""Kill a training at random instants, resume it each time, and compare the result with an uninterrupted one.

    uv run python -m reliability.kill_study --kills 50
    uv run python -m reliability.kill_study --kills 50 --signal TERM

The training keeps an EMA, mixes images, accumulates gradients and runs under bf16 autocast. A third of the kills wait
until a checkpoint is being written; the others come at any instant. Compared are last.pth and best.pth, every bit of
them (weights, optimizer, EMA, generators, best accuracy: see `vit_core.training.checkpoint.digest`), the rows of
metrics.csv but for their clock times, TensorBoard's curves, and that no temporary file is left. Exit code 1 where
anything differs.
"""

import csv
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from reliability.small_images import small_images
from vit_core.errors import UserError
from vit_core.flags import command, flag, parse
from vit_core.training.checkpoint import digest, load_checkpoint
from vit_core.training.run_folder import environment

EPOCHS = 3
FLAGS = (
    "--model", "micro", "--dataset", "imagefolder", "--cache", "disk", "--num-workers", "1", "--device", "cpu",
    "--epochs", str(EPOCHS), "--batch-size", "8", "--grad-accum", "2", "--ema-decay", "0.9", "--mixup", "0.8",
    "--cutmix", "1.0", "--amp", "bf16", "--save-steps", "1", "--warmup-epochs", "1", "--model-kwargs", "depth=1",
)  # fmt: skip
KILLS_EACH = 5  # of one training
CLOCKS = ("images_per_second", "seconds")  # columns that no two runs share


@dataclass
class Outcome:
    """The kills by outcome, and all differences from the uninterrupted training."""

    kills: int = 0
    trainings: int = 0
    starts: int = 0
    before_the_first_checkpoint: int = 0
    left_half_a_file: int = 0  # a checkpoint was being written
    after_the_last_checkpoint: int = 0
    differences: list[str] = field(default_factory=list)


class Victim:
    """Starts the script `module` in a process of its own, forked from one that has imported all and done nothing."""

    def __init__(self, module: str, flags: Sequence[str]) -> None:
        self.module, self.flags = module, tuple(flags)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([module, "torch.utils.tensorboard"])

    def start(self, folder: Path) -> BaseProcess:
        """The training in `folder`: from its checkpoint, where there is one."""
        argv = ["--save-dir", str(folder / "checkpoints"), "--log-dir", str(folder / "logs"), *self.flags]
        last = checkpoint_of(folder)
        if last is not None:
            argv += ["--resume", str(last)]
        folder.mkdir(parents=True, exist_ok=True)
        process = self._context.Process(target=_train, args=(self.module, argv, folder / "log.txt"))
        process.start()
        return process

    def finish(self, folder: Path) -> float:
        """Train to the end. Returns the seconds that it took."""
        began = time.monotonic()
        process = self.start(folder)
        process.join()
        if process.exitcode != 0:
            raise UserError(f"the training ended with {process.exitcode}: {(folder / 'log.txt').read_text()[-500:]}")
        return time.monotonic() - began


def _train(module: str, argv: list[str], log: Path) -> None:
    with log.open("a") as f:
        for stream in (1, 2):
            os.dup2(f.fileno(), stream)
    sys.exit(importlib.import_module(module).main(argv))


def checkpoint_of(folder: Path) -> Path | None:
    """last.pth of the only run in `folder` that has one."""
    found = list(folder.glob("checkpoints/*/last.pth"))
    assert len(found) <= 1, found
    return found[0] if found else None


def study(victim: Victim, folder: Path, kills: int, signal_number: int, seed: int) -> Outcome:
    """Train without interruption, then repeatedly with kills until there were `kills` of them."""
    random_instant = random.Random(seed)  # noqa: S311 -- no secret
    victim.finish(folder / "first")  # which waits for the imports
    seconds = victim.finish(folder / "uninterrupted")
    outcome = Outcome()
    while outcome.kills < kills:
        place = folder / f"killed_{outcome.trainings}"
        wanted = min(KILLS_EACH, kills - outcome.kills)
        for _ in range(wanted):
            process = victim.start(place)
            outcome.starts += 1
            if random_instant.random() < 1 / 3:
                _wait_for_a_write(process, place, random_instant.randrange(1, 7))
            else:
                process.join(random_instant.uniform(0.0, seconds * (1 - _epochs(place) / EPOCHS)))
            if _kill(process, signal_number):
                outcome.kills += 1
                _record(place, process, outcome)
            if _epochs(place) == EPOCHS:
                break
        if _epochs(place) < EPOCHS:
            victim.finish(place)
            outcome.starts += 1
        outcome.trainings += 1
        outcome.differences += [f"{place.name}: {d}" for d in differences(folder / "uninterrupted", place)]
        if not outcome.differences:
            shutil.rmtree(place)
    return outcome


def _wait_for_a_write(process: BaseProcess, folder: Path, number: int) -> None:
    """Until the `number`-th checkpoint of this process is being written, or the process has ended."""
    inside = False
    while process.is_alive():
        writing = any(folder.glob(f"checkpoints/*/.last.pth.{process.pid}"))
        number -= writing and not inside
        if writing and number <= 0:
            return
        inside = writing
        time.sleep(0.0003)


def _kill(process: BaseProcess, signal_number: int) -> bool:
    """Whether the signal found the process before it had come to its end."""
    if process.is_alive():
        assert process.pid is not None
        os.kill(process.pid, signal_number)
        process.join()
    if process.exitcode not in (0, -signal_number, 128 + signal_number):
        raise UserError(f"the training ended with {process.exitcode}")
    return process.exitcode != 0


def _record(folder: Path, process: BaseProcess, outcome: Outcome) -> None:
    outcome.left_half_a_file += any(folder.glob(f"checkpoints/*/.last.pth.{process.pid}"))
    if checkpoint_of(folder) is None:
        outcome.before_the_first_checkpoint += 1
        shutil.rmtree(folder)  # nothing to resume: the next start is the first
        return
    outcome.after_the_last_checkpoint += _epochs(folder) == EPOCHS


def _epochs(folder: Path) -> int:
    """Epochs that the checkpoint has, which is whole whenever the kill came."""
    last = checkpoint_of(folder)
    return 0 if last is None else int(load_checkpoint(last)["epoch"])


def differences(expected: Path, found: Path) -> list[str]:
    """What the run in `found` ended with that the one in `expected` did not, in words."""
    ours, theirs = (checkpoint_of(f) for f in (found, expected))
    assert ours is not None
    assert theirs is not None
    wrong = []
    for name in ("last.pth", "best.pth"):
        a, b = (load_checkpoint(f.with_name(name)) for f in (ours, theirs))
        wrong += [f"{name}: {k}" for k in b if k != "checksum" and digest({"": a.get(k)}) != digest({"": b[k]})]
    if _rows(ours) != _rows(theirs):
        wrong.append(f"metrics.csv: {_rows(ours)} for {_rows(theirs)}")
    if _curves(found) != _curves(expected):
        wrong.append("TensorBoard's curves")
    hidden = [f.name for f in (*ours.parent.iterdir(), *found.glob("logs/*/*")) if f.name.startswith(".")]
    return wrong + [f"left behind: {name}" for name in hidden]


def _rows(last: Path) -> list[dict[str, str]]:
    with last.with_name("metrics.csv").open(newline="") as f:
        return [{k: v for k, v in row.items() if k not in CLOCKS} for row in csv.DictReader(f)]


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    (events,) = folder.glob("logs/*")
    read = EventAccumulator(str(events)).Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Kill a training at random instants, resume it each time, and compare the result with an uninterrupted one."""

    kills: int = flag(50, "number of kills")
    signal: str = flag("KILL", "signal that kills", choices=("KILL", "TERM"))
    module: str = flag("zoom_vit.cifar_train", "module that trains")
    seed: int = flag(0, "random seed of the instants")
    json: Path | None = flag(None, "write the findings to this JSON file", metavar="FILE", output=True)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Flags, argv, "reliability.kill_study")
    number = signal.Signals[f"SIG{args.signal}"]
    os.environ["OMP_NUM_THREADS"] = "1"  # of all trainings alike: sums in another order differ in the last bit
    with tempfile.TemporaryDirectory() as folder:
        images = small_images(Path(folder) / "images", train=48, val=8)
        victim = Victim(args.module, (*FLAGS, "--data-path", str(images)))
        outcome = study(victim, Path(folder), args.kills, number, args.seed)
    if number == signal.SIGKILL and args.kills >= 20 and not outcome.left_half_a_file:
        outcome.differences.append("no kill met a checkpoint while it was written: more kills, or another --seed")
    record: dict[str, Any] = {"signal": args.signal, "module": args.module, "seed": args.seed, **asdict(outcome)}
    print(json.dumps(record, indent=2))
    if args.json:
        args.json.write_text(json.dumps(record | {"environment": environment()}, indent=2) + "\n")
    return int(bool(outcome.differences))


if __name__ == "__main__":
    sys.exit(main())
