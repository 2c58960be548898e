"""A loop over parts of a batch on all CPU cores.

torch spreads each operation over the cores and waits for the slowest after each. The many short operations of
a data pipeline then wait more than they work, above all where another process has one of the cores; and a
whole batch does not fit in a core's cache. Here each thread takes a few images through all operations.
"""

import itertools
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

_own = threading.local()
_pools: dict[int, ThreadPoolExecutor] = {}


def for_each_part(count: int, device: torch.device, work: Callable[[slice], None], size: int = 8) -> None:
    """Call `work` on parts that together are 0 … count − 1: of `size` images on a CPU, else on all at once.

    The first exception that `work` raises is raised here.
    """
    if device.type != "cpu":
        work(slice(0, count))
        return
    parts = range(0, count, size)
    threads = min(getattr(_own, "cores", None) or torch.get_num_threads(), len(parts))
    if threads <= 1:
        for first in parts:
            work(slice(first, min(first + size, count)))
        return
    # Tensors made in inference mode may be written to only in it, and the mode belongs to a thread.
    inference = torch.is_inference_mode_enabled()
    turn = itertools.count()

    def take_parts() -> None:
        with torch.inference_mode(inference):
            while (i := next(turn)) < len(parts):
                work(slice(parts[i], min(parts[i] + size, count)))

    jobs = [_pool(threads).submit(take_parts) for _ in range(threads)]
    errors = [error for job in jobs if (error := job.exception()) is not None]
    if errors:
        raise errors[0]


@contextmanager
def one_core() -> Iterator[None]:
    """Run torch's operations of this thread on one core; `for_each_part` inside still takes all.

    torch's own threads spin for a while after each operation that they had a part in, in the way of ours.
    """
    if getattr(_own, "cores", None) is not None:  # we are inside another `one_core`
        yield
        return
    _own.cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(_own.cores)
        _own.cores = None


def scratch(shape: Sequence[int]) -> Tensor:
    """Uninitialised float32 memory on the CPU that this thread may use until it asks again."""
    count = math.prod(shape)
    if getattr(_own, "scratch", None) is None or _own.scratch.numel() < count:
        with torch.inference_mode(False):
            _own.scratch = torch.empty(count)
    return _own.scratch[:count].view(shape)


def _pool(threads: int) -> ThreadPoolExecutor:
    if threads not in _pools:
        pool = ThreadPoolExecutor(threads, thread_name_prefix="vit-data", initializer=_one_core)
        everyone = threading.Barrier(threads)
        wanted = torch.get_num_threads()
        for job in [pool.submit(everyone.wait) for _ in range(threads)]:
            job.result()
        torch.set_num_threads(wanted)  # threads that start later take over the number that was set last
        _pools[threads] = pool
    return _pools[threads]


def _one_core() -> None:
    torch.get_num_threads()  # the first call in a thread sets the process's number; ours must come after it
    torch.set_num_threads(1)


# A forked child has the pools but not their threads.
os.register_at_fork(after_in_child=_pools.clear)
