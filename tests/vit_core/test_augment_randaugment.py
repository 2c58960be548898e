"""Every RandAugment and colour operation against torchvision's, image by image."""

import math
from collections.abc import Callable

import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode

from vit_core.data import colour, randaugment
from vit_core.data.randaugment import NAMES, SIXTEEN, Choices

SIZE, MAGNITUDE = 32, 0.7
BILINEAR = InterpolationMode.BILINEAR


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _images(count: int) -> Tensor:
    """Values k/255, darker and of less contrast than random ones, so that autocontrast has work to do."""
    images = torch.randint(20, 200, (count, 3, SIZE, SIZE), generator=_generator()) / 255
    images[0] = 0.5  # no contrast at all
    return images


def _uint8(op: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    return op((image * 255).round().to(torch.uint8)).float() / 255


def _affine(image: Tensor, **moved: object) -> Tensor:
    arguments = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]} | moved
    return tvf.affine(image, interpolation=BILINEAR, **arguments)


def _shear(image: Tensor, level: float, axis: int) -> Tensor:
    degrees = math.degrees(math.atan(level))
    return _affine(image, shear=[degrees, 0.0] if axis == 0 else [0.0, degrees], center=[0, 0])


PIXELS = int(150 / 331 * SIZE * MAGNITUDE)
# As torchvision.transforms.RandAugment calls them: (image, sign) -> image
ORACLE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "AutoContrast": lambda x, s: tvf.autocontrast(x),
    "Equalize": lambda x, s: _uint8(tvf.equalize, x),
    "Invert": lambda x, s: tvf.invert(x),
    "Rotate": lambda x, s: tvf.rotate(x, 30 * MAGNITUDE * s, interpolation=BILINEAR),
    "Posterize": lambda x, s: _uint8(lambda u: tvf.posterize(u, 8 - round(4 * MAGNITUDE)), x),
    "Solarize": lambda x, s: tvf.solarize(x, 1 - MAGNITUDE),
    "SolarizeAdd": lambda x, s: torch.where(x < 128 / 255, (x + 110 / 255 * MAGNITUDE).clamp(max=1), x),
    "Color": lambda x, s: tvf.adjust_saturation(x, 1 + 0.9 * MAGNITUDE * s),
    "Contrast": lambda x, s: tvf.adjust_contrast(x, 1 + 0.9 * MAGNITUDE * s),
    "Brightness": lambda x, s: tvf.adjust_brightness(x, 1 + 0.9 * MAGNITUDE * s),
    "Sharpness": lambda x, s: tvf.adjust_sharpness(x, 1 + 0.9 * MAGNITUDE * s),
    "ShearX": lambda x, s: _shear(x, 0.3 * MAGNITUDE * s, 0),
    "ShearY": lambda x, s: _shear(x, 0.3 * MAGNITUDE * s, 1),
    "TranslateX": lambda x, s: _affine(x, translate=[int(PIXELS * s), 0]),
    "TranslateY": lambda x, s: _affine(x, translate=[0, int(PIXELS * s)]),
    "Identity": lambda x, s: x,
}


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"Cutout"}))
def test_operation_equals_torchvision(name: str) -> None:
    images = _images(6)
    sign = torch.tensor([[1.0], [-1.0]] * 3)
    choices = Choices(torch.full((6, 1), NAMES.index(name)), sign, torch.zeros(6, 1, 2))
    ours = randaugment.apply(images, choices, MAGNITUDE)
    theirs = torch.stack([ORACLE[name](x, s.item()) for x, s in zip(images, sign[:, 0], strict=True)])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


# The rule "fixed" at a magnitude of 0.3, on PIL images: strengths of the loader of 4adex/clear-vit, commit 20e892b.
FIXED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "AutoContrast": ImageOps.autocontrast,
    "Equalize": ImageOps.equalize,
    "Invert": ImageOps.invert,
    "Rotate": lambda x: tvf.rotate(x, 9),
    "Posterize": lambda x: ImageOps.posterize(x, 5),
    "Solarize": lambda x: ImageOps.solarize(x, 178),
    "SolarizeAdd": lambda x: ImageOps.solarize(ImageEnhance.Brightness(x).enhance(1.3), 178),
    "Color": lambda x: ImageEnhance.Color(x).enhance(1.3),
    "Contrast": lambda x: ImageEnhance.Contrast(x).enhance(1.3),
    "Brightness": lambda x: ImageEnhance.Brightness(x).enhance(1.3),
    "Sharpness": lambda x: ImageEnhance.Sharpness(x).enhance(1.3),
    "ShearX": lambda x: tvf.affine(x, 0, [0, 0], 1, [0.3, 0]),
    "ShearY": lambda x: tvf.affine(x, 0, [0, 0], 1, [0, 0.3]),
    "TranslateX": lambda x: tvf.affine(x, 0, [25, 0], 1, [0, 0]),
    "TranslateY": lambda x: tvf.affine(x, 0, [0, 25], 1, [0, 0]),
    "Identity": lambda x: x,
}


@pytest.mark.parametrize("name", FIXED)
def test_operation_of_the_fixed_rule_equals_pils(name: str) -> None:
    smooth = tvf.resize(torch.rand(2, 3, 16, 16, generator=_generator()), [256, 256], antialias=True)
    images = (smooth * 255).round() / 255
    choices = randaugment.draw(2, 1, (name,), _generator(), "fixed")
    choices.place.zero_()  # Invert does
    ours = randaugment.apply(images, choices, 0.3, "fixed") * 255
    theirs = torch.stack([tvf.pil_to_tensor(FIXED[name](tvf.to_pil_image(x))).float() for x in images])
    off = (ours - theirs).abs()
    # PIL computes with 8 bits: a value beside Solarize's threshold may lie on its other side. Nearest pixels may tie.
    assert off.quantile(0.5) <= 1
    assert (off > 2).float().mean() < 0.02
    choices.place.fill_(0.9)
    again = randaugment.apply(images, choices, 0.3, "fixed") * 255
    assert torch.equal(again, images * 255 if name == "Invert" else ours), "Invert does nothing in half of its draws"


def test_the_fixed_rule_draws_no_direction_and_the_same_operations() -> None:
    drawn, fixed = (randaugment.draw(50, 3, SIXTEEN, _generator(), rule) for rule in randaugment.RULES)
    assert torch.equal(drawn.ops, fixed.ops)
    assert (fixed.sign == 1).all()


def test_cutout_is_a_grey_square_cut_at_the_border() -> None:
    place = torch.tensor([[[0.5, 0.5]], [[0.0, 1.0]]])
    choices = Choices(torch.full((2, 1), NAMES.index("Cutout")), torch.ones(2, 1), place)
    before = torch.zeros(2, 3, 224, 224)
    after = randaugment.apply(before, choices, 0.3)
    assert (after[0] > 0).sum() == 3 * 24 * 24  # 80 · 0.3 pixels a side
    assert (after[1, :, :12, 212:] == 128 / 255).all()
    assert (after[1] > 0).sum() == 3 * 12 * 12


def test_operations_apply_in_each_images_own_order() -> None:
    images = _images(2)
    ops = torch.tensor([[NAMES.index("Solarize"), NAMES.index("Brightness")]] * 2)
    ops[1] = ops[1].flip(0)
    ours = randaugment.apply(images, Choices(ops, torch.ones(2, 2), torch.zeros(2, 2, 2)), MAGNITUDE)
    first = ORACLE["Brightness"](ORACLE["Solarize"](images[0], 1), 1)
    second = ORACLE["Solarize"](ORACLE["Brightness"](images[1], 1), 1)
    torch.testing.assert_close(ours, torch.stack([first, second]), rtol=0, atol=1e-5)


def test_draws_are_uniform_over_the_operations_that_may_be_drawn() -> None:
    assert len(SIXTEEN) == 16
    drawn = randaugment.draw(4000, 3, SIXTEEN, _generator())
    counts = drawn.ops.flatten().bincount(minlength=16)
    assert len(counts) == 16
    assert counts.min() > 0.85 * 750
    assert counts.max() < 1.15 * 750
    assert drawn.sign.mean().abs() < 0.03
    few = randaugment.draw(50, 2, ("Invert", "Rotate"), _generator())
    assert {NAMES[i] for i in few.ops.flatten().tolist()} == {"Invert", "Rotate"}


def test_hue_of_grey_and_of_a_full_turn() -> None:
    images = _images(3)
    torch.testing.assert_close(colour.adjust_hue(images, torch.ones(3)), images, rtol=0, atol=1e-5)
    grey = images.mean(1, keepdim=True).expand(3, 3, SIZE, SIZE)
    assert torch.equal(colour.adjust_hue(grey, torch.full((3,), 0.3)), grey)


def test_sharpness_of_a_tiny_image_leaves_it() -> None:
    tiny = torch.rand(2, 3, 2, 2, generator=_generator())
    assert torch.equal(colour.adjust_sharpness(tiny, torch.zeros(2)), tiny)
