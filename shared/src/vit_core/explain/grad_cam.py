"""Grad-CAM (Selvaraju et al., ICCV 2017, https://arxiv.org/abs/1610.02391) for token grids and feature maps.

A whole batch takes one forward and one backward pass: in evaluation mode the images do not influence each other, so
that the gradient of the sum of their target logits is each one's own.

Shapes: B images of h × w pixels, A (B, C, H, W) the activation: C channels over a grid of H × W places.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vit_core.explain.evaluation_mode import evaluation_mode
from vit_core.explain.grids import Grid, channels_first


class EmptyMapError(ValueError):
    """A map that is zero everywhere: nothing that the layer shows speaks for the class."""


def grad_cam(
    model: nn.Module,
    images: Tensor,
    targets: Tensor | int | None = None,
    layer: nn.Module | str | None = None,
    *,
    grid: Grid | None = None,
    forward: Callable[[Tensor], Tensor] | None = None,
    relu: bool = True,
) -> Tensor:
    """Maps (B, H, W), not normalised: ReLU(Σ_c α_c A_c) with α_c the mean over the places of ∂logit/∂A_c (eq. 1, 2).

    The model runs in evaluation mode and is left as it was; its parameters get no gradients. The caller may be under
    `no_grad` or `inference_mode`.

    Args:
        images: (B, 3, h, w), normalised, on the model's device.
        targets: classes (B,), or one for all. Default: the predicted ones.
        layer: whose output is A, or its name: tokens (B, N, C), of which the model's `num_prefix_tokens` first are left
            out, or a map (B, C, H, W) or (B, H, W, C). Of a tuple, its first; of several calls, the last. Default:
            `default_layer(model)`.
        grid: (H, W). Default: from the model's patch embedding, or square.
        forward: images -> logits (B, classes), where `model(images)` gives something else.
        relu: False keeps what speaks against the class, as negative values.
    Raises:
        ValueError: no gradient reaches the places; tokens that make no grid; classes that do not exist.
    """
    if isinstance(layer, str):
        layer = model.get_submodule(layer)
    layer = default_layer(model) if layer is None else layer
    leaf: Tensor | None = None  # A of the layer's last call
    logits: Tensor | None = None

    def keep(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal leaf
        first, *rest = output if isinstance(output, tuple) else (output,)
        entry = first.detach().requires_grad_()
        if logits is None:  # else the backward pass recomputes a checkpointed block
            leaf = entry
        seen = entry.clone()  # what follows may work in place
        return (seen, *rest) if isinstance(output, tuple) else seen

    with torch.inference_mode(False), torch.enable_grad(), evaluation_mode(model, freeze=True):
        handle = layer.register_forward_hook(keep)
        try:
            logits = (forward or model)(images.clone())  # a copy: an inference tensor cannot enter a graph
            if leaf is None:
                raise ValueError("the layer was not called in the forward pass: give a layer= that is")
            score = target_logits(logits, targets)
            gradient = torch.autograd.grad(score, leaf, allow_unused=True)[0] if score.requires_grad else None
        finally:
            handle.remove()
    A = leaf.detach()
    dA = torch.zeros_like(A) if gradient is None else gradient
    A, dA = (channels_first(t.float(), model, images, grid) for t in (A, dA))
    if not dA.any():
        raise EmptyMapError(
            "no gradient of the target logits reaches the places of this layer. Where only the class token is read, "
            "the patch tokens of the last block's output influence nothing: give a layer= before the last attention, "
            "such as model.blocks[-1].norm1"
        )
    cam = (dA.mean((2, 3), keepdim=True) * A).sum(1)
    return cam.relu() if relu else cam


def default_layer(model: nn.Module) -> nn.Module:
    """The layer that Grad-CAM looks at: the last that has places and whose places still influence the logits.

    The model's own `grad_cam_layer` (a module, or a method that gives one); for a ViT that reads the class token alone,
    the input of the last attention, `blocks[-1].norm1`; for other ViTs the last block; else timm's last feature.
    Raises: ValueError where there is none of these.
    """
    own = getattr(model, "grad_cam_layer", None)
    if own is not None:
        return own if isinstance(own, nn.Module) else own()
    blocks: Any = getattr(model, "blocks", None)
    tokens = isinstance(blocks, nn.Sequential | nn.ModuleList) and hasattr(blocks[-1], "attn")
    if tokens and getattr(model, "global_pool", None) == "token":
        if isinstance(getattr(blocks[-1], "norm1", None), nn.Module):
            return blocks[-1].norm1
    elif tokens:
        return blocks[-1]
    else:
        features: Any = getattr(model, "feature_info", None)
        if features:
            return model.get_submodule(features[-1]["module"])
    raise ValueError(f"no default Grad-CAM layer is known for {type(model).__name__}: give layer=, or grad_cam_layer")


def target_logits(logits: Any, targets: Tensor | int | None) -> Tensor:
    """Σ_b logits[b, targets[b]]."""
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ValueError("the model does not give logits (B, classes): give forward=, a function from images to logits")
    B, classes = logits.shape
    if targets is None:
        targets = logits.argmax(1)
    targets = torch.as_tensor(targets, device=logits.device).expand(B).clone()  # no inference tensor, as the images
    if targets.min() < 0 or targets.max() >= classes:
        raise ValueError(f"targets must be classes from 0 to {classes - 1}, not {targets.unique().tolist()}")
    return logits.gather(1, targets[:, None]).sum()
