"""The processes of a run, as started by `torchrun`: ranks, devices, collectives and random seeds."""

import datetime
import os
import platform
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from vit_core.errors import UserError
from vit_core.training.host_memory import keep_freed_memory

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Rank and device of this process."""

    rank: int
    size: int
    device: torch.device
    local_rank: int = 0  # on this machine

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints messages."""
        return self.rank == 0


def start(device: str = "auto") -> World:
    """Join the process group set up by `torchrun` (gloo on CPUs, NCCL on GPUs), or run as a single process.

    Raises UserError if the device is not available or the other processes cannot be reached.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = pick_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)  # checkpoints store the generator of the current device
    elif chosen.type == "cpu":
        keep_freed_memory()
    if size == 1:
        return World(0, 1, chosen)
    if not dist.is_initialized():
        try:
            _meet("nccl" if chosen.type == "cuda" else "gloo")
        except RuntimeError as e:
            raise UserError(f"cannot reach the other processes of this run: {' '.join(str(e).split())[:200]}") from e
    return World(dist.get_rank(), size, chosen, local_rank)


def _meet(backend: str) -> None:
    timeout = datetime.timedelta(minutes=30)
    if not is_restart() or os.environ.get("GROUP_WORLD_SIZE") != "1":
        dist.init_process_group(backend, timeout=timeout)
        return
    # torchrun's store still holds the addresses of the processes before the restart (pytorch issue 135712); connecting
    # to them would fail. On several machines the restart counts may differ: see docs/reliability.md.
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    own = dist.PrefixStore(f"start_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=timeout)


def wait_for_all() -> None:
    """Barrier: a rank that exits early would break the others' connections."""
    if dist.is_initialized():
        dist.barrier()


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto`: CUDA if available, else Apple's MPS, else the CPU. `cuda`: the GPU of this process's local rank."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,3})?", name):  # torch has further devices, unsuitable for training
        raise UserError(f"unknown device {name!r}: use auto, cpu, cuda, cuda:N or mps")
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                "--device cuda: torch finds no CUDA GPU; use --device cpu, or install a CUDA build of PyTorch"
            )
        index = local_rank if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise UserError(f"GPU {index} does not exist: this machine has {torch.cuda.device_count()} GPUs")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: torch finds no Apple GPU; use --device cpu")
    return device


LOST_PROCESS = "lost the connection to another process of this run (it was killed, or its machine failed)"


def is_lost_process(error: RuntimeError) -> bool:
    """Whether a collective failed because another process of the run has ended. gloo raises a plain RuntimeError."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def job() -> str | None:
    """ID of torchrun's job, the same across all restarts of its processes; None without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name != "none":
        return name
    # Without --rdzv-id, identify the job by the agent that started this process: its PID, which may repeat in
    # containers, and its start time.
    agent = Path(f"/proc/{os.getppid()}/stat")
    started = agent.read_text().rpartition(")")[2].split()[19] if agent.is_file() else ""
    return f"{platform.node()}:{os.getppid()}:{started}"


def is_restart() -> bool:
    """Whether torchrun started this process to replace one that failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def broadcast(value: T) -> T:
    """The main process's value, on every rank. It must be picklable; only this run's own processes send it."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: T) -> list[T]:
    """The values of all ranks, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def together() -> Iterator[None]:
    """If the block fails on one rank, exit on all: the others would otherwise wait for it forever."""
    problem: Exception | None = None
    try:
        yield
    except Exception as e:
        problem = e
    failed = gather(problem is not None)
    if problem is not None:
        raise problem
    if any(failed):
        raise SystemExit(2)  # the failing rank reports the error


def all_sum(value: Tensor) -> Tensor:
    """Sum over the ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed Python, NumPy and torch with `seed + rank`, so that ranks draw different dropout and drop-path masks."""
    random.seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)
    torch.manual_seed(seed + rank)


def rng_state() -> dict[str, Any]:
    """State of all random generators of this process, in types that `torch.load(weights_only=True)` accepts."""
    version, internal, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, cached = numpy_state
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore a state returned by `rng_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
