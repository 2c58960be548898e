"""Folders of images, one folder a class: scanning, checks, and decoding.

Everything a user can get wrong about a folder is a `UserError` of one line that names the path.
"""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from vit_core.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff", ".gif")
_SAMPLE = 64  # images whose headers are read before deciding whether all have one size


def scan_classes(root: Path, class_names: Sequence[str] | None = None) -> tuple[list[str], list[int], tuple[str, ...]]:
    """The images of `root/<class>/…`, sorted by class and path: paths, labels and class names.

    With `class_names` (those of the training set) the labels are indices into it, and a class that it lacks
    is an error; a class without a folder is not. Hidden files and folders are left out.

    Raises: UserError for a missing folder, one without class folders, an empty class folder, or an unknown
    class.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    found = sorted(d.name for d in root.iterdir() if d.is_dir() and not d.name.startswith("."))
    if not found:
        raise UserError(f"{root}: no class folders; expected {root}/<class>/<image>")
    names = tuple(class_names or found)
    index = {name: i for i, name in enumerate(names)}
    paths: list[str] = []
    labels: list[int] = []
    for name in found:
        if name not in index:
            raise UserError(
                f"{root / name}: class {name!r} is not among the {len(names)} training classes; "
                "add it to the training folder or remove it here"
            )
        images = _images_under(root / name)
        if not images:
            raise UserError(f"{root / name}: empty class folder (no image in it); add images or remove the folder")
        paths += images
        labels += [index[name]] * len(images)
    return paths, labels, names


def _images_under(folder: Path) -> list[str]:
    images = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        images += [
            os.path.join(parent, f)  # noqa: PTH118 (a Path for each of a million files is slow)
            for f in sorted(files)
            if f.lower().endswith(EXTENSIONS) and not f.startswith(".")
        ]
    return images


def open_image(path: str) -> Image.Image:
    """Decode one image to RGB.

    Raises: UserError, naming the path, for a file that is missing, truncated, no image, or absurdly large.
    """
    try:
        with Image.open(path) as image:
            if image.mode == "RGB":
                image.load()
                return image
            if image.mode == "P" and "transparency" in image.info:
                return image.convert("RGBA").convert("RGB")
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as e:
        raise _unreadable(path, e) from e


def read_pixels(path: Path) -> Tensor:
    """One image as uint8 (3, H, W). UserError as for `open_image`."""
    return torch.from_numpy(np.array(open_image(str(path)))).permute(2, 0, 1).contiguous()


def find_images(path: Path, most: int) -> list[Path]:
    """The image itself, or the first `most` images of the folder and those in it. UserError where there is none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in EXTENSIONS)
    if not files:
        raise UserError(f"{path} holds no image ({', '.join(EXTENSIONS)})")
    if len(files) > most:
        print(f"the first {most} of {len(files)} images; --max-images for more")
    return files[:most]


def _unreadable(path: str, error: Exception) -> UserError:
    if isinstance(error, UnidentifiedImageError):
        reason = "not an image"
    elif isinstance(error, FileNotFoundError):
        reason = "the file is gone"
    else:
        reason = str(error) or type(error).__name__
    return UserError(f"{path}: unreadable image ({reason}); replace or remove this file")


def common_size(paths: Sequence[str]) -> tuple[int, int] | None:
    """Height and width that a sample of the images shares, or None; reads at most 64 headers."""
    step = max(1, len(paths) // _SAMPLE)
    sizes = set()
    for path in paths[::step]:
        try:
            with Image.open(path) as image:
                sizes.add((image.height, image.width))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
            raise _unreadable(path, e) from e
        if len(sizes) > 1:
            return None
    return sizes.pop()


class UnequalSizesError(Exception):
    """Images that should have one size do not; the message names two of them."""


def decode_all(paths: Sequence[str], size: tuple[int, int]) -> Tensor:
    """Decode images of height and width `size`: uint8 (N, 3, H, W).

    Raises: UnequalSizesError at the first image of another size, UserError for an unreadable one.
    """
    out = np.empty((len(paths), 3, *size), dtype=np.uint8)

    def decode(part: range) -> None:
        for i in part:
            image = _decode(paths[i])  # (H, W, 3)
            if image.shape[:2] != size:
                raise UnequalSizesError(
                    f"{paths[i]} is {image.shape[1]}x{image.shape[0]} pixels, {paths[0]} is {size[1]}x{size[0]}"
                )
            out[i] = image.transpose(2, 0, 1)

    # The interpreter's lock makes two threads slower than one where an image takes 50 microseconds.
    threads = 1 if size[0] * size[1] < 96 * 96 else os.cpu_count()
    with ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(decode, range(i, min(i + 256, len(paths)))) for i in range(0, len(paths), 256)]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return torch.from_numpy(out)


def _decode(path: str) -> np.ndarray:
    """One image as uint8 (H, W, 3)."""
    if path.lower().endswith((".jpg", ".jpeg")):
        try:
            # The file read at once and the format named: a fifth less time on small files.
            with Image.open(io.BytesIO(Path(path).read_bytes()), formats=("JPEG",)) as image:
                if image.mode == "RGB":
                    return np.asarray(image)
        except (OSError, SyntaxError, ValueError):
            pass  # damaged, or no JPEG in spite of its name: the general way reads it or says what is wrong
    return np.asarray(open_image(path))
