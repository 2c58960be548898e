"""Augmentation with torchvision's transforms and independent random draws per image.

Crop, horizontal flip, rotation, color jitter and RandAugment work on uint8, one image at a time with its own seed
(`Augment.image`), in worker processes if there are any. If only crop and flip are enabled and the images are in
memory, a whole batch is transformed on its device (`Augment.batch`). Normalization and random erasing, the last steps,
always work on a whole batch on its device (`finish`).

Mixup, CutMix and label smoothing also change the labels and are not done here: see `timm.data.Mixup`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torchvision.transforms.v2.functional as tvf
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from vit_core.data import randaugment
from vit_core.data.seeding import seeded
from vit_core.flags import flag

CROPS = ("none", "random", "pad", "resized")
ERASE_FILLS = ("mean", "random")
_ERASE_LEAST = 0.02  # minimum fraction of the image's area, and
_ERASE_ASPECT = 10 / 3  # aspect ratio 1/a … a, as in torchvision's RandomErasing
_ERASE_ATTEMPTS = 10

Rand = Callable[..., Tensor]  # rand(*shape) -> (B, *shape) on the batch's device, uniform in [0, 1)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Training augmentation. The defaults, common to all papers, are resize and horizontal flip."""

    crop: str = flag(
        "none",
        "none: resize only; random: resize to img_size/crop_ratio, then random crop; pad: pad with black, then random "
        "crop; resized: RandomResizedCrop",
        choices=CROPS,
    )
    crop_ratio: float = flag(0.875, "--crop random: crop side / resized side (224 / 256)")
    crop_pad: float = flag(0.125, "--crop pad: padding on each side as a fraction of the image side (4 / 32)")
    crop_scale_min: float = flag(0.08, "--crop resized: minimum area of the crop as a fraction of the image")
    crop_scale_max: float = flag(1.0, "--crop resized: maximum area of the crop as a fraction of the image")
    crop_aspect: float = flag(4 / 3, "--crop resized: maximum aspect ratio a; drawn between 1/a and a")
    hflip: float = flag(0.5, "probability of a horizontal flip")
    rotation: float = flag(0.0, "maximum rotation in degrees, in either direction")
    color_jitter: float = flag(0.0, "strength of brightness, contrast and saturation jitter")
    hue_jitter: float = flag(0.0, "maximum hue shift, as a fraction of the color circle, at most 0.5")
    randaugment_ops: int = flag(0, "RandAugment: number of operations per image; 0 disables it")
    randaugment_magnitude: float = flag(0.3, "RandAugment: magnitude as a fraction of each operation's range")
    randaugment_choice: str = flag("", "RandAugment: comma-separated operations to draw from; empty: all sixteen")
    randaugment_rule: str = flag(
        "torchvision",
        "RandAugment: torchvision: its ranges, random directions; fixed: fixed directions, small shears and shifts",
        choices=randaugment.RULES,
    )
    erasing: float = flag(0.0, "probability of random erasing")
    erasing_area: float = flag(1 / 3, "--erasing: maximum erased area as a fraction of the image")
    erasing_fill: str = flag(
        "mean",
        "--erasing: mean: the dataset's mean color, log-uniform aspect ratio; random: each channel uniform in [0, 1) "
        "after normalization, uniform aspect ratio",
        choices=ERASE_FILLS,
    )

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise ValueError(f"crop must be one of {', '.join(CROPS)}, got {self.crop!r}")
        if self.randaugment_rule not in randaugment.RULES:
            raise ValueError(
                f"randaugment_rule must be {' or '.join(randaugment.RULES)}, got {self.randaugment_rule!r}"
            )
        if self.erasing_fill not in ERASE_FILLS:
            raise ValueError(f"erasing_fill must be {' or '.join(ERASE_FILLS)}, got {self.erasing_fill!r}")
        for name in ("hflip", "erasing", "crop_pad", "randaugment_magnitude"):
            _check(name, getattr(self, name), 0, 1)
        _check("erasing_area", self.erasing_area, _ERASE_LEAST, 1)
        _check("crop_ratio", self.crop_ratio, 0.1, 1)
        _check("crop_scale_max", self.crop_scale_max, 0, 1)
        _check("crop_scale_min", self.crop_scale_min, 0, self.crop_scale_max)
        _check("crop_aspect", self.crop_aspect, 1, 100)
        _check("rotation", self.rotation, 0, 180)
        _check("color_jitter", self.color_jitter, 0, 10)
        _check("hue_jitter", self.hue_jitter, 0, 0.5)
        _check("randaugment_ops", self.randaugment_ops, 0, 20)
        if self.crop_scale_min == 0:
            raise ValueError("crop_scale_min must be greater than 0")
        unknown = set(self.randaugment_names) - set(randaugment.NAMES)
        if unknown:
            raise ValueError(
                f"randaugment_choice: unknown {', '.join(sorted(unknown))}; choose from {', '.join(randaugment.NAMES)}"
            )

    @property
    def eval_crop_pct(self) -> float:
        """The matching crop_pct for evaluation: a center crop if training uses --crop random, else 1."""
        return self.crop_ratio if self.crop == "random" else 1.0

    @property
    def randaugment_names(self) -> tuple[str, ...]:
        """The operations that RandAugment draws from."""
        names = tuple(n.strip() for n in self.randaugment_choice.split(",") if n.strip())
        return names or randaugment.SIXTEEN


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also rejects NaN
        raise ValueError(f"{name} must be between {low:g} and {high:g}, got {value}")


class _Transform:
    """Common base of the training and evaluation transforms: image size and normalization."""

    def __init__(self, img_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        if img_size < 1:
            raise ValueError(f"img_size must be at least 1, got {img_size}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean and std must have three values each, and std must be positive, got {mean}, {std}")
        self.img_size, self.mean, self.std = img_size, tuple(mean), tuple(std)
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) to float32: (pixels / 255 − mean) / std."""
        if pixels.device not in self._on_device:
            mean, std = torch.tensor([self.mean, self.std], dtype=torch.float64).view(2, 3, 1, 1)
            scale, shift = (1 / (255 * std)).float(), (-mean / std).float()
            self._on_device[pixels.device] = scale.to(pixels.device), shift.to(pixels.device)
        scale, shift = self._on_device[pixels.device]
        return pixels.to(torch.float32, memory_format=torch.contiguous_format).mul_(scale).add_(shift)


class Augment(_Transform):
    """The training transform for an `AugmentConfig`."""

    def __init__(self, config: AugmentConfig, img_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(img_size, mean, std)
        self.config = c = config
        steps: list[nn.Module] = [*_crop(c, img_size), v2.RandomHorizontalFlip(c.hflip), v2.PILToTensor()]
        if c.rotation:
            steps.append(v2.RandomRotation(c.rotation, InterpolationMode.BILINEAR))
        if c.color_jitter or c.hue_jitter:
            steps.append(v2.ColorJitter(c.color_jitter, c.color_jitter, c.color_jitter, c.hue_jitter))
        if c.randaugment_ops:
            steps.append(
                randaugment.RandAugment(
                    c.randaugment_ops, c.randaugment_magnitude, c.randaugment_names, c.randaugment_rule
                )
            )
        self._steps = v2.Compose(steps)

    @property
    def takes_batches(self) -> bool:
        """Whether `batch` can be used: only crop, flip and erasing are enabled."""
        c = self.config
        return c.crop != "resized" and not (c.rotation or c.color_jitter or c.hue_jitter or c.randaugment_ops)

    def image(self, image: Image.Image | Tensor, seed: int) -> Tensor:
        """One RGB image, PIL or uint8 (3, H, W), to uint8 (3, S, S), with draws that depend only on `seed`."""
        with seeded(seed), torch.autocast("cpu", enabled=False):  # the caller's autocast would rotate in 16 bits
            pixels: Tensor = self._steps(image)
        return pixels

    def batch(self, images: Tensor, rand: Rand) -> Tensor:
        """uint8 (B, 3, H, W) to uint8 (B, 3, S, S); requires `takes_batches`."""
        c, (H, W) = self.config, images.shape[2:]
        if c.crop == "random":
            large = tvf.resize(images, [round(self.img_size / c.crop_ratio)])
            images = _windows(large, self.img_size, self.img_size, rand(2))
        elif c.crop == "pad":
            border = [round(c.crop_pad * W), round(c.crop_pad * H)]
            images = _windows(tvf.pad(images, border), H, W, rand(2))
        images = tvf.resize(images, [self.img_size, self.img_size])
        if c.hflip:
            images = torch.where(rand(1, 1, 1) < c.hflip, images.flip(3), images)
        return images

    def finish(self, pixels: Tensor, rand: Rand) -> Tensor:
        """uint8 (B, 3, S, S) to float32: normalization, then random erasing."""
        x = self.normalize(pixels)
        return self._erase(x, rand) if self.config.erasing else x

    def _erase(self, x: Tensor, rand: Rand) -> Tensor:
        """torchvision's RandomErasing for a whole batch; see `erasing_fill` for how "random" differs."""
        c, S = self.config, self.img_size
        area, aspect, top, left = rand(4, _ERASE_ATTEMPTS).unbind(1)
        area = S * S * (_ERASE_LEAST + (c.erasing_area - _ERASE_LEAST) * area)
        if c.erasing_fill == "random":
            aspect = 1 / _ERASE_ASPECT + (_ERASE_ASPECT - 1 / _ERASE_ASPECT) * aspect
        else:
            aspect = (math.log(_ERASE_ASPECT) * (2 * aspect - 1)).exp()
        height, width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        fits = (height < S) & (width < S)
        boxes = torch.stack([(top * (S - height + 1)).floor(), (left * (S - width + 1)).floor(), height, width], 2)
        first = fits.int().argmax(1)  # the first attempt that fits
        top, left, height, width = boxes[torch.arange(len(x), device=x.device), first].unbind(1)
        erased = (rand() < c.erasing) & fits.any(1)
        place = torch.arange(S, device=x.device)
        rows = (place >= top[:, None]) & (place < (top + height)[:, None])  # (B, S)
        columns = (place >= left[:, None]) & (place < (left + width)[:, None])
        inside = (rows[:, :, None] & columns[:, None, :] & erased[:, None, None])[:, None]
        return torch.where(inside, rand(3, 1, 1) if c.erasing_fill == "random" else 0.0, x)


class EvalTransform(_Transform):
    """Evaluation transform: resize to S×S, or with crop_pct < 1 resize and center crop.

    crop_pct 1 does not keep the aspect ratio (torchvision's `Resize((S, S))`); below 1, the shorter side is resized
    to S / crop_pct and the center S×S is cropped.
    """

    takes_batches = True

    def __init__(self, img_size: int, mean: Sequence[float], std: Sequence[float], crop_pct: float = 1.0) -> None:
        super().__init__(img_size, mean, std)
        _check("crop_pct", crop_pct, 0.1, 1)
        self.crop_pct = crop_pct
        resize = v2.Resize((img_size, img_size)) if crop_pct == 1 else v2.Resize(round(img_size / crop_pct))
        self._steps = v2.Compose([resize, v2.CenterCrop(img_size), v2.PILToTensor()])

    def image(self, image: Image.Image | Tensor, seed: int = 0) -> Tensor:
        """One RGB image, PIL or uint8 (3, H, W), to uint8 (3, S, S); deterministic."""
        pixels: Tensor = self._steps(image)
        return pixels

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to normalized float32 (B, 3, S, S) on the same device."""
        return self.normalize(self._steps(images))


def _crop(c: AugmentConfig, size: int) -> list[nn.Module]:
    if c.crop == "random":
        return [v2.Resize(round(size / c.crop_ratio)), v2.RandomCrop(size)]
    if c.crop == "resized":
        scale = (c.crop_scale_min, c.crop_scale_max)
        return [v2.RandomResizedCrop(size, scale, (1 / c.crop_aspect, c.crop_aspect))]
    resize = v2.Resize((size, size))
    return [_PaddedCrop(c.crop_pad), resize] if c.crop == "pad" else [resize]


class _PaddedCrop(nn.Module):
    """Pad with black by a fraction of the image's sides, then randomly crop to the original size."""

    def __init__(self, pad: float) -> None:
        super().__init__()
        self.pad = pad

    def forward(self, image: Image.Image | Tensor) -> Image.Image | Tensor:
        H, W = tvf.get_size(image)
        top, left = (int(torch.randint(-most, most + 1, ())) for most in (round(self.pad * H), round(self.pad * W)))
        cut: Image.Image | Tensor = tvf.crop(image, top, left, H, W)
        return cut


def _windows(images: Tensor, height: int, width: int, places: Tensor) -> Tensor:
    """Crop images (B, C, H, W) to (B, C, height, width) at relative positions `places` (B, 2) in [0, 1)."""
    every = images.unfold(2, height, 1).unfold(3, width, 1)  # a view: (B, C, tops, lefts, height, width)
    top, left = ((places[:, i] * every.shape[2 + i]).long() for i in (0, 1))
    return every[torch.arange(len(images), device=images.device), :, top, left]
