"""Batches for training and evaluation: order, sharding over ranks, and resume at any batch.

Everything random comes from (seed, epoch, batch index) or (seed, epoch, image index), never from a running
generator. So there is no state to save: `epoch(e, start_batch=k)` continues exactly where a stopped run was;
two ranks see exactly what one process with the doubled batch sees; and the number of workers changes nothing.
"""

import math
import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vit_core.data.augment import Augment, EvalTransform
from vit_core.data.decoder import Decoder
from vit_core.data.parallel import one_core
from vit_core.data.seeding import generator
from vit_core.data.sources import DiskSource, ImageSource, MemorySource, TensorSource
from vit_core.errors import UserError

Batch = tuple[Tensor, Tensor]
# A smaller set than this is kept on the GPU: it saves the copy of every batch.
_DEVICE_BYTES = 512 * 2**20


class BatchLoader:
    """Batches of (images float32 (B, 3, S, S) on `device`, normalised; labels int64 (B,) on `device`).

    Training (`train=True`): each epoch has its own order, cut in global batches of batch_size · world
    images, of which rank r takes the r-th part; the last, incomplete one is left out. A set smaller than one
    global batch is one batch, cut to a multiple of `world`. Evaluation: rank r takes images r, r + world, …
    in order, all of them.

    Args:
        batch_size: images a batch on this rank.
        transform: `Augment` or `EvalTransform`; its img_size is S.
        seed: of the order and of the augmentation; the same on all ranks.
        num_workers: processes that decode a `DiskSource`; other sources need none.
        limit: evaluate on so many images only, spread evenly over the source: files are often sorted by class.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        batch_size: int,
        transform: Augment | EvalTransform,
        train: bool,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        num_workers: int = 0,
        limit: int | None = None,
    ) -> None:
        if limit is not None and (train or limit < 1):
            raise ValueError("limit is for evaluation, and at least 1")
        if batch_size < 1 or num_workers < 0 or not 0 <= rank < world:
            raise ValueError(
                f"batch_size must be at least 1, num_workers at least 0 and rank in 0 … world − 1, "
                f"not {batch_size}, {num_workers} and {rank} of {world}"
            )
        if not train and isinstance(transform, Augment):
            raise ValueError("evaluation takes an EvalTransform: an Augment would draw at random")
        self.batch_size, self.train, self.seed, self.rank, self.world = batch_size, train, seed, rank, world
        self.device = torch.device(device)
        self.transform = transform
        self._images = len(source)
        self._labels = source.labels
        if train:
            self._batches = max(1, self._images // (batch_size * world))
            self._share = min(batch_size, self._images // world)  # of a batch, for this rank
            if self._share == 0:
                raise UserError(
                    f"{self._images} training images are too few for {world} processes: use fewer processes"
                )
            self.num_images = self._batches * self._share
        else:
            limit = min(limit or self._images, self._images)
            self._evaluated = torch.arange(limit) * self._images // limit
            self.num_images = len(range(rank, limit, world))
            self._batches = math.ceil(self.num_images / batch_size)
        if isinstance(source, MemorySource) and self.device.type == "cuda" and source.images.nbytes <= _DEVICE_BYTES:
            source = source.to(self.device)
        self._buffers = _HostBuffers()
        self._decoder = None
        if isinstance(source, DiskSource):
            self._decoder = Decoder(source, transform, seed, num_workers, pin=self.device.type == "cuda")
            self._on_device: Augment | EvalTransform = transform.without_crop()
        else:
            assert isinstance(source, TensorSource)
            self._on_device = transform
        self._source = source

    @property
    def evaluated(self) -> Tensor:
        """Which images of the source an evaluation gives on this rank, in their order."""
        return self._order(0)

    def __len__(self) -> int:
        """Batches an epoch on this rank."""
        return self._batches

    def epoch(self, epoch: int = 0, start_batch: int = 0) -> Iterator[Batch]:
        """The batches `start_batch`, `start_batch` + 1, … of `epoch`, the same whatever the start.

        Raises: UserError for an image that cannot be read, with its path, and for a worker that was killed.
        """
        order = self._order(epoch)
        parts = [self._part(order, b) for b in range(start_batch, self._batches)]
        if self._decoder is None:
            assert isinstance(self._source, TensorSource)
            pixels = (self._source.gather(part, self.device) for part in parts)
            size = self._source.image_size
        else:
            pixels = (p.to(self.device, non_blocking=True) for p in self._decoder.epoch(epoch, parts))
            size = None
        batches = (
            (self._transform(images, epoch, b, size), self._labels_of(part))
            for b, part, images in zip(range(start_batch, self._batches), parts, pixels, strict=True)
        )
        return _ahead(batches, self.device) if self.device.type == "cuda" else batches

    def _order(self, epoch: int) -> Tensor:
        if self.train:
            return torch.randperm(self._images, generator=generator("order", self.seed, epoch))
        return self._evaluated[self.rank :: self.world]

    def _part(self, order: Tensor, batch: int) -> Tensor:
        """Which images this rank has in `batch`."""
        if not self.train:
            return order[batch * self.batch_size : (batch + 1) * self.batch_size]
        first = (batch * self.world + self.rank) * self._share
        return order[first : first + self._share]

    def _transform(self, images: Tensor, epoch: int, batch: int, source_size: tuple[int, int] | None) -> Tensor:
        size = self._on_device.img_size
        out = self._buffers.take((len(images), 3, size, size)) if self.device.type == "cpu" else None
        # The caller's autocast would run the resize in 16 bits.
        with torch.autocast(self.device.type, enabled=False), one_core():
            if isinstance(self._on_device, EvalTransform):
                return self._on_device.apply(images, out)
            # Drawn for the global batch: a rank's share does not depend on how many ranks there are.
            stream = generator("augment", self.seed, epoch, batch)
            drawn = self._on_device.draw(self._share * self.world, stream, source_size)
            share = slice(self.rank * self._share, (self.rank + 1) * self._share)
            return self._on_device.apply(images, drawn[share], out)

    def _labels_of(self, part: Tensor) -> Tensor:
        labels = self._labels[part]
        if self.device.type == "cuda":
            labels = labels.pin_memory()
        return labels.to(self.device, non_blocking=True)


class _HostBuffers:
    """Memory for batches on the CPU, used again once nobody holds the batch that was in it.

    A fresh batch of 64 images at 224×224 is 38 MB: to have the system map its pages takes twice as long as to
    compute it. A tensor made by `from_numpy` holds a reference to its array for as long as the tensor, a
    view of it, or autograd needs the memory; so an array that only this list refers to is free.
    """

    kept = 3

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []
        self._free_count = 0

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """An uninitialised float32 tensor of `shape`."""
        for i in range(len(self._arrays)):
            if self._arrays[i].shape == shape and sys.getrefcount(self._arrays[i]) == self._free_count:
                return torch.from_numpy(self._arrays[i])
        array = _aligned(shape)
        if len(self._arrays) < self.kept:
            self._arrays.append(array)
            del array
            self._free_count = sys.getrefcount(self._arrays[-1])
            return torch.from_numpy(self._arrays[-1])
        return torch.from_numpy(array)


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Uninitialised float32 memory that begins at a cache line, as torch's own does and numpy's does not."""
    raw = np.empty(math.prod(shape) + 16, dtype=np.float32)
    first = -raw.ctypes.data % 64 // 4
    return raw[first : first + math.prod(shape)].reshape(shape)


def _ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Prepare each batch on a stream of its own while the one before it is being used."""
    main = torch.cuda.current_stream(device)
    side = torch.cuda.Stream(device)
    side.wait_stream(main)
    ready: Batch | None = None
    while True:
        with torch.cuda.stream(side):
            following = next(batches, None)
        if ready is not None:
            yield ready
        if following is None:
            return
        main = torch.cuda.current_stream(device)
        main.wait_stream(side)
        for tensor in following:
            tensor.record_stream(main)
        ready = following
