"""Image files to pixels: which formats, how each becomes 8-bit RGB, and what is said of one that cannot be read.

Conventions, those of `PIL.Image.convert("RGB")` but where noted:

- an alpha channel, or a transparent colour, is dropped: the colours under it are what is seen;
- of an animation or a file of several pages the first picture is read;
- 16 bits a channel become 8 by dropping the lower 8 (Pillow would clip 16-bit grey to white);
- 32-bit integers and floating-point numbers say nothing about what is white: they are refused;
- the rotation that EXIF asks for is not done, as in torchvision, except that Pillow itself does it for TIFF.

Damage that a format's own checks do not show, such as a changed byte within a JPEG's data, goes unnoticed.
"""

import ctypes
import errno
import functools
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from vit_core.errors import UserError

# Others that Pillow knows are left out on purpose: for EPS, say, it would start Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP", "TIFF", "GIF")
_SAMPLE = 64  # images whose headers are read before deciding whether all have one size
_PART = 256  # images that a thread takes at a time


class UnreadableImageError(UserError):
    """One image file that cannot be read; the message names it, `reason` is what is wrong with it."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


_SKIP = ", or leave out what cannot be read with --skip-broken"


def shown(path: str | Path) -> str:
    """The path on one line and in encodable letters, whatever bytes the file's name has."""
    text = str(path)
    return text if text.isprintable() else repr(text)[1:-1]


def _unreadable(path: str, error: Exception, advice: str = _SKIP) -> UnreadableImageError:
    reason = _reason(path, error)
    return UnreadableImageError(
        f"{shown(path)}: unreadable image ({reason}); replace or remove this file{advice}", reason
    )


def _reason(path: str, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"not an image in one of the formats {', '.join(FORMATS)}"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, by its header"
    if isinstance(error, FileNotFoundError):
        return "a link to a file that is not there" if Path(path).is_symlink() else "the file is gone"
    if isinstance(error, OSError) and error.errno:
        return "a link that leads to itself" if error.errno == errno.ELOOP else os.strerror(error.errno)
    return " ".join(str(error).split())[:200] or type(error).__name__


def open_image(path: str) -> Image.Image:
    """Decode one image to RGB, as the head of this module says.

    Raises: UnreadableImageError, naming the path, for a file that is missing, damaged, no image, absurdly large,
    or of a kind that has no certain meaning in 8 bits; MemoryError.
    """
    with _quiet():
        return _open(path)


def read_pixels(path: Path) -> Tensor:
    """One image that the user named as uint8 (3, H, W). Raises as `open_image`."""
    with _quiet():
        image = _open(str(path), advice="")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings about odd metadata and large images. Not for a thread: the filters are shared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(path: str, advice: str = _SKIP) -> Image.Image:
    try:
        return _rgb(path)
    except MemoryError:
        raise
    # Pillow's plugins raise what they like on damaged files: struct.error, KeyError, zlib.error, …
    except Exception as e:
        raise _unreadable(path, e, advice) from e


def _rgb(path: str) -> Image.Image:
    with Image.open(path, formats=FORMATS) as image:
        if image.format == "TIFF":
            _silence_tiff()
            _check_strips(image)
        if image.mode == "RGB":
            image.load()
            return image
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
            return _from_16_bits(image)
        if image.mode in ("I", "F"):
            raise ValueError("its numbers say not what is white; convert it to 8 or 16 unsigned bits")
        if image.mode == "P" and "transparency" in image.info:
            return image.convert("RGBA").convert("RGB")
        return image.convert("RGB")


@functools.cache
def _silence_tiff() -> None:
    """Beside what Pillow raises, it logs what is wrong, and libtiff prints it on standard error, often many lines."""
    logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)
    set_handler = getattr(ctypes.CDLL(Image.core.__file__), "TIFFSetErrorHandler", None)
    if set_handler is not None:  # in some builds of Pillow it cannot be reached
        set_handler.argtypes = [ctypes.c_void_p]
        set_handler(None)


def _check_strips(image: Image.Image) -> None:
    """Where a TIFF has no strips, Pillow shows black. Of one that is stored in tiles, nothing is checked."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    height = tags[257]
    if 273 in tags and len(tags[273]) * tags.get(278, height) < height:
        raise ValueError("fewer strips of pixels than its height needs")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """16-bit grey; as Pillow itself reads 16-bit colours, and a TIFF of 12 bits likewise."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF, before its file is closed
    depth = 12 if tags.get(258) == (12,) else 16
    grey = (np.asarray(image) >> (depth - 8)).astype(np.uint8)
    if tags.get(262) == 0:  # "white is zero", which Pillow heeds for 8 bits only
        grey = 255 - grey
    return Image.fromarray(grey).convert("RGB")


def common_size(paths: Sequence[str]) -> tuple[int, int] | None:
    """Height and width that a sample of the images shares, or None; reads at most about 64 headers."""
    step = max(1, len(paths) // _SAMPLE)
    sizes = set()
    for path in paths[::step]:
        try:
            with _quiet(), Image.open(path, formats=FORMATS) as image:
                sizes.add((image.height, image.width))
        except Exception as e:
            raise _unreadable(path, e) from e
        if len(sizes) > 1:
            return None
    return sizes.pop()


class UnequalSizesError(Exception):
    """Images that should have one size do not; the message names two of them."""


def decode_all(paths: Sequence[str], size: tuple[int, int]) -> Tensor:
    """Decode images of height and width `size`: uint8 (N, 3, H, W).

    Raises: UnequalSizesError at the first image of another size, UserError for an unreadable one, MemoryError.
    """
    out = np.empty((len(paths), 3, *size), dtype=np.uint8)

    def decode(part: range) -> None:
        for i in part:
            image = _decode(paths[i])  # (H, W, 3)
            if image.shape[:2] != size:
                raise UnequalSizesError(
                    f"{shown(paths[i])} is {image.shape[1]}x{image.shape[0]} pixels, "
                    f"{shown(paths[0])} is {size[1]}x{size[0]}"
                )
            out[i] = image.transpose(2, 0, 1)

    # The interpreter's lock makes two threads slower than one where an image takes 50 microseconds.
    _in_parts(len(paths), decode, threads=1 if size[0] * size[1] < 96 * 96 else os.cpu_count())
    return torch.from_numpy(out)


def find_broken(paths: Sequence[str]) -> dict[str, str]:
    """Decode every image once, on all cores, and tell which cannot be read: path -> what is wrong, in their order.

    It costs what reading the whole set once costs. Raises UserError where it is memory that lacks.
    """
    broken: dict[str, str] = {}

    def check(part: range) -> None:
        for i in part:
            try:
                _open(paths[i])
            except UnreadableImageError as e:
                broken[paths[i]] = e.reason
            except MemoryError:
                raise UserError(f"{shown(paths[i])}: out of memory while decoding") from None

    _in_parts(len(paths), check, os.cpu_count())
    return {path: broken[path] for path in paths if path in broken}


def _in_parts(count: int, work: Callable[[range], None], threads: int | None) -> None:
    """Do `work` for parts of range(count) in threads; the first failure ends it."""
    with _quiet(), ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(work, range(i, min(i + _PART, count))) for i in range(0, count, _PART)]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _decode(path: str) -> np.ndarray:
    """One image as uint8 (H, W, 3)."""
    if path.lower().endswith((".jpg", ".jpeg")):
        try:
            # The file read at once and the format named: a fifth less time on small files.
            with Image.open(io.BytesIO(Path(path).read_bytes()), formats=("JPEG",)) as image:
                if image.mode == "RGB":
                    return np.asarray(image)
        except Exception:  # noqa: S110 (damaged, or no JPEG in spite of its name: the general way says what is wrong)
            pass
    return np.asarray(_open(path))
