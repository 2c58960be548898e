"""A folder of small random images in two classes, for trainings that are to be short."""

from pathlib import Path

import numpy as np
from PIL import Image


def small_images(folder: Path, *, train: int, val: int, side: int = 32) -> Path:
    """train/ and val/ with so many PNGs of side × side pixels, half of them brighter. Returns `folder`."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            place = folder / split / ("dark", "light")[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 156, (side, side, 3), dtype=np.uint8) + np.uint8(100 * (i % 2))
            Image.fromarray(pixels).save(place / f"{i:04d}.png")
    return folder
