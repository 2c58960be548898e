"""Masks, boxes and crops of batches, against the original's way: image by image."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from zoom_vit.zoom import attenuate_background, crop_zoom, zoom_boxes, zoom_mask


def maps(batch=6, rows=8, columns=8, seed=0):
    return torch.rand(batch, rows, columns, generator=torch.Generator().manual_seed(seed))


def original_crop(image, heat, keep, least):
    """One image (3, h, w), as the study crops it: (crop, box)."""
    rows, columns = heat.shape
    h, w = image.shape[1:]
    top = heat.flatten().topk(max(1, int(keep * heat.numel()))).indices
    ys, xs = top // columns, top % columns
    y0, y1 = int(ys.min()) * (h // rows), (int(ys.max()) + 1) * (h // rows)
    x0, x1 = int(xs.min()) * (w // columns), (int(xs.max()) + 1) * (w // columns)
    if y1 - y0 < least:
        more = (least - (y1 - y0)) // 2
        y0, y1 = max(0, y0 - more), min(h, y1 + more)
    if x1 - x0 < least:
        more = (least - (x1 - x0)) // 2
        x0, x1 = max(0, x0 - more), min(w, x1 + more)
    crop = F.interpolate(image[None, :, y0:y1, x0:x1], (h, w), mode="bilinear", align_corners=False)[0]
    return crop, (y0, x0, y1 - y0, x1 - x0)


@pytest.mark.parametrize("keep", [0.01, 0.03, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("least", [4, 9, 20])
def test_crops_are_the_originals(keep, least):
    torch.manual_seed(0)
    images, heat = torch.randn(6, 3, 32, 32), maps()
    crops, boxes = crop_zoom(images, heat, keep, least), zoom_boxes(heat, keep, (32, 32), least)
    for i in range(6):
        crop, box = original_crop(images[i], heat[i], keep, least)
        assert tuple(boxes[i].tolist()) == box
        assert_close(crops[i], crop, rtol=1e-4, atol=1e-5)


def test_the_box_contains_every_kept_patch():
    for keep in (0.02, 0.1, 0.4):
        heat = maps(20, 14, 14)
        mask = zoom_mask(heat, keep, (224, 224)).bool()[:, 0]
        for (top, left, height, width), kept in zip(zoom_boxes(heat, keep, (224, 224)).tolist(), mask, strict=True):
            assert min(height, width) >= 48
            inside = torch.zeros_like(kept)
            inside[top : top + height, left : left + width] = True
            assert not (kept & ~inside).any()


def test_the_smallest_crop_is_64_at_224():
    center = torch.zeros(1, 14, 14)
    center[0, 7, 7] = 1
    assert zoom_boxes(center, 0.001, (224, 224)).tolist() == [[88, 88, 64, 64]]
    corner = torch.zeros(1, 14, 14)
    corner[0, 0, 13] = 1
    assert zoom_boxes(corner, 0.001, (224, 224)).tolist() == [[0, 184, 40, 40]], "as far as the image reaches"


def test_keeping_all_changes_nothing():
    images = torch.randn(6, 3, 32, 32)
    assert_close(crop_zoom(images, maps(), 1.0), images)
    mask = zoom_mask(maps(), 1.0, (32, 32))
    assert mask.all()
    assert torch.equal(attenuate_background(images, mask), images)


def test_masks_keep_k_patches_and_all_that_tie():
    mask = zoom_mask(maps(), 0.3, (32, 32))
    assert mask.shape == (6, 1, 32, 32)
    assert (mask.sum((1, 2, 3)) == 19 * 16).all()
    tied = torch.zeros(1, 2, 2)
    tied[0, 0] = torch.tensor([2.0, 1.0])
    tied[0, 1] = torch.tensor([1.0, 0.0])
    assert zoom_mask(tied, 0.5, (2, 2))[0, 0].tolist() == [[1, 1], [1, 0]]


def test_attenuation():
    images, mask = torch.ones(1, 3, 2, 2), torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    assert_close(attenuate_background(images, mask)[0, 0], torch.tensor([[1.0, 0.3], [0.3, 1.0]]))
    assert_close(attenuate_background(images, mask, 0.0)[0, 2], mask[0, 0])


def test_what_cannot_be():
    with pytest.raises(ValueError, match="keep_ratio"):
        zoom_mask(maps(), 0.0, (32, 32))
    with pytest.raises(ValueError, match="maps"):
        zoom_boxes(torch.rand(3, 64), 0.3, (32, 32))
    with pytest.raises(ValueError, match="do not divide"):
        zoom_boxes(maps(), 0.3, (30, 32))
    with pytest.raises(ValueError, match="square"):
        crop_zoom(torch.rand(6, 3, 32, 64), maps(), 0.3)
