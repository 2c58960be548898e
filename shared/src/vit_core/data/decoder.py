"""Images one by one, decoded and augmented in worker processes by PyTorch's DataLoader.

A worker gets (epoch, image index) pairs and augments each image by the draws of (seed, epoch, index): what it gives
does not depend on how many workers there are, nor on where an epoch was started.
"""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vit_core.data.augment import Augment, EvalTransform
from vit_core.data.seeding import derive_seed
from vit_core.data.sources import ImageSource
from vit_core.errors import UserError


class _Failure:
    """A user's error on its way from a worker process, without the traceback that DataLoader would add."""

    def __init__(self, message: str) -> None:
        self.message = message


class Decoder:
    """Decodes and augments the images of a source in worker processes that live as long as the loader."""

    def __init__(
        self, source: ImageSource, transform: Augment | EvalTransform, seed: int, num_workers: int, pin: bool
    ) -> None:
        self._plan = _Plan()
        self._workers = num_workers
        options: dict[str, Any] = {}
        if num_workers:
            options = {"persistent_workers": True, "prefetch_factor": 4, "worker_init_fn": _start_worker}
            if sys.platform == "linux":
                # Said, as from Python 3.14 on it is a server that starts processes. A worker ends when the process that
                # it comes from is gone: that server would keep it alive when the training is killed.
                options["multiprocessing_context"] = "fork"
        self._loader: DataLoader[Any] = DataLoader(
            _Images(source, transform, seed),
            batch_sampler=self._plan,
            num_workers=num_workers,
            collate_fn=_identity,
            pin_memory=pin,
            # Else each epoch would take a number from the global generator, and resume would not be exact.
            generator=torch.Generator(),
            **options,
        )

    def epoch(self, epoch: int, parts: list[Tensor]) -> Iterator[Tensor]:
        """uint8 (B, 3, S, S) for the image indices of each part."""
        self._plan.batches = [[(epoch, i) for i in part.tolist()] for part in parts]
        batches = self._start()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            # What a killed worker looks like depends on where it was: nothing more comes, or half a message.
            except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as e:
                if isinstance(e, RuntimeError) and "DataLoader worker" not in str(e):
                    raise
                raise UserError(
                    "a data worker was killed, most often for lack of memory or of shared memory (/dev/shm): "
                    f"use a --num-workers under {self._workers} or a smaller --batch-size"
                ) from e
            if isinstance(batch, _Failure):
                raise UserError(batch.message)
            yield batch

    def _start(self) -> Iterator[Any]:
        if threading.current_thread() is not threading.main_thread():
            return iter(self._loader)
        # DataLoader's handler for dead children raises wherever the main program happens to be, in the middle
        # of a training step or of writing a checkpoint. Without it, the next batch reports the dead worker.
        before = signal.getsignal(signal.SIGCHLD)
        try:
            with warnings.catch_warnings():
                # From Python 3.12 on, a fork beside threads warns; the workers use none of ours.
                warnings.simplefilter("ignore", DeprecationWarning)
                return iter(self._loader)
        finally:
            signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


class _Plan:
    """The batches of the epoch to come, for the DataLoader.

    An object of its own: if the decoder were reachable from its own DataLoader, only the cyclic collector
    would free the two, which closes the workers' queues first and then waits 5 s for each worker in vain.
    """

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, int]]] = []

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Images(torch.utils.data.Dataset[Any]):
    """The part of the DataLoader that runs in a worker: a whole batch at a time."""

    def __init__(self, source: ImageSource, transform: Augment | EvalTransform, seed: int) -> None:
        self._source, self._transform, self._seed = source, transform, seed

    def __getitems__(self, batch: list[tuple[int, int]]) -> Tensor | _Failure:
        try:
            return torch.stack(
                [
                    self._transform.image(self._source.image(index), derive_seed("augment", self._seed, epoch, index))
                    for epoch, index in batch
                ]
            )
        except UserError as e:
            return _Failure(str(e))


def _identity(batch: Any) -> Any:
    return batch


def _start_worker(worker: int) -> None:
    """Ctrl-C, and often SIGTERM, go to the whole process group: the main process decides when its workers end."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
