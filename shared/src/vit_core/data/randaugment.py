"""RandAugment (Cubuk et al., 2020, https://arxiv.org/abs/1909.13719) on a batch, image by image.

Magnitudes are a share in [0, 1] of each operation's range. The sixteen operations are those of the TensorFlow
code of the paper; the ranges are those of `torchvision.transforms.RandAugment`, and where that has no such
operation, of the TensorFlow code. Geometric operations interpolate bilinearly and fill with black.

A second rule, "fixed", draws no directions, has other ranges (shears of up to one degree, shifts of up to a third,
...), inverts every second time, and takes the nearest pixel.

Images are float32 (n, 3, S, S) in [0, 1].
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tvf
from torch import Tensor

from vit_core.data import colour

GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
SIXTEEN = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color"),
    *("Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout"),
)
NAMES = (*SIXTEEN, "Identity")
RULES = ("torchvision", "fixed")


class Choices(NamedTuple):
    """What RandAugment does to B images, on the CPU."""

    ops: Tensor  # (B, N) index into NAMES
    sign: Tensor  # (B, N) −1 or 1, for the operations with a direction
    place: Tensor  # (B, N, 2) centre of Cutout, as a share of the image: row, column


def draw(
    count: int, num_ops: int, names: Sequence[str], generator: torch.Generator, rule: str = "torchvision"
) -> Choices:
    """`num_ops` operations out of `names` for each of `count` images, drawn with replacement."""
    ids = torch.tensor([NAMES.index(n) for n in names])
    picked = (torch.rand(count, num_ops, generator=generator) * len(ids)).long()
    sign = torch.where(torch.rand(count, num_ops, generator=generator) < 0.5, -1.0, 1.0)
    if rule == "fixed":
        sign.fill_(1.0)
    return Choices(ids[picked], sign, torch.rand(count, num_ops, 2, generator=generator))


def apply(images: Tensor, choices: Choices, magnitude: float, rule: str = "torchvision") -> Tensor:
    """Apply each image's operations in order; returns new images (n, 3, S, S) in [0, 1]."""
    images = images.clone()
    device = images.device
    affine, mode, pixel_ops = (
        (fixed_inverse_affine, "nearest", _FIXED_OPS) if rule == "fixed" else (inverse_affine, "bilinear", _PIXEL_OPS)
    )
    for step in range(choices.ops.shape[1]):
        ops, sign, place = choices.ops[:, step], choices.sign[:, step], choices.place[:, step]
        geometric = torch.isin(ops, torch.tensor([NAMES.index(n) for n in GEOMETRIC])).nonzero().squeeze(1)
        if len(geometric):
            names = [NAMES[i] for i in ops[geometric].tolist()]
            theta = torch.stack(
                [
                    affine(n, s * magnitude, images.shape[3])
                    for n, s in zip(names, sign[geometric].tolist(), strict=True)
                ]
            )
            where = geometric.to(device)
            images[where] = warp(images[where], theta.to(device), mode)
        for name, op in pixel_ops.items():
            chosen = (ops == NAMES.index(name)).nonzero().squeeze(1)
            if len(chosen):
                where = chosen.to(device)
                images[where] = op(images[where], magnitude, sign[chosen].to(device), place[chosen].to(device))
    return images


def inverse_affine(name: str, signed_magnitude: float, size: int) -> Tensor:
    """(2, 3): output to input coordinates in [−1, 1], as `torch.nn.functional.affine_grid` takes them."""
    if name == "Rotate":
        return rotation(torch.tensor([30 * signed_magnitude]))[0]
    theta = torch.eye(2, 3)
    if name.startswith("Shear"):
        level = 0.3 * signed_magnitude
        # Sheared about the top left corner, which is at −1: the corner must stay where it is.
        row = 0 if name == "ShearX" else 1
        theta[row, 1 - row] = level
        theta[row, 2] = level
        return theta
    pixels = int(150 / 331 * size * signed_magnitude)
    theta[0 if name == "TranslateX" else 1, 2] = -2 * pixels / size
    return theta


def fixed_inverse_affine(name: str, magnitude: float, size: int) -> Tensor:
    """As `inverse_affine`, by the rule "fixed": sheared about the centre."""
    if name == "Rotate":
        return inverse_affine(name, magnitude, size)
    theta = torch.eye(2, 3)
    row = 0 if name.endswith("X") else 1
    if name.startswith("Shear"):
        theta[row, 1 - row] = math.tan(math.radians(magnitude))
    else:
        theta[row, 2] = -2 * int(magnitude * size / 3) / size
    return theta


def rotation(degrees: Tensor) -> Tensor:
    """(n,) angles, counter-clockwise, to (n, 2, 3) inverse matrices about the centre of square images."""
    cos, sin = (degrees * (math.pi / 180)).cos(), (degrees * (math.pi / 180)).sin()
    zero = torch.zeros_like(cos)
    return torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)


def warp(images: Tensor, theta: Tensor, mode: str = "bilinear") -> Tensor:
    """Move each image by its inverse affine matrix (n, 2, 3); black comes in from outside."""
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)


def _posterize(images: Tensor, bits: int) -> Tensor:
    step = 2 ** (8 - bits)
    return (images * 255).round().div(step, rounding_mode="floor") * (step / 255)


def _solarize(images: Tensor, threshold: float) -> Tensor:
    return torch.where(images >= threshold, 1 - images, images)


def _solarize_add(images: Tensor, magnitude: float) -> Tensor:
    return torch.where(images < 128 / 255, (images + 110 / 255 * magnitude).clamp(max=1), images)


def _equalize(images: Tensor) -> Tensor:
    return tvf.equalize((images * 255).round().to(torch.uint8)).float() / 255


def _cutout(images: Tensor, magnitude: float, place: Tensor) -> Tensor:
    """Grey square of up to 80/224 of the side, centred at `place`, cut at the border."""
    size = images.shape[3]
    half = 40 / 224 * size * magnitude
    pixel = torch.arange(size, device=images.device) + 0.5
    inside = ((pixel - place.unsqueeze(2) * size).abs() < half).unbind(1)  # rows (n, S), columns (n, S)
    hole = (inside[0].unsqueeze(2) & inside[1].unsqueeze(1)).unsqueeze(1)
    return images.masked_fill(hole, 128 / 255)


_PIXEL_OPS: dict[str, Callable[[Tensor, float, Tensor, Tensor], Tensor]] = {
    "AutoContrast": lambda x, m, sign, place: tvf.autocontrast(x),
    "Equalize": lambda x, m, sign, place: _equalize(x),
    "Invert": lambda x, m, sign, place: 1 - x,
    "Posterize": lambda x, m, sign, place: _posterize(x, 8 - round(4 * m)),
    "Solarize": lambda x, m, sign, place: _solarize(x, 1 - m),
    "SolarizeAdd": lambda x, m, sign, place: _solarize_add(x, m),
    "Color": lambda x, m, sign, place: colour.adjust_saturation(x, 1 + 0.9 * m * sign),
    "Contrast": lambda x, m, sign, place: colour.adjust_contrast(x, 1 + 0.9 * m * sign),
    "Brightness": lambda x, m, sign, place: colour.adjust_brightness(x, 1 + 0.9 * m * sign),
    "Sharpness": lambda x, m, sign, place: colour.adjust_sharpness(x, 1 + 0.9 * m * sign),
    "Cutout": lambda x, m, sign, place: _cutout(x, m, place),
}


def _fixed_threshold(magnitude: float) -> float:
    return (int(255 * (1 - magnitude)) - 0.5) / 255  # of values that are rounded to 8 bits


_FIXED_OPS = _PIXEL_OPS | {
    "Invert": lambda x, m, sign, place: torch.where(place[:, :1, None, None] < 0.5, 1 - x, x),  # or not
    "Posterize": lambda x, m, sign, place: _posterize(x, int(8 * (1 - m))),
    "Solarize": lambda x, m, sign, place: _solarize(x, _fixed_threshold(m)),
    "SolarizeAdd": lambda x, m, sign, place: _solarize(colour.adjust_brightness(x, 1 + m * sign), _fixed_threshold(m)),
    "Color": lambda x, m, sign, place: colour.adjust_saturation(x, 1 + m * sign),
    "Contrast": lambda x, m, sign, place: colour.adjust_contrast(x, 1 + m * sign),
    "Brightness": lambda x, m, sign, place: colour.adjust_brightness(x, 1 + m * sign),
    "Sharpness": lambda x, m, sign, place: colour.adjust_sharpness(x, 1 + m * sign),
}
