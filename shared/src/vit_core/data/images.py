"""Decoding of image files: supported formats, conversion to 8-bit RGB, and error messages for unreadable files.

Conventions, those of `PIL.Image.convert("RGB")` unless noted:

- alpha channels and transparent colors are dropped, without blending;
- of animations and multi-page files, the first frame is read;
- 16-bit channels are reduced to 8 bits by dropping the lower 8 (Pillow would clip 16-bit grayscale to white);
- 32-bit integer and float images are rejected, because they have no defined white level;
- EXIF orientation is ignored, as in torchvision, except for TIFF, where Pillow applies it.

Damage that a format's own checks do not detect, such as a changed byte in JPEG data, is not detected.
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

# Pillow's other formats are excluded on purpose: for EPS, for example, it would start Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP", "TIFF", "GIF")
_SAMPLE = 64  # number of headers read to check whether all images have the same size
_PART = 256  # images per thread task


class UnreadableImageError(UserError):
    """An unreadable image file; the message includes its path and `reason`, the cause."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


_SKIP = ", or use --skip-broken to skip unreadable images"


def shown(path: str | Path) -> str:
    """The path as one printable line, whatever bytes the file name contains."""
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
        return f"its header declares more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    if isinstance(error, FileNotFoundError):
        return "a link to a missing file" if Path(path).is_symlink() else "the file does not exist"
    if isinstance(error, OSError) and error.errno:
        return "a link that points to itself" if error.errno == errno.ELOOP else os.strerror(error.errno)
    return " ".join(str(error).split())[:200] or type(error).__name__


def open_image(path: str) -> Image.Image:
    """Decode one image to RGB, with the conventions of this module's docstring.

    Raises: UnreadableImageError, naming the path, for a file that is missing, damaged, not an image, far too large,
    or has no defined conversion to 8 bits; MemoryError.
    """
    with _quiet():
        return _open(path)


def read_pixels(path: Path) -> Tensor:
    """Decode an image given by the user to uint8 (3, H, W). Raises as `open_image`."""
    with _quiet():
        image = _open(str(path), advice="")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress Pillow's warnings about metadata and large images. Not thread-safe: warning filters are global."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(path: str, advice: str = _SKIP) -> Image.Image:
    try:
        return _rgb(path)
    except MemoryError:
        raise
    # Pillow's plugins raise all kinds of errors on damaged files: struct.error, KeyError, zlib.error, …
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
            raise ValueError(
                "32-bit integer and float images have no defined white level; convert to 8- or 16-bit unsigned"
            )
        if image.mode == "P" and "transparency" in image.info:
            return image.convert("RGBA").convert("RGB")
        return image.convert("RGB")


@functools.cache
def _silence_tiff() -> None:
    """Silence Pillow's TIFF logger and libtiff's messages on stderr; errors are still raised."""
    logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)
    set_handler = getattr(ctypes.CDLL(Image.core.__file__), "TIFFSetErrorHandler", None)
    if set_handler is not None:  # not exported by some builds of Pillow
        set_handler.argtypes = [ctypes.c_void_p]
        set_handler(None)


def _check_strips(image: Image.Image) -> None:
    """ValueError for a TIFF with missing strips, which Pillow would decode as black. Tiled TIFFs are not checked."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    height = tags[257]
    if 273 in tags and len(tags[273]) * tags.get(278, height) < height:
        raise ValueError("missing image strips: fewer than the image height requires")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Convert 16-bit (in TIFF also 12-bit) grayscale to 8 bits, the way Pillow converts 16-bit color."""
    tags = getattr(image, "tag_v2", {})  # TIFF only; read before the file is closed
    depth = 12 if tags.get(258) == (12,) else 16
    gray = (np.asarray(image) >> (depth - 8)).astype(np.uint8)
    if tags.get(262) == 0:  # "white is zero", which Pillow supports only for 8 bits
        gray = 255 - gray
    return Image.fromarray(gray).convert("RGB")


def common_size(paths: Sequence[str]) -> tuple[int, int] | None:
    """Common height and width of a sample of the images, or None if they differ; reads about 64 headers at most."""
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
    """Images differ in size; the message names two of them."""


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

    # For images that take about 50 microseconds, the GIL makes two threads slower than one.
    _in_parts(len(paths), decode, threads=1 if size[0] * size[1] < 96 * 96 else os.cpu_count())
    return torch.from_numpy(out)


def find_broken(paths: Sequence[str]) -> dict[str, str]:
    """Decode every image once, on all cores, and return the unreadable ones: path -> reason, in the given order.

    Takes as long as reading the whole dataset once. Raises UserError if memory runs out.
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
    """Run `work` on parts of range(count) in threads; stops at the first error."""
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
            # Reading the file at once and naming the format saves a fifth of the time for small files.
            with Image.open(io.BytesIO(Path(path).read_bytes()), formats=("JPEG",)) as image:
                if image.mode == "RGB":
                    return np.asarray(image)
        except Exception:  # noqa: S110 (damaged, or not a JPEG despite its name: _open reports the error)
            pass
    return np.asarray(_open(path))
