"""Augmentation: torchvision's, and each image has its own draws."""

import pytest
import torch
import torchvision.transforms as T
from PIL import Image

from vit_core.data.augment import Augment, AugmentConfig, EvalTransform

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
ALL = AugmentConfig(crop="resized", rotation=15, color_jitter=0.4, hue_jitter=0.1, randaugment_ops=3, erasing=0.5)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(count: int, size: int = 32) -> torch.Tensor:
    return torch.randint(256, (count, 3, size, size), generator=_generator(), dtype=torch.uint8)


def _rand(count: int, seed: int = 0):
    generator = _generator(seed)
    return lambda *shape: torch.rand(count, *shape, generator=generator)


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
    by_image = augment.finish(torch.stack([augment.image(x, seed) for seed, x in enumerate(images)]), _rand(16))
    outs = [by_image]
    if augment.takes_batches:
        outs.append(augment.finish(augment.batch(images, _rand(16)), _rand(16, 1)))
    for out in outs:
        assert out.shape == (16, 3, 48, 48)
        assert out.isfinite().all()
        distinct = {tuple(o.flatten().tolist()[::7]) for o in out}
        assert len(distinct) >= (2 if config == AugmentConfig() else 8)


@pytest.mark.parametrize("config", [ALL, AugmentConfig(crop="random"), AugmentConfig(crop="pad")])
def test_an_image_depends_on_its_seed_alone_and_the_global_generator_on_nothing(config: AugmentConfig) -> None:
    augment, image = Augment(config, 24, MEAN, STD), _images(1)[0]
    first, state = augment.image(image, 5), torch.get_rng_state()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(augment.image(image, 5), first)
    assert not torch.equal(augment.image(image, 6), first)


def _seen(config: AugmentConfig, image: torch.Tensor, by: str, count: int) -> torch.Tensor:
    """`count` draws for one image whose pixels tell where they came from."""
    augment = Augment(config, image.shape[-1], (0, 0, 0), (1, 1, 1))
    if by == "batch":
        return augment.batch(image.expand(count, -1, -1, -1), _rand(count))
    return torch.stack([augment.image(image, seed) for seed in range(count)])


@pytest.mark.parametrize("by", ["image", "batch"])
def test_padded_crops_are_uniform(by: str) -> None:
    place = torch.arange(1, 33, dtype=torch.uint8)
    image = torch.stack([place[:, None].expand(32, 32), place.expand(32, 32), torch.full((32, 32), 9)])
    found = _seen(AugmentConfig(crop="pad", hflip=0), image, by, 1800)
    for channel, center in ((0, found[:, 0, 16, 16]), (1, found[:, 1, 16, 16])):
        counts = (center.long() - 17 + 4).bincount()
        assert len(counts) == 9  # offsets -4 … 4
        assert counts.min() > 130, channel
    black = found[found[:, 0, 16, 16] == 17 + 4][0]  # four rows of the border came in
    assert (black[:, -4:] == 0).all()


@pytest.mark.parametrize("by", ["image", "batch"])
def test_random_crops_lie_anywhere_in_the_resized_image(by: str) -> None:
    config, place = AugmentConfig(crop="random", hflip=0), torch.arange(224, dtype=torch.uint8)
    image = torch.stack([place[:, None].expand(224, 224), place.expand(224, 224), place.expand(224, 224)])
    tops = _seen(config, image, by, 300)[:, 0, 0, 100].float() * 256 / 224  # in pixels of the resized image
    assert tops.min() < 2
    assert tops.max() > 30
    assert tops.mean().item() == pytest.approx(16, abs=2)


@pytest.mark.parametrize("by", ["image", "batch"])
def test_as_many_are_mirrored_as_asked_for(by: str) -> None:
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[:, :, 0] = 255
    found = _seen(AugmentConfig(hflip=0.3), image, by, 3000)
    mirrored = found[:, 0, 0, 7] == 255
    assert torch.equal(mirrored, found[:, 0, 0, 0] == 0)
    assert mirrored.float().mean().item() == pytest.approx(0.3, abs=0.03)


def test_the_transforms_are_torchvisions_with_the_settings_given() -> None:
    config = AugmentConfig(crop="resized", crop_scale_min=0.2, hflip=0.1, rotation=20, color_jitter=0.4, hue_jitter=0.1)
    steps = {type(s).__name__: s for s in Augment(config, 24, MEAN, STD)._steps.transforms}
    crop, jitter = steps["RandomResizedCrop"], steps["ColorJitter"]
    assert (list(crop.size), tuple(crop.scale), tuple(crop.ratio)) == ([24, 24], (0.2, 1.0), (3 / 4, 4 / 3))
    assert steps["RandomHorizontalFlip"].p == 0.1
    assert list(steps["RandomRotation"].degrees) == [-20, 20]
    assert jitter.brightness == jitter.contrast == jitter.saturation == (0.6, 1.4)
    assert jitter.hue == (-0.1, 0.1)


def test_erased_rectangles_are_torchvisions_and_the_mean_color() -> None:
    count = 3000
    x = torch.full((count, 3, 64, 64), 7.0)
    ours = Augment(AugmentConfig(hflip=0, erasing=0.25), 64, MEAN, STD)._erase(x, _rand(count))
    torch.manual_seed(0)
    theirs = torch.stack([T.RandomErasing(0.25)(t) for t in x])
    assert set(ours.unique().tolist()) == {0.0, 7.0}
    statistics = []
    for out in (ours, theirs):
        hole = out[:, 0] == 0
        assert torch.equal(hole, out[:, 1] == 0)
        some = hole[hole.any(2).any(1)]
        rows, columns = some.any(2), some.any(1)
        assert (rows.sum(1) * columns.sum(1) == some.sum((1, 2))).all()  # a rectangle
        statistics.append(
            [
                len(some) / count,
                some.float().mean(),
                rows.sum(1).float().log().std(),
                columns.float().sum(1).mean(),
                rows.int().argmax(1).float().mean(),
                columns.int().argmax(1).float().std(),
            ]
        )
    assert [float(v) for v in statistics[0]] == pytest.approx([float(v) for v in statistics[1]], rel=0.12)


def test_random_fill_and_a_larger_area() -> None:
    """Each channel of a rectangle one value from 0 to 1, after normalization; aspect even from 0.3 to 10/3."""
    config = AugmentConfig(hflip=0, erasing=1.0, erasing_area=0.4, erasing_fill="random")
    out = Augment(config, 64, MEAN, STD)._erase(torch.full((400, 3, 64, 64), 7.0), _rand(400))
    hole = out[:, 0] != 7
    height, width = hole.any(2).sum(1).double(), hole.any(1).sum(1).double()
    assert 0.38 < (height * width / 64**2).max() < 0.42
    aspect = height / width
    assert aspect[height * width < 800].mean() == pytest.approx((0.3 + 10 / 3) / 2, abs=0.15)  # small ones always fit
    fills = torch.stack([image[:, inside][:, 0] for image, inside in zip(out, hole, strict=True)])
    for image, inside, fill in zip(out, hole, fills, strict=True):
        assert (image[:, inside] == fill[:, None]).all()
    assert fills.min() >= 0
    assert fills.mean().item() == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("size", [32, 40])
def test_a_share_of_the_draws_gives_the_same_images_bit_for_bit(size: int) -> None:
    images = _images(21)
    config = AugmentConfig(crop="pad", erasing=0.5, erasing_fill="random")
    augment = Augment(config, size, MEAN, STD)

    def made(part: slice) -> torch.Tensor:
        whole = _rand(21)
        rand = lambda *shape: whole(*shape)[part]  # noqa: E731
        return augment.finish(augment.batch(images[part], rand), rand)

    parts = [made(slice(a, b)) for a, b in ((0, 1), (1, 12), (12, 21))]
    assert torch.equal(torch.cat(parts), made(slice(0, 21)))


def test_eval_transform_is_resize_and_center_crop() -> None:
    images = torch.randint(256, (3, 3, 60, 40), generator=_generator(), dtype=torch.uint8)
    whole, center = EvalTransform(56, MEAN, STD), EvalTransform(56, MEAN, STD, 0.875)
    for transform, steps in (
        (whole, [T.Resize((56, 56))]),
        (center, [T.Resize(64), T.CenterCrop(56)]),
    ):
        expected = T.Compose([*steps, T.ToTensor(), T.Normalize(MEAN, STD)])
        for image, ours in zip(images, transform(images), strict=True):
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            exact = transform.normalize(transform.image(picture)[None])[0]
            torch.testing.assert_close(exact, expected(picture), rtol=0, atol=1e-5)
            assert (ours - exact).abs().max() <= 1.01 / 255 / min(STD)  # a tensor is rounded once, PIL's twice


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop": "center"}, "crop must be one of"),
        ({"hflip": 1.5}, "hflip must be between 0 and 1"),
        ({"erasing": float("nan")}, "erasing must be between"),
        ({"crop_scale_min": 0.9, "crop_scale_max": 0.5}, "crop_scale_min must be between 0 and 0.5"),
        ({"crop_scale_min": 0.0}, "crop_scale_min must be greater than 0"),
        ({"hue_jitter": 0.6}, "hue_jitter must be between 0 and 0.5"),
        ({"crop_aspect": 0.5}, "crop_aspect must be"),
        ({"randaugment_choice": "Rotate,Wobble"}, "unknown Wobble"),
        ({"randaugment_ops": -1}, "randaugment_ops must be"),
        ({"randaugment_rule": "signed"}, "randaugment_rule must be torchvision or fixed, got 'signed'"),
        ({"erasing_area": 0.01}, "erasing_area must be between 0.02 and 1"),
        ({"erasing_fill": "black"}, "erasing_fill must be mean or random, got 'black'"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**fields)


def test_bad_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="std must be positive"):
        EvalTransform(32, MEAN, (0.2, 0.0, 0.2))
    with pytest.raises(ValueError, match="img_size"):
        EvalTransform(0, MEAN, STD)
    with pytest.raises(ValueError, match="crop_pct"):
        EvalTransform(32, MEAN, STD, 0)
