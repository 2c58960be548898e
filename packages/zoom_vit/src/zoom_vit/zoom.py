"""Image-level zoom: what the study does to an image with the importance of its patches.

Shapes: B images of h × w pixels, maps (B, rows, columns) of importance, k patches out of rows · columns.
"""

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tvf
from torch import Tensor

MIN_SHARE = 64 / 224  # of an image's side: the smallest crop of the study


def zoom_mask(maps: Tensor, keep_ratio: float, size: tuple[int, int]) -> Tensor:
    """1 on the patches at or over the k-th largest importance, else 0: (B, 1, h, w). k = ⌊keep · patches⌋, at least 1.

    Patches as important as the k-th are all kept.
    """
    values = maps.flatten(1)
    kth = values.topk(_count(maps, keep_ratio), dim=1).values[:, -1:]
    return F.interpolate((values >= kth).view_as(maps)[:, None].float(), size, mode="nearest")


def attenuate_background(images: Tensor, mask: Tensor, strength: float = 0.3) -> Tensor:
    """Images (B, 3, h, w) that are `strength` times as strong where the mask (B, 1, h, w) is 0.

    The study does it to normalised images, whose background fades to the mean color; values in [0, 1] would darken.
    """
    return images * mask + images * (1 - mask) * strength


def zoom_boxes(maps: Tensor, keep_ratio: float, size: tuple[int, int], min_size: int | None = None) -> Tensor:
    """The box around the k most important patches: (B, 4) of top, left, height and width in pixels, int64.

    A side shorter than `min_size` grows by ⌊(min_size − side) / 2⌋ at both ends, as far as the image reaches, so that
    it may stay shorter. Default: 64 pixels at 224, and in proportion.
    """
    top = maps.flatten(1).topk(_count(maps, keep_ratio), dim=1).indices
    _, rows, columns = maps.shape
    box = []
    for cells, along, pixels in ((top // columns, rows, size[0]), (top % columns, columns, size[1])):
        least = int(MIN_SHARE * pixels) if min_size is None else min_size
        if pixels % along:
            raise ValueError(f"{along} patches do not divide {pixels} pixels")
        step = pixels // along
        first, last = cells.amin(1) * step, (cells.amax(1) + 1) * step
        more = (least - (last - first)).clamp_min(0) // 2
        first, last = (first - more).clamp_min(0), (last + more).clamp_max(pixels)
        box.append((first, last - first))
    (top_edge, height), (left, width) = box
    return torch.stack([top_edge, left, height, width], 1)


def crop_zoom(images: Tensor, maps: Tensor, keep_ratio: float, min_size: int | None = None) -> Tensor:
    """What lies in each image's `zoom_boxes`, enlarged to the whole side (bilinear): square images (B, 3, S, S)."""
    h, w = images.shape[-2:]
    if h != w:
        raise ValueError(f"images must be square, not {h} × {w}")
    boxes = zoom_boxes(maps, keep_ratio, (h, w), min_size).tolist()
    return torch.stack([tvf.resized_crop(x, *box, [h, h]) for x, box in zip(images, boxes, strict=True)])


def _count(maps: Tensor, keep_ratio: float) -> int:
    if maps.ndim != 3 or not 0 < keep_ratio <= 1:
        raise ValueError(f"need maps (B, rows, columns) and keep_ratio in (0, 1]: {tuple(maps.shape)}, {keep_ratio}")
    return max(1, int(keep_ratio * maps[0].numel()))
