"""Augmentation: the draws have torchvision's distribution, and each image has its own."""

import math

import pytest
import torch
import torchvision.transforms as T
import torchvision.transforms.v2.functional as tvf
from PIL import Image

from vit_core.data.augment import Augment, AugmentConfig, EvalTransform
from vit_core.data.crops import CropRule, crop_image

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
ALL = AugmentConfig(crop="resized", rotation=15, color_jitter=0.4, hue_jitter=0.1, randaugment_ops=3, erasing=0.5)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(count: int, size: int = 32) -> torch.Tensor:
    return torch.randint(256, (count, 3, size, size), generator=_generator(), dtype=torch.uint8)


def _same_distribution(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Kolmogorov-Smirnov at the 0.1% level: the largest gap between the two empirical distributions."""
    points = torch.cat([ours, theirs]).unique()
    gap = (
        torch.searchsorted(ours.sort().values, points, right=True) / len(ours)
        - torch.searchsorted(theirs.sort().values, points, right=True) / len(theirs)
    ).abs()
    limit = 1.95 * math.sqrt((len(ours) + len(theirs)) / (len(ours) * len(theirs)))
    assert gap.max() < limit


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(crop="random", hflip=0),
        AugmentConfig(crop="pad", hflip=0),
        AugmentConfig(crop="resized", hflip=0),
        AugmentConfig(hflip=0.5),
        AugmentConfig(hflip=0, rotation=20),
        AugmentConfig(hflip=0, color_jitter=0.4),
        AugmentConfig(hflip=0, hue_jitter=0.3),
        AugmentConfig(hflip=0, randaugment_ops=2),
        AugmentConfig(hflip=0, erasing=0.9),
    ],
)
def test_copies_of_one_image_are_augmented_differently(config: AugmentConfig) -> None:
    images = _images(1).expand(16, 3, 32, 32)
    augment = Augment(config, 48, MEAN, STD)
    out = augment.apply(images, augment.draw(16, _generator(), (32, 32)))
    assert out.shape == (16, 3, 48, 48)
    assert out.isfinite().all()
    distinct = {tuple(o.flatten().tolist()[::7]) for o in out}
    assert len(distinct) >= (2 if config == AugmentConfig() else 8)


def test_resized_crop_boxes_have_torchvisions_distribution() -> None:
    torch.manual_seed(0)
    count, height, width = 3000, 60, 90
    image = torch.empty(3, height, width)
    theirs = torch.tensor([T.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)])
    ours = CropRule("resized").draw(count, (height, width), 32, _generator()).boxes
    for column in range(4):
        _same_distribution(ours[:, column], theirs[:, column].float())
    _same_distribution(ours[:, 2] * ours[:, 3], (theirs[:, 2] * theirs[:, 3]).float())
    assert ours[:, 0].min() >= 0
    assert (ours[:, 0] + ours[:, 2]).max() <= height
    assert (ours[:, 1] + ours[:, 3]).max() <= width


@pytest.mark.parametrize(("height", "width"), [(10, 100), (100, 10)])
def test_resized_crop_falls_back_to_the_centre_like_torchvision(height: int, width: int) -> None:
    rule = CropRule("resized", scale=(0.9, 1.0))
    theirs = T.RandomResizedCrop.get_params(torch.empty(3, height, width), [0.9, 1.0], [3 / 4, 4 / 3])
    assert rule.draw(1, (height, width), 8, _generator()).boxes[0].tolist() == list(theirs)


def test_pad_and_random_crops_are_uniform() -> None:
    pad = CropRule("pad").draw(9000, (32, 32), 224, _generator()).boxes
    counts = (pad[:, 0] + 4).long().bincount()
    assert len(counts) == 9  # offsets −4 … 4
    assert counts.min() > 850
    assert (pad[:, 2:] == 32).all()
    random = CropRule("random").draw(9000, (32, 32), 224, _generator())
    assert random.grid == (256, 256)
    assert random.offsets.min() == 0
    assert random.offsets.max() == 32


def test_flip_jitter_rotation_and_erasing_have_torchvisions_distribution() -> None:
    torch.manual_seed(0)
    count = 3000
    config = AugmentConfig(hflip=0.3, rotation=20, color_jitter=0.4, hue_jitter=0.1, erasing=0.25)
    drawn = Augment(config, 64, MEAN, STD).draw(count, _generator())
    assert drawn.flip is not None
    assert drawn.flip.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert drawn.degrees is not None
    _same_distribution(drawn.degrees, torch.tensor([T.RandomRotation.get_params([-20, 20]) for _ in range(count)]))
    jitter = T.ColorJitter(0.4, 0.4, 0.4, 0.1)
    theirs = [T.ColorJitter.get_params(*_ranges(jitter)) for _ in range(count)]
    assert drawn.jitter is not None
    for i in range(4):
        _same_distribution(drawn.jitter[0][:, i], torch.tensor([t[1 + i] for t in theirs]))
    orders = {tuple(o) for o in drawn.jitter[1].tolist()}
    assert len(orders) == 24
    assert drawn.erase is not None
    erased = drawn.erase[drawn.erase[:, 2] > 0]
    assert len(erased) / count == pytest.approx(0.25, abs=0.03)
    image = torch.empty(3, 64, 64)
    boxes = torch.tensor(
        [T.RandomErasing.get_params(image, (0.02, 1 / 3), (0.3, 10 / 3), [0.0])[:4] for _ in range(800)]
    ).float()
    for column in range(4):
        _same_distribution(erased[:, column].float(), boxes[:, column])


def _ranges(jitter: T.ColorJitter) -> tuple[list[float], ...]:
    return jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue


def test_jitter_equals_torchvision_with_the_same_factors_and_order() -> None:
    config = AugmentConfig(hflip=0, color_jitter=0.6, hue_jitter=0.4)
    augment = Augment(config, 32, (0, 0, 0), (1, 1, 1))
    images, params = _images(12), augment.draw(12, _generator())
    ours = augment.apply(images, params)
    assert params.jitter is not None
    ops = (tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation, tvf.adjust_hue)
    for image, factors, order, result in zip(images, *params.jitter, ours, strict=True):
        theirs = image.float() / 255
        for op in order.tolist():
            theirs = ops[op](theirs, factors[op].item())
        torch.testing.assert_close(result, theirs, rtol=0, atol=2e-5)


def test_erased_rectangle_is_the_mean_colour_and_the_rest_untouched() -> None:
    images = _images(8)
    plain = EvalTransform(32, MEAN, STD)(images)
    augment = Augment(AugmentConfig(hflip=0, erasing=1.0), 32, MEAN, STD)
    params = augment.draw(8, _generator())
    ours = augment.apply(images, params)
    assert params.erase is not None
    for before, after, (top, left, height, width) in zip(plain, ours, params.erase.tolist(), strict=True):
        assert height * width > 0
        expected = before.clone()
        expected[:, top : top + height, left : left + width] = 0
        assert torch.equal(after, expected)


def test_random_fill_and_a_larger_area() -> None:
    """Each channel of a rectangle one value from 0 to 1, after normalization; aspect even from 0.3 to 10/3."""
    images, config = _images(1).expand(400, -1, -1, -1), AugmentConfig(
        hflip=0, erasing=1.0, erasing_area=0.4, erasing_fill="random"
    )  # fmt: skip
    augment = Augment(config, 64, MEAN, STD)
    params = augment.draw(400, _generator())
    assert params.erase is not None
    assert params.fill is not None
    height, width = params.erase[:, 2].double(), params.erase[:, 3].double()
    assert 0.38 < (height * width / 64**2).max() < 0.42
    aspect = height / width
    assert aspect[height * width < 800].mean() == pytest.approx((0.3 + 10 / 3) / 2, abs=0.15)  # small ones always fit
    for image, (top, left, h, w), fill in zip(augment.apply(images, params), params.erase, params.fill, strict=True):
        assert torch.equal(image[:, top : top + h, left : left + w], fill.view(3, 1, 1).expand(3, h, w))
    assert params.fill.min() >= 0
    assert params.fill.mean().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("size", [32, 40])
def test_slices_of_the_parameters_give_the_same_images_bit_for_bit(size: int) -> None:
    images = _images(21)
    augment = Augment(ALL, size, MEAN, STD)
    params = augment.draw(21, _generator(), (32, 32))
    whole = augment.apply(images, params)
    parts = [augment.apply(images[a:b], params[a:b]) for a, b in ((0, 1), (1, 12), (12, 21))]
    assert torch.equal(torch.cat(parts), whole)


def test_parameters_for_another_number_of_images_are_refused() -> None:
    augment = Augment(AugmentConfig(), 32, MEAN, STD)
    with pytest.raises(ValueError, match="4 parameter sets for 5 images"):
        augment.apply(_images(5), augment.draw(4, _generator()))


def test_eval_transform_is_resize_and_centre_crop() -> None:
    images = torch.randint(256, (3, 3, 60, 40), generator=_generator(), dtype=torch.uint8)
    unit = images.float() / 255
    whole = tvf.normalize(tvf.resize(unit, [56, 56], antialias=True), list(MEAN), list(STD))
    torch.testing.assert_close(EvalTransform(56, MEAN, STD)(images), whole, rtol=0, atol=5e-6)
    centre = tvf.center_crop(tvf.resize(unit, [64], antialias=True), [56, 56])
    centre = tvf.normalize(centre, list(MEAN), list(STD))
    torch.testing.assert_close(EvalTransform(56, MEAN, STD, 0.875)(images), centre, rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    ("rule", "size"),
    [(CropRule("none"), 48), (CropRule("random"), 48), (CropRule("resized"), 24), (CropRule("pad"), 64)],
)
def test_pil_crop_of_the_disk_source_agrees_with_the_batched_one(rule: CropRule, size: int) -> None:
    smooth = tvf.resize(_images(1, 8).float(), [64, 64], antialias=True).round().to(torch.uint8)
    image = Image.fromarray(smooth[0].permute(1, 2, 0).numpy())
    crops = rule.draw(1, (64, 64), size, _generator(3))
    pil = tvf.pil_to_tensor(crop_image(image, crops, size)).float()
    augment = Augment(AugmentConfig(crop=rule.kind, hflip=0), size, (0, 0, 0), (1, 1, 1))
    params = augment.draw(1, _generator(3), (64, 64))
    batched = augment.apply(smooth, params)[0] * 255
    assert (pil - batched).abs().max() <= 1.6  # PIL rounds to whole numbers after each of its two passes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop": "centre"}, "crop must be one of"),
        ({"hflip": 1.5}, "hflip must be between 0 and 1"),
        ({"erasing": float("nan")}, "erasing must be between"),
        ({"crop_scale_min": 0.9, "crop_scale_max": 0.5}, "crop_scale_min must be between 0 and 0.5"),
        ({"crop_scale_min": 0.0}, "crop_scale_min must be over 0"),
        ({"hue_jitter": 0.6}, "hue_jitter must be between 0 and 0.5"),
        ({"crop_aspect": 0.5}, "crop_aspect must be"),
        ({"randaugment_choice": "Rotate,Wobble"}, "unknown Wobble"),
        ({"randaugment_ops": -1}, "randaugment_ops must be"),
        ({"randaugment_rule": "signed"}, "randaugment_rule must be torchvision or fixed, not 'signed'"),
        ({"erasing_area": 0.01}, "erasing_area must be between 0.02 and 1"),
        ({"erasing_fill": "black"}, "erasing_fill must be mean or random, not 'black'"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**fields)


def test_bad_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="std over 0"):
        EvalTransform(32, MEAN, (0.2, 0.0, 0.2))
    with pytest.raises(ValueError, match="img_size"):
        EvalTransform(0, MEAN, STD)
    with pytest.raises(ValueError, match="crop_pct"):
        EvalTransform(32, MEAN, STD, 0)
