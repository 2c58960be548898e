"""The formulas of the two attentions that are in no library. `kernels/` has faster versions of the first.

Shapes: B batch, h heads, N tokens, d head_dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from clear_vit.kernels import choose
from vit_core.models.attention import attention, observed


def suppressed_attention(q: Tensor, k: Tensor, v: Tensor, kernel: Tensor, dropout_p: float = 0.0) -> Tensor:
    """softmax(S − conv(S)) V of the scores S = Q Kᵀ / √d, with dropout on the weights.

    conv is depthwise with zero padding, one 3 × 3 kernel per head. Neighbors are those in the sequence: the first patch
    follows the class token, and the first patch of an image row follows the last patch of the row above.
    q, k, v (B, h, N, d), kernel (h, 3, 3) -> (B, h, N, d).
    """
    if fast := choose("suppressed_attention", q, k, v, kernel, dropout_p=dropout_p):
        return fast(q, k, v, kernel, dropout_p)
    kind = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        S = q.to(kind) @ k.to(kind).transpose(-2, -1) / q.shape[-1] ** 0.5  # (B, h, N, N)
        S = S - F.conv2d(S, kernel.to(kind)[:, None], padding=1, groups=len(kernel))
        weights = observed(S.softmax(-1))
        return F.dropout(weights, dropout_p).to(v.dtype) @ v


def differential_attention(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, dropout_p: float = 0.0) -> Tensor:
    """(A₁ − λ A₂) V with Aᵢ = softmax(qᵢ kᵢᵀ / √(d/2)) of the two halves of a head, and dropout on A₁ and A₂.

    q, k, v (B, h, N, d) with an even d; q₁ and k₁ are the first half of the channels; lam (B, N), one value per query
    -> (B, h, N, d).
    """
    q1, q2 = halves_alone(q)
    of_row = lam.to(v.dtype)[:, None, :, None]
    return attention(q1, k, v, dropout_p) - of_row * attention(q2, k, v, dropout_p)


def halves_alone(q: Tensor) -> tuple[Tensor, Tensor]:
    """q with the second half of its channels set to zero, and with the first; zeros drop out of the product with k.

    Scaled by √2, since attention divides by √d. Queries, keys and values keep one width, as fused attention requires.
    """
    d = q.shape[-1]
    mask = (torch.arange(d, device=q.device) < d // 2).to(q.dtype) * 2**0.5
    return q * mask, q * mask.flip(0)
