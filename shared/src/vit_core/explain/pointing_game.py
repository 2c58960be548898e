"""The pointing game (Zhang et al., ECCV 2016, https://arxiv.org/abs/1608.00507): does a map's maximum hit the object?

Shapes: B images of h × w pixels, maps (B, H, W).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def pointing_game(maps: Tensor, regions: Tensor, tolerance: float = 0.0) -> Tensor:
    """Hits (B,) in [0, 1]: whether the place of the map's maximum lies on the object; NaN where there is no object.

    Where several places share the maximum, the share of these that hit: nothing depends on which comes first, and a
    constant map scores what random pointing does.

    Args:
        maps: (B, H, W).
        regions: (B, h, w), true on the object. A place points at the pixels of its cell, which hits where any is true.
        tolerance: in pixels, by which the object is wider on each side, corners included (the paper: 15 at 224).
    Raises: ValueError for shapes that do not fit.
    """
    if maps.ndim != 3 or regions.ndim != 3 or len(maps) != len(regions) or tolerance < 0:
        raise ValueError(f"need maps (B, H, W), regions (B, h, w): not {tuple(maps.shape)}, {tuple(regions.shape)}")
    if regions.shape[1] % maps.shape[1] or regions.shape[2] % maps.shape[2]:
        raise ValueError(f"maps {tuple(maps.shape)} do not tile regions of {tuple(regions.shape)}")
    reach = int(tolerance)
    wide = F.max_pool2d(regions[:, None].float(), 2 * reach + 1, stride=1, padding=reach) if reach else regions[:, None]
    cells = F.adaptive_max_pool2d(wide.float(), maps.shape[1:])[:, 0].flatten(1)
    values = maps.flatten(1)
    pointed = (values == values.amax(1, keepdim=True)).float()
    hits = (pointed * cells).sum(1) / pointed.sum(1)
    return hits.masked_fill(~regions.flatten(1).any(1), torch.nan)
