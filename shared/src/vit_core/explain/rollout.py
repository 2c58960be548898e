"""Attention rollout (Abnar and Zuidema, ACL 2020, https://arxiv.org/abs/2005.00928): attention through all layers.

Each block mixes the token itself (the residual) and the tokens it attends to in equal parts: Ā = (A + I) / 2, with rows
normalized to sum to one. The product of all blocks' Ā is the share of each input token in each output token.

Shapes: B images, h heads, N tokens, (H, W) the patch grid.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vit_core.explain.attention_capture import CapturedAttention, capture_attention
from vit_core.explain.evaluation_mode import evaluation_mode
from vit_core.explain.grids import Grid, token_grid

FUSIONS = ("mean", "max", "min")


def attention_rollout(
    model: nn.Module,
    images: Tensor,
    *,
    fusion: str = "mean",
    discard: float = 0.0,
    residual: float = 0.5,
    grid: Grid | None = None,
) -> Tensor:
    """Share of each patch in the class token after all blocks: (B, H, W); with average pooling, in the mean of patches.

    The model runs in evaluation mode without gradients and is restored afterwards.

    Args:
        fusion: how heads are combined: "mean" (as published), "max" or "min".
        discard: fraction of each block's smallest attention weights, over all token pairs, to set to zero.
        residual: weight of the identity in Ā.
    Raises: ValueError unless every block has exactly one square attention matrix.
    """
    with torch.no_grad(), evaluation_mode(model), capture_attention(model) as captured:
        model(images)
    rolled = rolled_out(attention_of_blocks(captured, model), fusion=fusion, discard=discard, residual=residual)
    return reading_of_patches(rolled, model, images, grid)


def rolled_out(
    layers: Sequence[Tensor], *, fusion: str = "mean", discard: float = 0.0, residual: float = 0.5
) -> Tensor:
    """Product of the attention weights (B, h, N, N) of consecutive blocks: (B, N, N), one row per output token."""
    if fusion not in FUSIONS or not 0 <= discard < 1 or not 0 <= residual < 1:
        raise ValueError(
            f"fusion must be one of {', '.join(FUSIONS)}, discard and residual must lie in [0, 1); "
            f"got {fusion!r}, {discard}, {residual}"
        )
    rolled: Tensor | None = None
    for weights in layers:  # (B, h, N, N)
        fused = weights.mean(1) if fusion == "mean" else getattr(weights, f"a{fusion}")(1)
        if discard:
            count = int(fused[0].numel() * discard)
            smallest = fused.flatten(1).topk(count, largest=False).indices
            fused = fused.flatten(1).scatter(1, smallest, 0.0).view_as(fused)
        mixed = (1 - residual) * fused + residual * torch.eye(fused.shape[-1], device=fused.device)
        mixed = mixed / mixed.sum(-1, keepdim=True).clamp_min(1e-12)  # a row may be empty
        rolled = mixed if rolled is None else mixed @ rolled
    if rolled is None:
        raise ValueError("no attention layers to roll out")
    return rolled


def attention_of_blocks(captured: CapturedAttention, model: nn.Module) -> list[Tensor]:
    """The weights (B, h, N, N) of each block of a plain ViT. ValueError unless each block has exactly one attention."""
    blocks: Any = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList):
        raise ValueError(f"{type(model).__name__} has no blocks: this method supports plain ViTs only")
    layers = [c.weights for c in captured.calls if c.module.startswith("blocks.")]
    if len(layers) != len(blocks) or any(w.shape != layers[0].shape or w.shape[-1] != w.shape[-2] for w in layers):
        raise ValueError(f"{type(model).__name__}: every block must have exactly one attention over all tokens")
    return layers


def reading_of_patches(rolled: Tensor, model: nn.Module, images: Tensor, grid: Grid | None) -> Tensor:
    """The patch grid (B, H, W) of a rollout (B, N, N): the class token's row, or the mean of the patches' rows if the
    model pools patches."""
    prefix = int(getattr(model, "num_prefix_tokens", 1))
    pooled = getattr(model, "global_pool", "token") in ("avg", "avgmax", "max")
    has_class = getattr(model, "cls_token", None) is not None and not pooled
    row = rolled[:, 0, prefix:] if has_class else rolled[:, prefix:, prefix:].mean(1)
    return row.unflatten(1, token_grid(model, row.shape[1], grid, images.shape[-2:]))
