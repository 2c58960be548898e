"""Batches for training and evaluation: shuffling, sharding over ranks, and resuming at any batch.

All randomness is derived from (seed, epoch, batch index) or (seed, epoch, image index), not from a stateful
generator. So there is no state to save: `epoch(e, start_batch=k)` continues exactly where a run stopped; two ranks
together see exactly the batches of one process with twice the batch size; the number of workers has no effect.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from vit_core.data.augment import Augment, EvalTransform
from vit_core.data.decoder import Decoder
from vit_core.data.seeding import generator
from vit_core.data.sources import ImageSource, MemorySource, TensorSource
from vit_core.errors import UserError

Batch = tuple[Tensor, Tensor]
# Datasets up to this size are kept on the GPU, which avoids copying every batch.
_DEVICE_BYTES = 512 * 2**20


class BatchLoader:
    """Batches of (images float32 (B, 3, S, S) on `device`, normalized; labels int64 (B,) on `device`).

    Training (`train=True`): each epoch is shuffled and split into global batches of batch_size · world images, of
    which rank r takes the r-th part; the last, incomplete batch is dropped. A dataset smaller than one global batch
    is one batch, truncated to a multiple of `world`. Evaluation: rank r takes images r, r + world, … in order; no
    image is dropped.

    Args:
        batch_size: batch size on this rank.
        transform: `Augment` or `EvalTransform`; its img_size is S.
        seed: random seed for shuffling and augmentation; the same on all ranks.
        num_workers: processes that decode images from disk, and that apply augmentations which work on single
            images. Not used for a dataset in memory when training on a CPU, whose cores are busy.
        limit: evaluate only this many images, evenly spaced, because files are often sorted by class.
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
            raise ValueError("limit must be at least 1 and is only allowed with train=False")
        if batch_size < 1 or num_workers < 0 or not 0 <= rank < world:
            raise ValueError(
                f"batch_size must be at least 1, num_workers at least 0 and rank in 0 … world − 1, "
                f"got {batch_size}, {num_workers} and {rank} of {world}"
            )
        if not train and isinstance(transform, Augment):
            raise ValueError("evaluation requires an EvalTransform; Augment is random")
        self.batch_size, self.train, self.seed, self.rank, self.world = batch_size, train, seed, rank, world
        self.device = torch.device(device)
        self.transform = transform
        self._images = len(source)
        self._labels = source.labels
        if train:
            self._batches = max(1, self._images // (batch_size * world))
            self.batch_images = min(batch_size, self._images // world)  # per batch on this rank; all are equal in size
            if self.batch_images == 0:
                raise UserError(
                    f"{self._images} training images are too few for {world} processes: use fewer processes"
                )
            self.num_images = self._batches * self.batch_images
        else:
            limit = min(limit or self._images, self._images)
            self._evaluated = torch.arange(limit) * self._images // limit
            self.num_images = len(range(rank, limit, world))
            self._batches = math.ceil(self.num_images / batch_size)
        self._source: TensorSource | None = None
        self._decoder: Decoder | None = None
        on_gpu = self.device.type == "cuda"
        if not isinstance(source, TensorSource):
            self._decoder = Decoder(source, transform, seed, num_workers, pin=on_gpu)
        elif not transform.takes_batches:
            self._decoder = Decoder(source, transform, seed, num_workers if on_gpu else 0, pin=on_gpu)
        elif isinstance(source, MemorySource) and on_gpu and source.images.nbytes <= _DEVICE_BYTES:
            self._source = source.to(self.device)
        else:
            self._source = source

    @property
    def evaluated(self) -> Tensor:
        """Indices of the source images that this rank evaluates, in order."""
        return self._order(0)

    def __len__(self) -> int:
        """Batches per epoch on this rank."""
        return self._batches

    def epoch(self, epoch: int = 0, start_batch: int = 0) -> Iterator[Batch]:
        """The batches `start_batch`, `start_batch` + 1, … of `epoch`; each batch is independent of `start_batch`.

        Raises: UserError for an unreadable image, with its path, and for a killed worker process.
        """
        order = self._order(epoch)
        parts = [self._part(order, b) for b in range(start_batch, self._batches)]
        if self._decoder is not None:
            images = (p.to(self.device, non_blocking=True) for p in self._decoder.epoch(epoch, parts))
        else:
            assert self._source is not None
            images = (self._source.gather(part, self.device) for part in parts)
        batches = (
            (self._transformed(pixels, epoch, b), self._labels_of(part))
            for b, part, pixels in zip(range(start_batch, self._batches), parts, images, strict=True)
        )
        return _ahead(batches, self.device) if self.device.type == "cuda" else batches

    def _order(self, epoch: int) -> Tensor:
        if self.train:
            return torch.randperm(self._images, generator=generator("order", self.seed, epoch))
        return self._evaluated[self.rank :: self.world]

    def _part(self, order: Tensor, batch: int) -> Tensor:
        """Indices of this rank's images in `batch`."""
        if not self.train:
            return order[batch * self.batch_size : (batch + 1) * self.batch_size]
        first = (batch * self.world + self.rank) * self.batch_images
        return order[first : first + self.batch_images]

    def _transformed(self, images: Tensor, epoch: int, batch: int) -> Tensor:
        if isinstance(self.transform, EvalTransform):
            return self.transform(images) if self._decoder is None else self.transform.normalize(images)
        stream = generator("batch", self.seed, epoch, batch, device=self.device)
        share = slice(self.rank * self.batch_images, (self.rank + 1) * self.batch_images)

        def rand(*shape: int) -> Tensor:  # drawn for the global batch: independent of the number of ranks
            return torch.rand(self.batch_images * self.world, *shape, generator=stream, device=self.device)[share]

        if self._decoder is None:
            images = self.transform.batch(images, rand)
        return self.transform.finish(images, rand)

    def _labels_of(self, part: Tensor) -> Tensor:
        labels = self._labels[part]
        if self.device.type == "cuda":
            labels = labels.pin_memory()
        return labels.to(self.device, non_blocking=True)


def _ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Prepare each batch on a separate CUDA stream while the previous one is being used."""
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
