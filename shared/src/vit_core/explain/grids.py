"""Spatial layout of activations: token sequences and feature maps as (B, C, H, W)."""

import math
from typing import Any

from torch import Tensor, nn

Grid = tuple[int, int]


def channels_first(t: Tensor, model: nn.Module, images: Tensor, grid: Grid | None) -> Tensor:
    """Tokens (B, N, C), maps (B, C, H, W) or (B, H, W, C) -> (B, C, H, W)."""
    if t.ndim == 3:
        prefix = getattr(model, "num_prefix_tokens", 0)
        H, W = token_grid(model, t.shape[1] - prefix, grid, images.shape[-2:])
        return t[:, prefix:].unflatten(1, (H, W)).permute(0, 3, 1, 2)
    if t.ndim != 4:
        raise ValueError(f"Grad-CAM needs a layer that outputs tokens or a feature map; got shape {tuple(t.shape)}")
    wanted = grid or images.shape[-2:]
    misfit_first, misfit_last = (abs(math.log(H * wanted[1] / W / wanted[0])) for H, W in (t.shape[2:], t.shape[1:3]))
    if misfit_first == misfit_last:
        channels_last = getattr(model, "output_fmt", None) == "NHWC"
    else:  # the aspect ratio of the images tells spatial dimensions from channels
        channels_last = misfit_last < misfit_first
    return t.permute(0, 3, 1, 2) if channels_last else t


def token_grid(model: nn.Module, places: int, grid: Grid | None = None, image_size: tuple[int, ...] = (0, 0)) -> Grid:
    """(H, W) of `places` patch tokens: as given, from the patch embedding, or square. Raises: ValueError."""
    embed: Any = getattr(model, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    by_size = (image_size[0] // patch[0], image_size[1] // patch[1]) if isinstance(patch, tuple) else None
    side = math.isqrt(places)
    for candidate in [grid] if grid else [getattr(embed, "grid_size", None), by_size, (side, side)]:
        if candidate is not None and candidate[0] * candidate[1] == places:
            return candidate[0], candidate[1]
    raise ValueError(
        f"{places} patch tokens do not form a grid{f' of {grid[0]} × {grid[1]}' if grid else ''}: pass "
        "grid=(rows, columns), and set the model's num_prefix_tokens to the number of tokens that are not patches"
    )
