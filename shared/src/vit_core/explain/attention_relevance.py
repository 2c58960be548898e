"""Gradient-weighted attention relevance (Chefer, Gur and Wolf, ICCV 2021, https://arxiv.org/abs/2103.15679).

Attention says where a layer looks, its gradient whether that speaks for the class. Their product, what is negative left
out, mean over the heads, is Ā = E_h[(∇A ⊙ A)⁺] (eq. 5). Relevance passes through a block with its residual,
R ← R + Ā R (eq. 6), from R = I on: the form for self-attention. The class token's row of R is the map.

Shapes: B images, h heads, N tokens, (H, W) the grid of patches.
"""

from contextlib import ExitStack
from unittest import mock

import torch
from torch import Tensor, nn

from vit_core.explain.attention_capture import capture_attention
from vit_core.explain.evaluation_mode import evaluation_mode
from vit_core.explain.grad_cam import target_logits
from vit_core.explain.grids import Grid
from vit_core.explain.rollout import attention_of_blocks, reading_of_patches


def attention_relevance(
    model: nn.Module, images: Tensor, targets: Tensor | int | None = None, *, grid: Grid | None = None
) -> Tensor:
    """What each patch contributes to the logit of the class: (B, H, W), not normalised, at least zero.

    One forward and one backward pass for the batch. The model runs in evaluation mode and is left as it was; its
    parameters get no gradients. The caller may be under `no_grad` or `inference_mode`.

    Args:
        images: (B, 3, h, w), normalised, on the model's device.
        targets: classes (B,), or one for all. Default: the predicted ones.
        grid: (H, W). Default: from the model's patch embedding, or square.
    Raises: ValueError for a model in which not every block shows one square attention matrix, and for classes that do
        not exist.
    """
    checkpointing = getattr(model, "grad_checkpointing", False)
    with ExitStack() as stack:
        for context in (torch.inference_mode(False), torch.enable_grad(), evaluation_mode(model, freeze=True)):
            stack.enter_context(context)
        if checkpointing:  # it would compute, and record, attention twice
            stack.enter_context(mock.patch.object(model, "grad_checkpointing", False))
        leaf = images.clone().requires_grad_()  # the graph begins here: no gradients of parameters are computed
        with capture_attention(model, keep_graph=True) as captured:
            logits = model(leaf)
        layers = attention_of_blocks(captured, model)
        gradients = torch.autograd.grad(target_logits(logits, targets), layers)
    relevance = torch.eye(layers[0].shape[-1], device=images.device).expand(len(images), -1, -1)
    for weights, gradient in zip(layers, gradients, strict=True):
        passed = (gradient * weights.detach()).clamp_min(0).mean(1)  # (B, N, N)
        relevance = relevance + passed @ relevance
    return reading_of_patches(relevance, model, images, grid)
