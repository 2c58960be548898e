"""Every RandAugment operation against torchvision's and PIL's."""

from collections.abc import Callable

import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import RandAugment as TorchvisionRandAugment
from torchvision.transforms.autoaugment import _apply_op

from vit_core.data.randaugment import NAMES, RULES, SIXTEEN, RandAugment, operation

SIZE, MAGNITUDE = 32, 0.7


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _image() -> Tensor:
    """Darker and of less contrast than random values, so that autocontrast has work to do."""
    return torch.randint(20, 200, (3, SIZE, SIZE), generator=_generator(), dtype=torch.uint8)


# The space of torchvision's RandAugment has 31 bins: at 21 of them the magnitude is 0.7.
SPACE = TorchvisionRandAugment()._augmentation_space(31, (SIZE, SIZE))
ORACLE = {name: (float(m[21]) if m.ndim else 0.0, signed) for name, (m, signed) in SPACE.items()}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", sorted(ORACLE))
def test_operation_is_torchvisions(name: str, sign: int) -> None:
    magnitude, signed = ORACLE[name]
    theirs = _apply_op(_image(), name, magnitude * (sign if signed else 1), InterpolationMode.BILINEAR, None)
    ours = operation(_image(), name, MAGNITUDE, sign)
    assert ours.dtype == torch.uint8
    assert (ours.int() - theirs.int()).abs().max() <= 1


def test_operations_that_torchvision_lacks() -> None:
    assert set(NAMES) - set(ORACLE) == {"Invert", "SolarizeAdd", "Cutout"}
    image = _image()
    assert torch.equal(operation(image, "Invert", MAGNITUDE), 255 - image)
    added = operation(image, "SolarizeAdd", MAGNITUDE).int()
    assert torch.equal(added, torch.where(image < 128, image.int() + 77, image.int()))


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
    smooth = tvf.resize(torch.rand(3, 16, 16, generator=_generator()), [256, 256], antialias=True)
    image = (smooth * 255).round().to(torch.uint8)
    torch.manual_seed(0)
    draws = [operation(image, name, 0.3, 1, "fixed") for _ in range(200)]
    ours = next(d for d in draws if name == "Identity" or not torch.equal(d, image))
    off = (ours.int() - tvf.pil_to_tensor(FIXED[name](tvf.to_pil_image(image))).int()).abs().float()
    # PIL computes with 8 bits: a value beside Solarize's threshold may lie on its other side. Nearest pixels may tie.
    assert off.quantile(0.5) <= 1
    assert (off > 2).float().mean() < 0.02
    changed = sum(not torch.equal(d, image) for d in draws)
    assert 70 < changed < 130 if name == "Invert" else changed == (0 if name == "Identity" else 200)


def test_the_fixed_rule_draws_no_direction() -> None:
    torch.manual_seed(0)
    moved = {tuple(RandAugment(1, 0.3, ("TranslateX",), rule)(_image())[0, 0].tolist()) for rule in RULES[1:] * 20}
    assert len(moved) == 1
    torch.manual_seed(0)
    both = {tuple(RandAugment(1, 0.3, ("TranslateX",))(_image())[0, 0].tolist()) for _ in range(20)}
    assert len(both) == 2


def test_cutout_is_a_gray_square_cut_at_the_border() -> None:
    torch.manual_seed(0)
    seen = torch.stack([operation(torch.zeros(3, 224, 224, dtype=torch.uint8), "Cutout", 0.3) for _ in range(200)])
    assert set(seen.unique().tolist()) == {0, 128}
    hole = (seen == 128).all(1)
    sides = torch.stack([hole.any(2).sum(1), hole.any(1).sum(1)], 1)
    assert torch.equal(sides.prod(1), hole.sum((1, 2)))
    assert int(sides.max()) == 24  # 80 · 0.3 pixels
    assert int(sides.min()) >= 12
    centers = hole.any(2).int().argmax(1)
    assert centers.min() == 0
    assert centers.max() > 195


def test_operations_are_drawn_evenly_and_one_after_the_other() -> None:
    assert len(SIXTEEN) == 16
    torch.manual_seed(0)
    image = _image()
    after = [
        operation(operation(image, a, 1.0), b, 1.0) for a in ("Invert", "Posterize") for b in ("Invert", "Posterize")
    ]
    draws = [RandAugment(2, 1.0, ("Invert", "Posterize"))(image) for _ in range(400)]
    counts = [sum(torch.equal(d, a) for d in draws) for a in after]
    assert sum(counts) == 400
    assert min(counts) > 65
    assert torch.equal(RandAugment(0, 1.0)(image), image)


def test_a_tiny_and_an_even_image() -> None:
    for rule in RULES:
        for name in NAMES:
            tiny = operation(torch.zeros(3, 2, 2, dtype=torch.uint8), name, 1.0, 1, rule)
            assert tiny.shape == (3, 2, 2)
            even = operation(torch.full((3, 8, 8), 77, dtype=torch.uint8), name, 0.0, 1, rule)
            assert even.dtype == torch.uint8
