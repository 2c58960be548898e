"""Suppression as torch's fused attention over wider heads: no scores in GPU memory, in any precision.

conv(S)_ij = Σ_ab w_ab S_{i+a, j+b} with a, b in {−1, 0, 1}. S is a product, so S − conv(S) is also one:

    S − conv(S) = Σ_a Q_{i+a} · Σ_b (δ_ab − w_ab) K_{j+b} / √d,  δ_ab = 1 for a = b = 0, else 0

The wide queries are three neighboring queries concatenated; the wide keys are weighted sums of three neighbors.

Shapes: B batch, h heads, N tokens, d head_dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_core.models.attention import attention


def suppressed_attention(q: Tensor, k: Tensor, v: Tensor, kernel: Tensor, dropout_p: float = 0.0) -> Tensor:
    """softmax(S − conv(S)) v, with dropout on the weights. q, k, v (B, h, N, d), kernel (h, 3, 3) -> (B, h, N, d)."""
    return attention(*as_wide_heads(q, k, kernel), v, dropout_p)


def as_wide_heads(q: Tensor, k: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, h, N, 3d) whose product divided by √(3d) is S − conv(S)."""
    N = q.shape[-2]
    taps = (F.pad(kernel.new_ones(1, 1), (1, 1, 1, 1)) - kernel).to(k.dtype) * 3**0.5  # attention divides by √(3d)
    before, after = ([F.pad(t, (0, 0, 1, 1))[..., a : a + N, :] for t in (q, k)] for a in (0, 2))
    queries = torch.cat([before[0], q, after[0]], -1)
    neighbors = (before[1], k, after[1])
    keys = [sum(taps[:, a, b, None, None] * neighbors[b] for b in range(3)) for a in range(3)]
    return queries, torch.cat(keys, -1)  # type: ignore[arg-type]
