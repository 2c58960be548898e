"""Gradient-weighted attention relevance (Chefer, Gur and Wolf, ICCV 2021, https://arxiv.org/abs/2103.15679).

Attention is weighted by its gradient with respect to the class score. The positive part of the product, averaged over
heads, is Ā = E_h[(∇A ⊙ A)⁺] (eq. 5). Each block updates the relevance, including the residual connection, by
R ← R + Ā R (eq. 6), starting from R = I (the form for self-attention). The map is the class token's row of R.

Shapes: B images, h heads, N tokens, (H, W) the patch grid.
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
    """Relevance of each patch for the class logit: (B, H, W), unnormalized, non-negative.

    One forward and one backward pass per batch. The model runs in evaluation mode and is restored afterwards; its
    parameters get no gradients. May be called under `no_grad` or `inference_mode`.

    Args:
        images: (B, 3, h, w), normalized, on the model's device.
        targets: classes (B,), or one class for all. Default: the predicted classes.
        grid: (H, W). Default: from the model's patch embedding, or square.
    Raises: ValueError unless every block has exactly one square attention matrix, and for classes out of range.
    """
    checkpointing = getattr(model, "grad_checkpointing", False)
    with ExitStack() as stack:
        for context in (torch.inference_mode(False), torch.enable_grad(), evaluation_mode(model, freeze=True)):
            stack.enter_context(context)
        if checkpointing:  # would compute and record attention twice
            stack.enter_context(mock.patch.object(model, "grad_checkpointing", False))
        leaf = images.clone().requires_grad_()  # start of the graph: no parameter gradients are computed
        with capture_attention(model, keep_graph=True) as captured:
            logits = model(leaf)
        layers = attention_of_blocks(captured, model)
        gradients = torch.autograd.grad(target_logits(logits, targets), layers)
    relevance = torch.eye(layers[0].shape[-1], device=images.device).expand(len(images), -1, -1)
    for weights, gradient in zip(layers, gradients, strict=True):
        passed = (gradient * weights.detach()).clamp_min(0).mean(1)  # (B, N, N)
        relevance = relevance + passed @ relevance
    return reading_of_patches(relevance, model, images, grid)
