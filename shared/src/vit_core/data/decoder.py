"""Decoding and augmentation of single images in the worker processes of PyTorch's DataLoader.

Workers get (epoch, image index) pairs and seed the augmentation of each image with (seed, epoch, index), so the result
depends neither on the number of workers nor on the batch at which an epoch was started.
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
    """Carries a UserError's message out of a worker process, without the traceback that DataLoader would add."""

    def __init__(self, message: str) -> None:
        self.message = message


class Decoder:
    """Decodes and augments the images of a source in persistent worker processes."""

    def __init__(
        self, source: ImageSource, transform: Augment | EvalTransform, seed: int, num_workers: int, pin: bool
    ) -> None:
        self._plan = _Plan()
        self._workers = num_workers
        options: dict[str, Any] = {}
        if num_workers:
            options = {"persistent_workers": True, "prefetch_factor": 4, "worker_init_fn": _start_worker}
            if sys.platform == "linux":
                # Set explicitly: the default is "forkserver" from Python 3.14 on. Workers exit when their parent
                # process dies; with a fork server as parent, they would outlive a killed training.
                options["multiprocessing_context"] = "fork"
        self._loader: DataLoader[Any] = DataLoader(
            _Images(source, transform, seed),
            batch_sampler=self._plan,
            num_workers=num_workers,
            collate_fn=_identity,
            pin_memory=pin,
            # Otherwise each epoch would draw from the global generator, and resume would not be exact.
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
            # The error after a killed worker depends on what it was doing: no more data, or an incomplete message.
            except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as e:
                if isinstance(e, RuntimeError) and "DataLoader worker" not in str(e):
                    raise
                raise UserError(
                    "a data worker was killed, most likely because memory or shared memory (/dev/shm) ran out: "
                    f"use --num-workers below {self._workers} or a smaller --batch-size"
                ) from e
            if isinstance(batch, _Failure):
                raise UserError(batch.message)
            yield batch

    def _start(self) -> Iterator[Any]:
        if threading.current_thread() is not threading.main_thread():
            return iter(self._loader)
        # DataLoader's SIGCHLD handler raises at any point of the main program, even in a training step or while a
        # checkpoint is written. Without it, the next batch reports the dead worker.
        before = signal.getsignal(signal.SIGCHLD)
        try:
            with warnings.catch_warnings():
                # Python 3.12 and later warn about forking a multi-threaded process; the workers use no threads of ours.
                warnings.simplefilter("ignore", DeprecationWarning)
                return iter(self._loader)
        finally:
            signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


class _Plan:
    """Batch sampler with the batches of the next epoch.

    A separate object: if the DataLoader referenced the decoder, only the cyclic garbage collector could free them,
    and it closes the workers' queues first and then waits 5 s for each worker.
    """

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, int]]] = []

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Images(torch.utils.data.Dataset[Any]):
    """The dataset inside the DataLoader, which runs in the workers and returns whole batches."""

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
    """Isolate a worker from signals: Ctrl-C, and often SIGTERM, go to the whole process group, but the main process
    decides when its workers end.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
