"""One training on 1, 2 and 4 processes, with one of them killed, and on two machines.

    uv run python -m reliability.processes          # as root for the two machines, which are network namespaces

Real torchrun, gloo over loopback. The same global batch must give the same losses and every image must be evaluated
once, on however many processes; only rank 0 may write; a killed worker must end the job with a line that says what
happened, and with `--max-restarts` the job must go on from its last checkpoint. Exit code 1 where it is not so.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reliability.small_images import small_images
from vit_core.errors import UserError
from vit_core.flags import command, flag, parse
from vit_core.training.checkpoint import load_checkpoint
from vit_core.training.run_folder import environment

GLOBAL_BATCH, EVALUATED = 16, 97  # a number of images that neither 2 nor 4 divides
TRAIN = (
    "--model",
    "micro",
    "--dataset",
    "imagefolder",
    "--device",
    "cpu",
    "--warmup-epochs",
    "1",
    "--ema-decay",
    "0.9",
    "--mixup",
    "0",
    "--model-kwargs",
    "drop_rate=0",
    "drop_path_rate=0",  # which each rank draws for itself
)
COMPARED = ("train_loss", "train_acc1", "val_loss", "val_acc1", "grad_norm", "lr")
HOSTS = ("10.77.0.1", "10.77.0.2")


def torchrun(*words: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *words]


def run(words: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(list(words), capture_output=True, text=True, check=False, timeout=600, **options)  # noqa: S603
    if done.returncode:
        raise UserError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done


class Trainings:
    """Trainings on the same images, each in a folder of its own under `place`."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.images = small_images(place / "images", train=160, val=EVALUATED)

    def words(self, name: str, processes: int, epochs: int = 3, module: str = "zoom_vit.cifar_train") -> list[str]:
        """The script and its flags, for so many processes."""
        folder = self.place / name
        folder.mkdir(exist_ok=True)
        return [
            "-m",
            "reliability.watched_rank",
            str(folder),
            module,
            *TRAIN,
            "--data-path",
            str(self.images),
            "--batch-size",
            str(GLOBAL_BATCH // processes),
            "--epochs",
            str(epochs),
            "--save-dir",
            str(folder / "checkpoints"),
            "--log-dir",
            str(folder / "logs"),
        ]

    def rows(self, name: str) -> list[dict[str, str]]:
        with self.last(name).with_name("metrics.csv").open(newline="") as f:
            return list(csv.DictReader(f))

    def last(self, name: str) -> Path:
        (last,) = (self.place / name).glob("checkpoints/*/last.pth")
        return last

    def difference(self, name: str, expected: str) -> float:
        """Largest relative difference of any figure of any epoch."""
        pairs = zip(self.rows(name), self.rows(expected), strict=True)
        return max(abs(float(a[k]) - float(b[k])) / max(abs(float(b[k])), 1e-9) for a, b in pairs for k in COMPARED)

    def weights_apart(self, name: str, expected: str) -> float:
        """Largest difference of any weight at the end."""
        ours, theirs = (load_checkpoint(self.last(n))["model_state_dict"] for n in (name, expected))
        return max(float((ours[k] - theirs[k]).abs().max()) for k in theirs)

    def written_by(self, name: str, rank: int) -> list[str]:
        return (self.place / name / f"rank_{rank}.txt").read_text().splitlines()

    def evaluated(self, name: str, processes: int) -> dict[str, Any]:
        result = self.place / f"evaluated_by_{processes}.json"
        run(
            [
                *torchrun("--standalone", "--nproc-per-node", str(processes)),
                "-m",
                "zoom_vit.cifar_evaluate",
                "--checkpoint",
                str(self.last(name)),
                "--batch-size",
                "8",
                "--device",
                "cpu",
                "--json",
                str(result),
                "--output-dir",
                str(self.place),
            ]
        )
        found: dict[str, Any] = json.loads(result.read_text())
        return found


def on_several_processes(trainings: Trainings, counts: Sequence[int]) -> dict[str, Any]:
    """Losses, evaluation and writers on so many processes."""
    found: dict[str, Any] = {}
    for count in counts:
        name = f"on_{count}"
        run([*torchrun("--standalone", "--nproc-per-node", str(count)), *trainings.words(name, count)])
        found[f"{count} processes: largest relative difference of a figure"] = trainings.difference(name, "on_1")
        found[f"{count} processes: largest difference of a weight"] = trainings.weights_apart(name, "on_1")
        evaluated = trainings.evaluated("on_1", count)
        found[f"{count} processes: images evaluated"] = evaluated["num_images"]
        found[f"{count} processes: top-1, loss"] = [evaluated["acc1"], round(evaluated["loss"], 6)]
        found[f"{count} processes: files changed by rank 0"] = len(trainings.written_by(name, 0))
        found[f"{count} processes: files changed by others"] = sum(
            len(trainings.written_by(name, rank)) for rank in range(1, count)
        )
    return found


def with_one_killed(trainings: Trainings, name: str, restarts: int) -> tuple[int, str, float]:
    """Kill a worker of two after the first checkpoint. Returns exit code, what was said, and seconds until the end."""
    words = torchrun(
        "--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts), "--monitor-interval", "0.1"
    )
    log = trainings.place / f"{name}.txt"
    with log.open("w") as f:
        job = subprocess.Popen([*words, *trainings.words(name, 2, epochs=6)], stdout=f, stderr=f)  # noqa: S603
    while not any((trainings.place / name).glob("checkpoints/*/last.pth")):
        time.sleep(0.05)
        if job.poll() is not None:
            raise UserError(f"the job ended before its first checkpoint: {log.read_text()[-2000:]}")
    killed_at = time.monotonic()
    os.kill(_worker(job.pid, rank=1), signal.SIGKILL)
    job.wait(300)
    return job.returncode, log.read_text(), time.monotonic() - killed_at


def _worker(agent: int, rank: int) -> int:
    """The process of a rank that the torchrun `agent` started."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    for child in children:
        if f"\0RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise UserError(f"rank {rank} is not among the processes of {agent}")


def killed_and_restarted(trainings: Trainings) -> dict[str, Any]:
    """A killed worker, without and with restarts."""
    run([*torchrun("--standalone", "--nproc-per-node", "2"), *trainings.words("unbroken", 2, epochs=6)])
    code, said, seconds = with_one_killed(trainings, "broken", restarts=0)
    lines = [line for line in said.splitlines() if line.startswith("error:")]
    found: dict[str, Any] = {
        "a worker killed: torchrun's exit code": code,
        "a worker killed: seconds until the job had ended": round(seconds, 1),
        "a worker killed: what the other said": [line.replace(str(trainings.place), "…") for line in lines],
    }
    code, said, _ = with_one_killed(trainings, "restarted", restarts=1)
    ends = [load_checkpoint(trainings.last(name))["checksum"] for name in ("restarted", "unbroken")]
    return found | {
        "--max-restarts 1: torchrun's exit code": code,
        "--max-restarts 1: resumed": [s.split(str(trainings.place))[-1] for s in said.splitlines() if "resuming" in s],
        "--max-restarts 1: ends as the unbroken job, bit for bit": ends[0] == ends[1],
    }


@contextmanager
def two_hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them: their names."""
    names = tuple(f"vit{os.getpid()}{side}" for side in "ab")

    def ip(*words: str) -> None:
        run(["ip", *words])

    for name in names:
        ip("netns", "add", name)
    try:
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, HOSTS, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield names[0], names[1]
    finally:
        for name in names:
            ip("netns", "del", name)


def on_two_machines(trainings: Trainings) -> dict[str, Any]:
    """One torchrun on each of two hosts, which meet over the cable; then one of the hosts dies."""
    # gloo takes the address that the host's name has: in these namespaces none, so it is told the device.
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "cable"}

    def start(host: str, address: str, name: str, epochs: int) -> subprocess.Popen[str]:
        words = torchrun(
            "--nnodes",
            "2",
            "--nproc-per-node",
            "1",
            "--rdzv-backend",
            "c10d",
            "--rdzv-id",
            name,
            "--rdzv-endpoint",
            f"{HOSTS[0]}:29400",
            "--rdzv-conf",
            f"is_host={int(address == HOSTS[0])}",
            "--local-addr",
            address,
        )
        words = ["ip", "netns", "exec", host, *words, *trainings.words(name, 2, epochs=epochs)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)  # noqa: S603

    with two_hosts() as hosts:
        jobs = [start(h, a, "two_machines", 3) for h, a in zip(hosts, HOSTS, strict=True)]
        said = [job.communicate(timeout=400)[0] for job in jobs]
        if any(job.returncode for job in jobs):
            raise UserError(f"two machines: {said[0][-1500:]} {said[1][-1500:]}")
        found: dict[str, Any] = {
            "2 machines: largest relative difference of a figure": trainings.difference("two_machines", "on_1"),
            "2 machines: largest difference of a weight": trainings.weights_apart("two_machines", "on_1"),
        }
        jobs = [start(h, a, "one_dies", 50) for h, a in zip(hosts, HOSTS, strict=True)]
        while not any((trainings.place / "one_dies").glob("checkpoints/*/last.pth")):
            time.sleep(0.1)
        began = time.monotonic()
        _kill_tree(jobs[1].pid)
        said = [jobs[0].communicate(timeout=400)[0]]
        lines = [line for line in said[0].splitlines() if "error:" in line and "lost" in line]
        return found | {
            "2 machines, one dies: the other's exit code": jobs[0].returncode,
            "2 machines, one dies: seconds until the other had ended": round(time.monotonic() - began, 1),
            "2 machines, one dies: what it said": [line.replace(str(trainings.place), "…") for line in lines],
        }


def _kill_tree(pid: int) -> None:
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        _kill_tree(int(child))
    os.kill(pid, signal.SIGKILL)


def problems(found: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    wrong = [k for k, v in found.items() if "relative difference" in k and not v < 2e-3]
    wrong += [k for k, v in found.items() if "difference of a weight" in k and not v < 1e-4]
    wrong += [k for k, v in found.items() if k.endswith("images evaluated") and v != EVALUATED]
    wrong += [k for k, v in found.items() if k.endswith("top-1, loss") and v != found["1 processes: top-1, loss"]]
    wrong += [k for k, v in found.items() if k.endswith("by others") and v != 0]
    wrong += [k for k, v in found.items() if k.endswith("by rank 0") and v == 0]
    wrong += [k for k, v in found.items() if "what " in k and not any("lost the connection" in line for line in v)]
    wrong += [k for k, v in found.items() if "bit for bit" in k and not v]
    wrong += [k for k, v in found.items() if "restarts 1: torchrun" in k and v != 0]
    return wrong


@dataclass(frozen=True, kw_only=True)
class Flags:
    """One training on 1, 2 and 4 processes, with one of them killed, and on two machines."""

    machines: bool = flag(True, "also train in two network namespaces")
    only_machines: bool = flag(False, "only these, and one process to compare with")
    json: Path | None = flag(None, "write the findings to this JSON file", metavar="FILE", output=True)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Flags, argv, "reliability.processes")
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        trainings = Trainings(Path(folder))
        counts = (1,) if args.only_machines else (1, 2, 4)
        found = on_several_processes(trainings, counts)
        if not args.only_machines:
            found |= killed_and_restarted(trainings)
        if args.machines:
            found |= on_two_machines(trainings)
    wrong = problems(found)
    print(json.dumps(found, indent=2, ensure_ascii=False), *(f"NOT AS IT SHOULD BE: {w}" for w in wrong), sep="\n")
    if args.json:
        record = {"findings": found, "wrong": wrong, "environment": environment()}
        args.json.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
