"""Grad-CAM (Selvaraju et al., ICCV 2017, https://arxiv.org/abs/1610.02391) for token grids and feature maps.

A batch takes one forward and one backward pass: in evaluation mode images do not influence each other, so the gradient
of the sum of their target logits contains each image's own gradient.

Shapes: B images of h × w pixels, A (B, C, H, W) the activation: C channels on a grid of H × W positions.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vit_core.explain.evaluation_mode import evaluation_mode
from vit_core.explain.grids import Grid, channels_first


class EmptyMapError(ValueError):
    """The map is zero everywhere: the layer's activations have no gradient for the class."""


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
    """Maps (B, H, W), unnormalized: ReLU(Σ_c α_c A_c), where α_c is the mean of ∂logit/∂A_c over positions (eq. 1, 2).

    The model runs in evaluation mode and is restored afterwards; its parameters get no gradients. May be called under
    `no_grad` or `inference_mode`.

    Args:
        images: (B, 3, h, w), normalized, on the model's device.
        targets: classes (B,), or one class for all. Default: the predicted classes.
        layer: the module (or its name) whose output is A: tokens (B, N, C), without the model's first
            `num_prefix_tokens` tokens, or a map (B, C, H, W) or (B, H, W, C). For tuples, the first element; for
            several calls, the last. Default: `default_layer(model)`.
        grid: (H, W). Default: from the model's patch embedding, or square.
        forward: images -> logits (B, classes), if `model(images)` does not return logits.
        relu: False keeps negative values, which are evidence against the class.
    Raises:
        EmptyMapError: the layer's positions get no gradient.
        ValueError: the layer is not called, the tokens do not form a grid, or a class is out of range.
    """
    layer = chosen_layer(model, layer)
    leaf: Tensor | None = None  # A of the layer's last call
    logits: Tensor | None = None

    def keep(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        nonlocal leaf
        first, *rest = output if isinstance(output, tuple) else (output,)
        entry = first.detach().requires_grad_()
        if logits is None:  # otherwise the backward pass is recomputing a checkpointed block
            leaf = entry
        seen = entry.clone()  # later operations may be in place
        return (seen, *rest) if isinstance(output, tuple) else seen

    with torch.inference_mode(False), torch.enable_grad(), evaluation_mode(model, freeze=True):
        handle = layer.register_forward_hook(keep)
        try:
            logits = (forward or model)(images.clone())  # a copy: an inference tensor cannot enter a graph
            if leaf is None:
                raise ValueError("the layer was not called in the forward pass: pass a layer= that is used")
            score = target_logits(logits, targets)
            gradient = torch.autograd.grad(score, leaf, allow_unused=True)[0] if score.requires_grad else None
        finally:
            handle.remove()
    A = leaf.detach()
    dA = torch.zeros_like(A) if gradient is None else gradient
    A, dA = (channels_first(t.float(), model, images, grid) for t in (A, dA))
    if not dA.any():
        raise EmptyMapError(
            "the gradient of the target logits is zero at all positions of this layer. If the head only uses the class "
            "token, the patch tokens of the last block's output do not affect the logits: pass a layer= before the "
            "last attention, such as model.blocks[-1].norm1"
        )
    cam = (dA.mean((2, 3), keepdim=True) * A).sum(1)
    return cam.relu() if relu else cam


def chosen_layer(model: nn.Module, layer: nn.Module | str | None) -> nn.Module:
    """The module, or the one of that name; `default_layer(model)` for None."""
    if isinstance(layer, str):
        return model.get_submodule(layer)
    return default_layer(model) if layer is None else layer


def default_layer(model: nn.Module) -> nn.Module:
    """The default Grad-CAM layer: the last spatial layer whose positions affect the logits.

    This is the model's own `grad_cam_layer` (a module, or a method that returns one); for a ViT whose head uses only
    the class token, the input of the last attention, `blocks[-1].norm1`; for other ViTs, the last block; otherwise
    timm's last feature layer. Raises: ValueError if the model has none of these.
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
    raise ValueError(
        f"no default Grad-CAM layer is known for {type(model).__name__}: pass layer=, or define grad_cam_layer"
    )


def target_logits(logits: Any, targets: Tensor | int | None) -> Tensor:
    """Σ_b logits[b, targets[b]]."""
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ValueError("the model does not return logits (B, classes): pass forward=, a function images -> logits")
    B, classes = logits.shape
    if targets is None:
        targets = logits.argmax(1)
    targets = torch.as_tensor(targets, device=logits.device).expand(B).clone()  # not an inference tensor, see images
    if targets.min() < 0 or targets.max() >= classes:
        raise ValueError(f"targets must be classes from 0 to {classes - 1}, got {targets.unique().tolist()}")
    return logits.gather(1, targets[:, None]).sum()
