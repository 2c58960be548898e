"""Deletion and insertion: a model whose probability is known, against the definition and the controls."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from vit_core.explain import Curves, deletion_insertion


class Counts(nn.Module):
    """Logit of class 1: the share of the weight w (H, W) of the patches that are shown; an image's patches are 1."""

    def __init__(self, weight: Tensor, scale: float = 4.0) -> None:
        super().__init__()
        self.weight, self.scale = weight, scale

    def forward(self, images: Tensor) -> Tensor:
        seen = nn.functional.adaptive_avg_pool2d(images[:, :1], tuple(self.weight.shape))[:, 0]
        logit = self.scale * (seen * self.weight).sum((1, 2)) / self.weight.sum()
        return torch.stack([torch.zeros_like(logit), logit], 1)


GRID = (2, 3)
WEIGHT = torch.tensor([[1.0, 5.0, 2.0], [0.5, 3.0, 0.1]])
IMAGES, NOTHING = torch.ones(2, 3, 8, 12), torch.zeros(2, 3, 8, 12)
YES = torch.tensor([1, 1])


def curves(maps, **fields):
    fields = {"steps": 6, "baseline": NOTHING} | fields
    return deletion_insertion(Counts(WEIGHT), IMAGES, maps, YES, **fields)


def test_curves_of_a_known_model():
    """Patches go one by one, the most important first; what is left, or shown, is known."""
    judged = curves(WEIGHT.expand(2, *GRID))
    shown = WEIGHT.flatten().sort(descending=True).values.cumsum(0) / WEIGHT.sum()
    shown = torch.cat([torch.zeros(1), shown])
    assert_close(judged.insertion, torch.sigmoid(4 * shown).expand(2, 7))
    assert_close(judged.deletion, torch.sigmoid(4 * (1 - shown)).expand(2, 7))
    assert_close(judged.shares, torch.arange(7) / 6)
    steps = torch.sigmoid(4 * shown)
    assert_close(judged.insertion_area[0], ((steps[1:] + steps[:-1]) / 2).mean())


def test_the_right_order_beats_random_and_random_the_wrong_one():
    generator = torch.Generator().manual_seed(0)
    right, wrong = curves(WEIGHT.expand(2, *GRID)), curves(-WEIGHT.expand(2, *GRID))
    random = [curves(torch.rand(2, *GRID, generator=generator)) for _ in range(20)]
    deleted = torch.stack([r.deletion_area for r in random]).mean()
    inserted = torch.stack([r.insertion_area for r in random]).mean()
    assert right.deletion_area[0] < deleted < wrong.deletion_area[0]
    assert right.insertion_area[0] > inserted > wrong.insertion_area[0]


def test_orientation():
    """Only the patch that the map names is taken first: row 1, column 2 of a rectangle."""
    for row, column in ((1, 2), (0, 1)):
        maps = torch.zeros(2, *GRID)
        maps[1, row, column] = 1
        seen: list[Tensor] = []

        def look(images: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(images)
            return torch.zeros(len(images), 2)

        curves(maps, forward=look)
        deleted, inserted = seen[2][1, 0], seen[3][1, 0]  # after the first patch
        expected = torch.zeros(8, 12)
        expected[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 1
        assert torch.equal(inserted, expected)
        assert torch.equal(deleted, 1 - expected)


def test_few_steps_take_equal_shares_and_ends_are_the_images_themselves():
    judged = curves(WEIGHT.expand(2, *GRID), steps=2)
    assert_close(judged.shares, torch.tensor([0.0, 0.5, 1.0]))
    full = torch.sigmoid(torch.tensor(4.0))
    assert_close(judged.deletion[:, 0], full.expand(2))
    assert_close(judged.insertion[:, -1], full.expand(2))
    assert_close(judged.deletion[:, -1], torch.full((2,), 0.5))


def test_ties_go_in_raster_order_or_in_a_drawn_one():
    ties = torch.zeros(2, *GRID)
    raster = curves(ties)
    assert_close(raster.insertion, curves(-torch.arange(6.0).view(GRID).expand(2, *GRID)).insertion)
    drawn = curves(ties, generator=torch.Generator().manual_seed(1))
    assert_close(drawn.insertion, curves(ties, generator=torch.Generator().manual_seed(1)).insertion)
    assert not torch.equal(drawn.insertion, raster.insertion)
    clear = curves(WEIGHT.expand(2, *GRID), generator=torch.Generator().manual_seed(1))
    assert torch.equal(clear.insertion, curves(WEIGHT.expand(2, *GRID)).insertion)


def test_each_image_has_its_own_order():
    both = torch.stack([WEIGHT, -WEIGHT])
    together = curves(both)
    for i, one in enumerate((curves(WEIGHT.expand(2, *GRID)), curves(-WEIGHT.expand(2, *GRID)))):
        assert_close(together.deletion[i], one.deletion[0])


@pytest.mark.parametrize("baseline", ["mean", "blur"])
def test_baselines_take_the_content_away(baseline):
    torch.manual_seed(0)
    images = torch.rand(2, 3, 8, 12)
    seen: list[Tensor] = []
    deletion_insertion(
        Counts(WEIGHT),
        images,
        WEIGHT.expand(2, *GRID),
        YES,
        steps=1,
        baseline=baseline,
        forward=lambda x: seen.append(x) or torch.zeros(2, 2),
    )
    empty = seen[2]  # all patches removed
    assert empty.std() < 0.6 * images.std()
    assert_close(empty.mean((2, 3)), images.mean((2, 3)), rtol=0, atol=0.05)
    assert torch.equal(seen[0], images)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="do not tile images"):
        curves(torch.rand(2, 3, 5))
    with pytest.raises(ValueError, match=r"steps must lie in \[1, 6\]"):
        curves(torch.rand(2, *GRID), steps=7)
    with pytest.raises(ValueError, match="baseline must be one of mean, blur"):
        curves(torch.rand(2, *GRID), baseline="black")
    with pytest.raises(ValueError, match="baseline must have the images' shape"):
        curves(torch.rand(2, *GRID), baseline=torch.zeros(1))


def test_areas_are_in_zero_to_one():
    ones = Curves(torch.linspace(0, 1, 5), torch.ones(3, 5), torch.zeros(3, 5))
    assert_close(ones.deletion_area, torch.ones(3))
    assert_close(ones.insertion_area, torch.zeros(3))
