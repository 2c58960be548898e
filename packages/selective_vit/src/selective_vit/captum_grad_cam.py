"""Captum's LayerGradCam for token-based models.

Captum treats all dimensions after the first two as spatial: α is the mean over them, and the map is the sum over dim 1.
For tokens (B, N, C) it thus returns (B, 1, C), a map over channels, whatever its plot looks like. Here the layer's
tokens pass through a module that presents them as (B, C, H, W), and Captum is applied to this module.

Shapes: B images of h × w pixels, N tokens, C channels, (H, W) the grid of patches.
"""

from typing import Any

import torch
from torch import Tensor, nn

from vit_core.explain.evaluation_mode import evaluation_mode
from vit_core.explain.grad_cam import EmptyMapError, chosen_layer
from vit_core.explain.grids import Grid, token_grid


class PlacesAsImage(nn.Module):
    """The identity: a module for Captum to hook, where tokens are (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def captum_grad_cam(
    model: nn.Module,
    images: Tensor,
    targets: Tensor | int | None = None,
    layer: nn.Module | str | None = None,
    *,
    grid: Grid | None = None,
    relu: bool = True,
) -> Tensor:
    """Captum's map (B, H, W) for a layer whose output is tokens (B, N, C) or a feature map (B, C, H, W).

    Arguments as for `grad_cam`; this is a slower, independent implementation of it. The model is not changed.
    Raises: ValueError if the tokens do not form a grid, and if Captum's map is zero everywhere.
    """
    from captum.attr import LayerGradCam

    layer = chosen_layer(model, layer)
    places = PlacesAsImage()
    prefix = int(getattr(model, "num_prefix_tokens", 0))

    def present(module: nn.Module, args: Any, output: Any) -> Any:
        first, *rest = output if isinstance(output, tuple) else (output,)
        if first.ndim == 3:
            H, W = token_grid(model, first.shape[1] - prefix, grid, images.shape[-2:])
            seen = places(first[:, prefix:].transpose(1, 2).unflatten(2, (H, W)))
            first = torch.cat([first[:, :prefix], seen.flatten(2).transpose(1, 2)], 1)
        else:
            first = places(first)
        return (first, *rest) if isinstance(output, tuple) else first

    with torch.inference_mode(False), torch.enable_grad(), evaluation_mode(model):
        if targets is None:
            with torch.no_grad():
                targets = model(images).argmax(1)
        handle = layer.register_forward_hook(present)
        try:
            cam = LayerGradCam(model, places).attribute(images.clone(), target=targets, relu_attributions=relu)
        finally:
            handle.remove()
    assert isinstance(cam, Tensor)
    if not cam.any():
        raise EmptyMapError(
            "Captum's map is zero everywhere: no gradient reaches the patch tokens of this layer, or all contributions "
            "are negative; give a layer= before the last attention, such as model.blocks[-1].norm1"
        )
    return cam.detach()[:, 0]
