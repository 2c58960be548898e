"""The pointing game: hits, ties, tolerance, and images without an object."""

import pytest
import torch

from vit_core.explain import pointing_game


def region(*cells, size=8):
    r = torch.zeros(size, size, dtype=torch.bool)
    for i, j in cells:
        r[i, j] = True
    return r


def test_hits_and_misses():
    maps = torch.zeros(3, 4, 4)
    maps[:, 1, 2] = 1.0  # points at the pixels of rows 2, 3 and columns 4, 5
    regions = torch.stack([region((3, 5)), region((4, 5)), region((2, 1))])
    assert pointing_game(maps, regions).tolist() == [1.0, 0.0, 0.0]
    assert pointing_game(maps, regions, tolerance=1).tolist() == [1.0, 1.0, 0.0]
    assert pointing_game(maps, regions, tolerance=3).tolist() == [1.0, 1.0, 1.0]


def test_ties_and_constant_maps_score_by_chance():
    regions = torch.stack([region(*((i, j) for i in range(4) for j in range(4)))])  # a quarter of the image
    assert pointing_game(torch.ones(1, 8, 8), regions).tolist() == [0.25]
    two = torch.zeros(1, 8, 8)
    two[0, 0, 0] = two[0, 7, 7] = 3.0
    assert pointing_game(two, regions).tolist() == [0.5]


def test_images_without_an_object_do_not_count():
    hits = pointing_game(torch.rand(2, 4, 4), torch.stack([region(), region((0, 0))]))
    assert hits[0].isnan()
    assert not hits[1].isnan()


def test_what_cannot_be():
    with pytest.raises(ValueError, match="regions"):
        pointing_game(torch.rand(2, 4, 4), torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="do not tile"):
        pointing_game(torch.rand(1, 3, 3), torch.zeros(1, 8, 8))
