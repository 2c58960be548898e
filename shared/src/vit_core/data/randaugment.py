"""RandAugment (Cubuk et al., 2020, https://arxiv.org/abs/1909.13719) for one uint8 image (3, H, W).

Magnitudes are fractions in [0, 1] of each operation's range. The sixteen operations are those of the paper's
TensorFlow code. The ranges are those of `torchvision.transforms.RandAugment`; for operations that it lacks, those
of the TensorFlow code. Geometric operations use bilinear interpolation and fill with black.

The alternative rule "fixed" draws no directions, has other ranges (shears up to one degree, translations up to a
third of the image, ...), applies Invert with probability 0.5, and uses nearest-neighbor interpolation.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torchvision.transforms.v2.functional as tvf
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode

SIXTEEN = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color"),
    *("Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout"),
)
NAMES = (*SIXTEEN, "Identity")
RULES = ("torchvision", "fixed")
_GRAY = 128


class RandAugment(nn.Module):
    """Apply `num_ops` operations drawn from `names` with replacement, each in a random direction if it has one."""

    def __init__(
        self, num_ops: int, magnitude: float, names: Sequence[str] = SIXTEEN, rule: str = "torchvision"
    ) -> None:
        super().__init__()
        self.num_ops, self.magnitude, self.names, self.rule = num_ops, magnitude, tuple(names), rule

    def forward(self, image: Tensor) -> Tensor:
        for _ in range(self.num_ops):
            name = self.names[int(torch.randint(len(self.names), ()))]
            sign = -1 if self.rule == "torchvision" and torch.rand(()) < 0.5 else 1
            image = operation(image, name, self.magnitude, sign, self.rule)
        return image


def operation(image: Tensor, name: str, magnitude: float, sign: int = 1, rule: str = "torchvision") -> Tensor:
    """Apply one of NAMES in direction `sign` (−1 or 1). uint8 (3, H, W) -> uint8 (3, H, W)."""
    table = _FIXED if rule == "fixed" else _TORCHVISION
    return table[name](image, magnitude, sign)


def _affine(
    image: Tensor, translate: tuple[int, int] = (0, 0), shear: tuple[float, float] = (0.0, 0.0), *, fixed: bool = False
) -> Tensor:
    """Shear (in degrees) about the top left corner, bilinear; if `fixed`, about the center, nearest-neighbor."""
    moved: Tensor = tvf.affine(
        image,
        0.0,
        list(translate),
        1.0,
        list(shear),
        InterpolationMode.NEAREST if fixed else InterpolationMode.BILINEAR,
        center=None if fixed else [0, 0],
    )
    return moved


def _shear(level: float) -> float:
    return math.degrees(math.atan(0.3 * level))


def _shift(image: Tensor, level: float) -> int:
    return int(150 / 331 * image.shape[2] * level)


def _solarize_add(image: Tensor, magnitude: float) -> Tensor:
    return torch.where(image < 128, (image.int() + int(110 * magnitude)).clamp(max=255).to(torch.uint8), image)


def _cutout(image: Tensor, magnitude: float) -> Tensor:
    """Gray square with a side of up to 80/224 of the image's, centered anywhere, clipped at the border."""
    H, W = image.shape[1:]
    half, (y, x) = 40 / 224 * W * magnitude, torch.rand(2).tolist()
    rows = (torch.arange(H) + 0.5 - y * H).abs() < half
    columns = (torch.arange(W) + 0.5 - x * W).abs() < half
    return image.masked_fill(rows[:, None] & columns, _GRAY)


_TORCHVISION: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "Identity": lambda x, m, s: x,
    "AutoContrast": lambda x, m, s: tvf.autocontrast(x),
    "Equalize": lambda x, m, s: tvf.equalize(x),
    "Invert": lambda x, m, s: tvf.invert(x),
    "Rotate": lambda x, m, s: tvf.rotate(x, 30 * m * s, InterpolationMode.BILINEAR),
    "Posterize": lambda x, m, s: tvf.posterize(x, 8 - round(4 * m)),
    "Solarize": lambda x, m, s: tvf.solarize(x, 255 * (1 - m)),
    "SolarizeAdd": lambda x, m, s: _solarize_add(x, m),
    "Color": lambda x, m, s: tvf.adjust_saturation(x, 1 + 0.9 * m * s),
    "Contrast": lambda x, m, s: tvf.adjust_contrast(x, 1 + 0.9 * m * s),
    "Brightness": lambda x, m, s: tvf.adjust_brightness(x, 1 + 0.9 * m * s),
    "Sharpness": lambda x, m, s: tvf.adjust_sharpness(x, 1 + 0.9 * m * s),
    "ShearX": lambda x, m, s: _affine(x, shear=(_shear(m * s), 0.0)),
    "ShearY": lambda x, m, s: _affine(x, shear=(0.0, _shear(m * s))),
    "TranslateX": lambda x, m, s: _affine(x, (_shift(x, m * s), 0)),
    "TranslateY": lambda x, m, s: _affine(x, (0, _shift(x, m * s))),
    "Cutout": lambda x, m, s: _cutout(x, m),
}

_FIXED = _TORCHVISION | {
    "Invert": lambda x, m, s: tvf.invert(x) if torch.rand(()) < 0.5 else x,
    "Rotate": lambda x, m, s: tvf.rotate(x, 30 * m),
    "Posterize": lambda x, m, s: tvf.posterize(x, int(8 * (1 - m))),
    "Solarize": lambda x, m, s: tvf.solarize(x, int(255 * (1 - m))),
    "SolarizeAdd": lambda x, m, s: tvf.solarize(tvf.adjust_brightness(x, 1 + m), int(255 * (1 - m))),
    "Color": lambda x, m, s: tvf.adjust_saturation(x, 1 + m),
    "Contrast": lambda x, m, s: tvf.adjust_contrast(x, 1 + m),
    "Brightness": lambda x, m, s: tvf.adjust_brightness(x, 1 + m),
    "Sharpness": lambda x, m, s: tvf.adjust_sharpness(x, 1 + m),
    "ShearX": lambda x, m, s: _affine(x, shear=(m, 0.0), fixed=True),
    "ShearY": lambda x, m, s: _affine(x, shear=(0.0, m), fixed=True),
    "TranslateX": lambda x, m, s: _affine(x, (int(m * x.shape[2] / 3), 0), fixed=True),
    "TranslateY": lambda x, m, s: _affine(x, (0, int(m * x.shape[1] / 3)), fixed=True),
}
