"""Image sources of a loader: a tensor in memory, files on disk, or random numbers."""

import os
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vit_core.data.images import UnequalSizesError, common_size, decode_all, open_image, shown
from vit_core.data.seeding import derive_seed
from vit_core.errors import UserError

Cache = Literal["auto", "memory", "disk"]
CACHES: tuple[Cache, ...] = ("auto", "memory", "disk")
_MEMORY_LIMIT = 2 * 2**30  # bytes of decoded images that cache="auto" keeps in memory


class ImageSource(Protocol):
    """N labeled images; `MemorySource`, `DiskSource` and `FakeSource` differ in where the pixels come from."""

    labels: Tensor  # (N,) int64, on the CPU

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image | Tensor:
        """One image: a PIL RGB image, or uint8 (3, H, W) on the CPU. Raises UserError if it cannot be read."""
        ...


@runtime_checkable
class TensorSource(ImageSource, Protocol):
    """A source whose images all have the same size and are stored in a tensor."""

    def gather(self, indices: Tensor, device: torch.device) -> Tensor:
        """Images at `indices` (B,): uint8 (B, 3, H, W) on `device`."""
        ...


class MemorySource:
    """Decoded images in one uint8 tensor (N, 3, H, W), on the CPU or, after `to`, on a GPU."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        if labels.shape != images.shape[:1]:
            raise ValueError(f"labels must have shape ({len(images)},), got {tuple(labels.shape)}")
        self.images = images
        self.labels = labels.long()

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Tensor:
        """Image `index`: uint8 (3, H, W)."""
        return self.images[index]

    def to(self, device: torch.device) -> "MemorySource":
        """The same source with its images on `device`."""
        return MemorySource(self.images.to(device), self.labels)

    def gather(self, indices: Tensor, device: torch.device) -> Tensor:
        """Images at `indices` (B,): uint8 (B, 3, H, W) on `device`; the copy to a GPU does not block."""
        images = self.images.index_select(0, indices.to(self.images.device))
        if device.type == "cuda" and images.device.type == "cpu":
            return images.pin_memory().to(device, non_blocking=True)
        return images.to(device)


class DiskSource:
    """Image files, decoded on demand by the worker processes of a `BatchLoader`."""

    def __init__(self, paths: list[str], labels: list[int]) -> None:
        # One block of bytes: a list of a million strings would be copied into every worker, page by page, as
        # their reference counts change. Concatenated: in a NumPy string array, one long path would widen all rows.
        encoded = [os.fsencode(p) for p in paths]
        self._names = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])
        self.labels = torch.tensor(labels, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        """The file of image `index`."""
        return Path(os.fsdecode(self._names[self._ends[index] : self._ends[index + 1]]))

    def image(self, index: int) -> Image.Image:
        """Image `index`, decoded. Raises UserError that names the file."""
        path = str(self.path(index))
        try:
            return open_image(path)
        except MemoryError:
            raise UserError(
                f"{shown(path)}: out of memory while decoding; use fewer --num-workers or a smaller --batch-size"
            ) from None


class FakeSource:
    """`count` random S×S images, drawn from a pool of 64 that is generated on the requested device."""

    pool_size = 64

    def __init__(self, count: int, img_size: int, num_classes: int, seed: int) -> None:
        self._shape = (self.pool_size, 3, img_size, img_size)
        self.labels = torch.arange(count) % num_classes
        self._seed = derive_seed("fake", img_size, seed)
        self._pools: dict[torch.device, Tensor] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Tensor:
        """Image `index`: uint8 (3, S, S)."""
        return self.gather(torch.tensor([index]), torch.device("cpu"))[0]

    def gather(self, indices: Tensor, device: torch.device) -> Tensor:
        """Images at `indices` (B,): uint8 (B, 3, S, S) on `device`, the same on every call."""
        if device not in self._pools:
            generator = torch.Generator(device).manual_seed(self._seed)
            self._pools[device] = torch.randint(256, self._shape, generator=generator, dtype=torch.uint8, device=device)
        return self._pools[device].index_select(0, (indices % self.pool_size).to(device))


def source_from_files(paths: list[str], labels: list[int], cache: Cache) -> MemorySource | DiskSource:
    """A source that keeps the images in memory or reads them from disk, depending on `cache`.

    "auto" uses memory if all images have the same size and take at most 2 GiB. It first compares about 64 headers,
    and falls back to disk if it finds an image of another size, or runs out of memory, while decoding the rest.

    Raises: UserError for an unreadable image, and for cache "memory" if the images differ in size or do not fit.
    """
    if cache not in CACHES:
        raise ValueError(f"cache must be one of {', '.join(CACHES)}, got {cache!r}")
    if cache == "disk":
        return DiskSource(paths, labels)
    size = common_size(paths)
    if size is None and cache == "memory":
        raise UserError(f"{shown(Path(paths[0]).parent)}: the images differ in size; use --cache disk (or auto)")
    if size is None or (cache == "auto" and len(paths) * 3 * size[0] * size[1] > _MEMORY_LIMIT):
        return DiskSource(paths, labels)
    try:
        return MemorySource(decode_all(paths, size), torch.tensor(labels))
    except (UnequalSizesError, MemoryError) as e:
        if cache == "memory":
            reason = "out of memory" if isinstance(e, MemoryError) else f"the images differ in size: {e}"
            raise UserError(f"{reason}; use --cache disk (or auto)") from e
        return DiskSource(paths, labels)
