"""Image-level zoom of the study: masks, boxes and crops from the importance of an image's patches.

Shapes: B images of h × w pixels, importance maps (B, rows, columns), k of the rows · columns patches.
"""

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tvf
from torch import Tensor

MIN_SHARE = 64 / 224  # smallest crop of the study, as a share of the image's side


def zoom_mask(maps: Tensor, keep_ratio: float, size: tuple[int, int]) -> Tensor:
    """Mask (B, 1, h, w): 1 on the k most important patches, else 0. k = ⌊keep · patches⌋, at least 1.

    All patches that tie with the k-th are kept.
    """
    values = maps.flatten(1)
    kth = values.topk(_count(maps, keep_ratio), dim=1).values[:, -1:]
    return F.interpolate((values >= kth).view_as(maps)[:, None].float(), size, mode="nearest")


def attenuate_background(images: Tensor, mask: Tensor, strength: float = 0.3) -> Tensor:
    """Multiply images (B, 3, h, w) by `strength` where the mask (B, 1, h, w) is 0.

    The study does this to normalized images, whose background fades to the mean color; images in [0, 1] would darken.
    """
    return images * mask + images * (1 - mask) * strength


def zoom_boxes(maps: Tensor, keep_ratio: float, size: tuple[int, int], min_size: int | None = None) -> Tensor:
    """The box around the k most important patches: (B, 4) with top, left, height and width in pixels, int64.

    A side shorter than `min_size` is extended by ⌊(min_size − side) / 2⌋ at both ends but not beyond the image border,
    so it can remain shorter. Default: 64 pixels at image size 224, in proportion for other sizes.
    """
    top = maps.flatten(1).topk(_count(maps, keep_ratio), dim=1).indices
    _, rows, columns = maps.shape
    box = []
    for cells, along, pixels in ((top // columns, rows, size[0]), (top % columns, columns, size[1])):
        least = int(MIN_SHARE * pixels) if min_size is None else min_size
        if pixels % along:
            raise ValueError(f"{along} patches do not divide {pixels} pixels: map and size must match")
        step = pixels // along
        first, last = cells.amin(1) * step, (cells.amax(1) + 1) * step
        more = (least - (last - first)).clamp_min(0) // 2
        first, last = (first - more).clamp_min(0), (last + more).clamp_max(pixels)
        box.append((first, last - first))
    (top_edge, height), (left, width) = box
    return torch.stack([top_edge, left, height, width], 1)


def crop_zoom(images: Tensor, maps: Tensor, keep_ratio: float, min_size: int | None = None) -> Tensor:
    """Crop each image (B, 3, S, S) to its `zoom_boxes` and resize the crop to S × S (bilinear)."""
    h, w = images.shape[-2:]
    if h != w:
        raise ValueError(f"images must be square, got {h} × {w}")
    boxes = zoom_boxes(maps, keep_ratio, (h, w), min_size).tolist()
    return torch.stack([tvf.resized_crop(x, *box, [h, h]) for x, box in zip(images, boxes, strict=True)])


def _count(maps: Tensor, keep_ratio: float) -> int:
    if maps.ndim != 3 or not 0 < keep_ratio <= 1:
        raise ValueError(
            f"need maps (B, rows, columns) and keep_ratio in (0, 1], got maps {tuple(maps.shape)} and "
            f"keep_ratio {keep_ratio}"
        )
    return max(1, int(keep_ratio * maps[0].numel()))
