"""Augmentation of a batch on its device: every image draws its own parameters.

`Augment.draw` draws the parameters of a whole global batch on the CPU, a rank takes its slice of them, and
`Augment.apply` turns uint8 images (B, 3, H, W) into normalised float32 (B, 3, S, S). Order: crop, flip and
resize; rotation; colour jitter; RandAugment; normalisation; random erasing. Without the three in the middle,
the normalisation is folded into the resize, so the large result is written once.

Mixup, cutmix and label smoothing act on labels too and are not here: see `timm.data.Mixup`.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vit_core.data import colour, randaugment
from vit_core.data.crops import CROPS, CropRule, Crops, centre_crops
from vit_core.data.parallel import for_each_part
from vit_core.data.resample import resample
from vit_core.flags import flag

_ERASE_LEAST = 0.02  # share of the image, and
_ERASE_ASPECT = 10 / 3  # aspect 1/a … a, as torchvision's RandomErasing has them
_ERASE_ATTEMPTS = 10
ERASE_FILLS = ("mean", "random")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Training augmentation. The defaults are what all papers share: resize and horizontal flip."""

    crop: str = flag(
        "none",
        "none: resize only; random: resize to img_size/crop_ratio, then crop; pad: black border, then crop; "
        "resized: RandomResizedCrop",
        choices=CROPS,
    )
    crop_ratio: float = flag(0.875, "--crop random: share of the resized side that is kept (224 of 256)")
    crop_pad: float = flag(0.125, "--crop pad: border on each side as a share of the image (4 of 32 pixels)")
    crop_scale_min: float = flag(0.08, "--crop resized: smallest share of the image's area")
    crop_scale_max: float = flag(1.0, "--crop resized: largest share of the image's area")
    crop_aspect: float = flag(4 / 3, "--crop resized: width to height between 1/a and a")
    hflip: float = flag(0.5, "chance of a mirrored image")
    rotation: float = flag(0.0, "largest rotation in degrees, either way")
    color_jitter: float = flag(0.0, "strength of brightness, contrast and saturation jitter")
    hue_jitter: float = flag(0.0, "largest turn of the hue, as a share of the circle, at most 0.5")
    randaugment_ops: int = flag(0, "RandAugment: operations on each image, 0 for none")
    randaugment_magnitude: float = flag(0.3, "RandAugment: strength as a share of each operation's range")
    randaugment_choice: str = flag("", "RandAugment: comma-separated operations to draw from, empty for all sixteen")
    randaugment_rule: str = flag(
        "torchvision",
        "RandAugment: torchvision: its ranges, directions drawn; fixed: no directions, small shears and shifts",
        choices=randaugment.RULES,
    )
    erasing: float = flag(0.0, "chance of erasing a random rectangle")
    erasing_area: float = flag(1 / 3, "--erasing: largest share of the image that is erased")
    erasing_fill: str = flag(
        "mean",
        "--erasing: mean: the data set's mean color, aspect drawn by its logarithm; random: each channel a value drawn "
        "from 0 to 1, after normalization, aspect drawn evenly",
        choices=ERASE_FILLS,
    )

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise ValueError(f"crop must be one of {', '.join(CROPS)}, not {self.crop!r}")
        if self.randaugment_rule not in randaugment.RULES:
            raise ValueError(
                f"randaugment_rule must be {' or '.join(randaugment.RULES)}, not {self.randaugment_rule!r}"
            )
        if self.erasing_fill not in ERASE_FILLS:
            raise ValueError(f"erasing_fill must be {' or '.join(ERASE_FILLS)}, not {self.erasing_fill!r}")
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
            raise ValueError("crop_scale_min must be over 0")
        unknown = set(self.randaugment_names) - set(randaugment.NAMES)
        if unknown:
            raise ValueError(
                f"randaugment_choice: unknown {', '.join(sorted(unknown))}; choose from {', '.join(randaugment.NAMES)}"
            )

    @property
    def eval_crop_pct(self) -> float:
        """The crop of evaluation that goes with this one: the centre where training crops a resized image."""
        return self.crop_ratio if self.crop == "random" else 1.0

    @property
    def randaugment_names(self) -> tuple[str, ...]:
        """The operations that RandAugment draws from."""
        names = tuple(n.strip() for n in self.randaugment_choice.split(",") if n.strip())
        return names or randaugment.SIXTEEN

    @property
    def crop_rule(self) -> CropRule:
        """The crop settings alone."""
        scale = (self.crop_scale_min, self.crop_scale_max)
        return CropRule(self.crop, self.crop_ratio, self.crop_pad, scale, self.crop_aspect)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses NaN
        raise ValueError(f"{name} must be between {low:g} and {high:g}, not {value}")


@dataclass(frozen=True, kw_only=True)
class AugmentParams:
    """All that was drawn for B images, on the CPU; `params[a:b]` are those of images a … b − 1."""

    crops: Crops
    flip: Tensor | None = None  # (B,) bool
    degrees: Tensor | None = None  # (B,)
    jitter: tuple[Tensor, Tensor] | None = None  # factors and order, both (B, 4)
    choices: randaugment.Choices | None = None
    erase: Tensor | None = None  # (B, 4) top, left, height, width in output pixels; height 0: not erased
    fill: Tensor | None = None  # (B, 3) normalised values of what is erased; None: zero, the mean

    def __len__(self) -> int:
        return len(self.crops.boxes)

    def __getitem__(self, part: slice) -> "AugmentParams":
        return AugmentParams(
            crops=Crops(self.crops.boxes[part], self.crops.grid, self.crops.offsets[part]),
            flip=None if self.flip is None else self.flip[part],
            degrees=None if self.degrees is None else self.degrees[part],
            jitter=None if self.jitter is None else (self.jitter[0][part], self.jitter[1][part]),
            choices=None if self.choices is None else randaugment.Choices(*(c[part] for c in self.choices)),
            erase=None if self.erase is None else self.erase[part],
            fill=None if self.fill is None else self.fill[part],
        )


class _Normalise:
    """Mean and standard deviation as scale and shift of uint8 values, kept on each device in use."""

    def __init__(self, img_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        if img_size < 1:
            raise ValueError(f"img_size must be at least 1, not {img_size}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean and std need three values each, std over 0, not {mean} and {std}")
        self.img_size, self.mean, self.std = img_size, tuple(mean), tuple(std)
        self._on_device: dict[torch.device, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def _constants(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """On `device`, each (3,): 1/(255·std), −mean/std, 1/255 and 0."""
        if device not in self._on_device:
            mean, std = torch.tensor([self.mean, self.std], dtype=torch.float64)
            values = (1 / (255 * std), -mean / std, torch.full((3,), 1 / 255), torch.zeros(3))
            self._on_device[device] = tuple(v.to(torch.float32).to(device) for v in values)  # type: ignore[assignment]
        return self._on_device[device]


class Augment(_Normalise):
    """Training transform: `config` applied with each image's own parameters."""

    def __init__(self, config: AugmentConfig, img_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(img_size, mean, std)
        self.config = config

    def without_crop(self) -> "Augment":
        """The same for images that were already cropped to S×S, by the workers of a disk source."""
        return Augment(dataclasses.replace(self.config, crop="none"), self.img_size, self.mean, self.std)

    def draw_crop(self, source_size: tuple[int, int], generator: torch.Generator) -> Crops:
        """The crop of one image of height and width `source_size`."""
        return self.config.crop_rule.draw(1, source_size, self.img_size, generator)

    def draw(
        self, batch_size: int, generator: torch.Generator, source_size: tuple[int, int] | None = None
    ) -> AugmentParams:
        """Draw the parameters of `batch_size` images of height and width `source_size` (default: S×S)."""
        c, n, S = self.config, batch_size, self.img_size
        crops = c.crop_rule.draw(n, source_size or (S, S), S, generator)
        return AugmentParams(
            crops=crops,
            flip=torch.rand(n, generator=generator) < c.hflip if c.hflip else None,
            degrees=c.rotation * (2 * torch.rand(n, generator=generator) - 1) if c.rotation else None,
            jitter=colour.draw_jitter(n, c.color_jitter, c.hue_jitter, generator)
            if c.color_jitter or c.hue_jitter
            else None,
            choices=randaugment.draw(n, c.randaugment_ops, c.randaugment_names, generator, c.randaugment_rule)
            if c.randaugment_ops
            else None,
            erase=_draw_erase(n, S, c, generator) if c.erasing else None,
            fill=torch.rand(n, 3, generator=generator) if c.erasing and c.erasing_fill == "random" else None,
        )

    def apply(self, images: Tensor, params: AugmentParams, out: Tensor | None = None) -> Tensor:
        """uint8 (B, 3, H, W) to normalised float32 (B, 3, S, S) on the same device, in `out` if given.

        Raises: ValueError when `params` are not for B images.
        """
        if len(params) != len(images):
            raise ValueError(f"{len(params)} parameter sets for {len(images)} images")
        scale, shift, to_unit, zero = self._constants(images.device)
        crops = params.crops
        in_between = params.degrees is not None or params.jitter is not None or params.choices is not None
        x = resample(
            images,
            crops.boxes,
            self.img_size,
            grid=crops.grid,
            offsets=crops.offsets,
            flip=params.flip,
            scale=to_unit if in_between else scale,
            shift=zero if in_between else shift,
            out=out,
        )
        if in_between:

            def finish(part: slice) -> None:
                coloured = self._warp_and_colour(x[part], params[part])
                torch.addcmul(shift.view(3, 1, 1), coloured, (scale * 255).view(3, 1, 1), out=x[part])

            for_each_part(len(x), x.device, finish)
        if params.erase is not None:
            for i, (top, left, height, width) in enumerate(params.erase.tolist()):
                if height:
                    value = 0 if params.fill is None else params.fill[i].view(3, 1, 1).to(x.device)
                    x[i, :, top : top + height, left : left + width] = value
        return x

    def _warp_and_colour(self, x: Tensor, params: AugmentParams) -> Tensor:
        """(n, 3, S, S) in [0, 1] to the same, rotated, jittered and through RandAugment."""
        if params.degrees is not None:
            x = randaugment.warp(x, randaugment.rotation(params.degrees).to(x.device))
        if params.jitter is not None:
            x = colour.jitter(x, *params.jitter, self.config.color_jitter, self.config.hue_jitter)
        if params.choices is not None:
            x = randaugment.apply(x, params.choices, self.config.randaugment_magnitude, self.config.randaugment_rule)
        return x


def _draw_erase(count: int, size: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """(count, 4) int64: as torchvision's `RandomErasing` draws them, for all images at once."""
    erased = torch.rand(count, generator=generator) < config.erasing
    area, aspect, top, left = torch.rand(4, count, _ERASE_ATTEMPTS, generator=generator).unbind(0)
    area = size * size * (_ERASE_LEAST + (config.erasing_area - _ERASE_LEAST) * area)
    if config.erasing_fill == "random":
        aspect = torch.lerp(torch.tensor(1 / _ERASE_ASPECT), torch.tensor(_ERASE_ASPECT), aspect)
    else:
        aspect = (math.log(_ERASE_ASPECT) * (2 * aspect - 1)).exp()
    height, width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (height < size) & (width < size)
    boxes = torch.stack([(top * (size - height + 1)).floor(), (left * (size - width + 1)).floor(), height, width], 2)
    pick = (~fits).int().argsort(dim=1, stable=True)[:, 0]
    chosen = boxes[torch.arange(count), pick] * (fits.any(1) & erased).unsqueeze(1)
    return chosen.long()


class EvalTransform(_Normalise):
    """Evaluation transform: the whole image at S×S, or with crop_pct < 1 the centre after a resize.

    crop_pct 1 does not keep the aspect ratio (torchvision's `Resize((S, S))`); below 1, the shorter side is
    resized to S / crop_pct and the centre S×S is kept.
    """

    def __init__(self, img_size: int, mean: Sequence[float], std: Sequence[float], crop_pct: float = 1.0) -> None:
        super().__init__(img_size, mean, std)
        _check("crop_pct", crop_pct, 0.1, 1)
        self.crop_pct = crop_pct

    def without_crop(self) -> "EvalTransform":
        """The same for images that were already cropped to S×S, by the workers of a disk source."""
        return EvalTransform(self.img_size, self.mean, self.std)

    def draw_crop(self, source_size: tuple[int, int], generator: torch.Generator) -> Crops:
        """The window kept of one image of height and width `source_size`; nothing is drawn."""
        return centre_crops(1, source_size, self.img_size, self.crop_pct)

    def apply(self, images: Tensor, out: Tensor | None = None) -> Tensor:
        """uint8 (B, 3, H, W) to normalised float32 (B, 3, S, S) on the same device, in `out` if given."""
        B, _, H, W = images.shape
        scale, shift, _, _ = self._constants(images.device)
        boxes, grid, offsets = centre_crops(B, (H, W), self.img_size, self.crop_pct)
        return resample(images, boxes, self.img_size, grid=grid, offsets=offsets, scale=scale, shift=shift, out=out)

    __call__ = apply
