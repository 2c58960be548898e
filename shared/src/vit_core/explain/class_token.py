"""Class-token attention of a plain ViT."""

import torch
from torch import Tensor, nn

from vit_core.explain.attention_capture import capture_attention
from vit_core.explain.evaluation_mode import evaluation_mode
from vit_core.explain.grids import Grid, token_grid


def class_token_attention(model: nn.Module, images: Tensor, grid: Grid | None = None) -> Tensor:
    """The class token's attention to the patches in a plain ViT's last block, averaged over heads: (B, H, W).

    The model runs in evaluation mode without gradients and is restored afterwards. Maps sum to less than 1, because the
    class token's attention to itself is excluded. Raises: ValueError for a model without class token or attention.
    """
    blocks = getattr(model, "blocks", None)
    if getattr(model, "cls_token", None) is None or not isinstance(blocks, nn.Sequential | nn.ModuleList):
        raise ValueError(f"{type(model).__name__} is not a ViT with a class token: pass attention_maps=")
    last = f"blocks.{len(blocks) - 1}."
    with (
        torch.no_grad(),
        evaluation_mode(model),
        capture_attention(model, lambda n: f"{n}.".startswith(last)) as captured,
    ):
        model(images)
    if not captured.calls:
        raise ValueError(f"no attention was captured in the last block of {type(model).__name__}: pass attention_maps=")
    prefix = getattr(model, "num_prefix_tokens", 1)
    row = captured.calls[-1].weights[:, :, 0, prefix:].mean(1)  # (B, n)
    return row.unflatten(1, token_grid(model, row.shape[1], grid, images.shape[-2:]))
