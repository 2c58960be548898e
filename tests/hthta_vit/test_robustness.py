"""Disturbances: as strong as they say, the same for every model."""

import pytest
import torch

from hthta_vit.robustness import disturbances, disturbed, gaussian_noise, occlusion
from vit_core.data import BatchLoader, EvalTransform
from vit_core.data.sources import MemorySource

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def normalized(pixels):
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def pixels_of(images):
    return images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]


def test_noise_has_its_sigma_in_pixel_values_and_stays_in_range():
    gray = torch.full((64, 3, 16, 16), 0.5)
    noisy = pixels_of(gaussian_noise(0.05, MEAN, STD)(normalized(gray), torch.Generator().manual_seed(0)))
    assert (noisy - gray).std().item() == pytest.approx(0.05, rel=0.02)
    assert (noisy - gray).mean((0, 2, 3)).abs().max().item() < 2e-3
    white = pixels_of(gaussian_noise(0.5, MEAN, STD)(normalized(torch.ones(8, 3, 16, 16)), torch.Generator()))
    assert white.max().item() <= 1 + 1e-5
    assert white.min().item() >= -1e-5


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3])
def test_occlusion_hides_one_rectangle_of_its_share(share):
    images = torch.full((256, 3, 32, 32), 7.0)
    hidden = (occlusion(share)(images, torch.Generator().manual_seed(0)) == 0).all(1)  # (B, H, W)
    area = hidden.flatten(1).float().mean(1)
    assert area.mean().item() == pytest.approx(share, abs=0.005)
    assert (area - share).abs().max().item() < 0.03  # whole pixels
    for mask in hidden[:32]:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        height, width = len(rows), len(columns)
        assert mask.sum().item() == height * width, "no rectangle"
        assert 0.4 < height / width < 2.5
    quarters = hidden.float().mean(0).unflatten(0, (2, 16)).unflatten(2, (2, 16)).mean((1, 3))
    assert (quarters - share).abs().max().item() < 0.04, "rectangles prefer a corner"
    assert len({tuple(mask.flatten().tolist()) for mask in hidden}) > 200, "each image has its own"


def test_the_disturbance_is_the_same_whenever_it_is_asked_for():
    source = MemorySource(torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8), torch.arange(20) % 3)
    loader = BatchLoader(source, batch_size=8, transform=EvalTransform(8, MEAN, STD), train=False)
    for disturb in disturbances(MEAN, STD).values():
        first, again = ([x.clone() for x, _ in disturbed(loader, disturb)] for _ in range(2))
        assert [len(x) for x in first] == [8, 8, 4]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        other = [x.clone() for x, _ in disturbed(loader, disturb, seed=1)]
        assert not torch.equal(first[0], other[0])
        assert not torch.equal(first[0], next(iter(loader.epoch()))[0])
