"""The pointing game (Zhang et al., ECCV 2016, https://arxiv.org/abs/1608.00507): is a map's maximum on the object?

Shapes: B images of h × w pixels, maps (B, H, W).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def pointing_game(maps: Tensor, regions: Tensor, tolerance: float = 0.0) -> Tensor:
    """Hits (B,) in [0, 1]: whether the position of the map's maximum is on the object; NaN if there is no object.

    If several positions share the maximum, the fraction of them that hit: the result does not depend on their order,
    and a constant map scores the same as random pointing.

    Args:
        maps: (B, H, W).
        regions: (B, h, w), True on the object. A position hits if any pixel of its cell is True.
        tolerance: margin in pixels added on each side of the object, including corners (the paper: 15 at 224).
    Raises: ValueError for incompatible shapes or a negative tolerance.
    """
    if maps.ndim != 3 or regions.ndim != 3 or len(maps) != len(regions) or tolerance < 0:
        raise ValueError(
            f"expected maps (B, H, W), regions (B, h, w) and tolerance >= 0, got {tuple(maps.shape)}, "
            f"{tuple(regions.shape)} and {tolerance}"
        )
    if regions.shape[1] % maps.shape[1] or regions.shape[2] % maps.shape[2]:
        raise ValueError(f"maps of shape {tuple(maps.shape)} do not tile regions of shape {tuple(regions.shape)}")
    reach = int(tolerance)
    wide = F.max_pool2d(regions[:, None].float(), 2 * reach + 1, stride=1, padding=reach) if reach else regions[:, None]
    cells = F.adaptive_max_pool2d(wide.float(), maps.shape[1:])[:, 0].flatten(1)
    values = maps.flatten(1)
    pointed = (values == values.amax(1, keepdim=True)).float()
    hits = (pointed * cells).sum(1) / pointed.sum(1)
    return hits.masked_fill(~regions.flatten(1).any(1), torch.nan)
