"""Attention with spatial suppression: softmax(S − conv(S)) V of the scores S = Q Kᵀ / √d, with a 3 × 3 kernel a head.

conv(S)_ij = Σ_ab w_ab S_{i+a, j+b} with a, b in {−1, 0, 1} and zero outside, as the original's depthwise convolution.
S is a product, so the convolution is one, too:

    S − conv(S) = Σ_a Q_{i+a} · Σ_b (δ_ab − w_ab) K_{j+b} / √d,  δ_ab = 1 for a = b = 0, else 0

Attention whose queries are three neighbouring queries side by side, its keys sums of three neighbours: 3d channels a
head in place of d. That is how every fused kernel computes it, without scores in memory. On a CPU the nine shifted
additions are cheaper than three times the product, as long as they stay in the cache: `_StencilAttention`.

The neighbours i ± 1 are those in the sequence: beside the class token lies the first patch, and beside the last patch
of a row the first of the next.

Shapes: B batch, h heads, N tokens, d head_dim.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vit_core.models import cpu_kernel
from vit_core.models.attention import attention
from vit_core.models.cpu_kernel import scaled_product

# Scores of one chunk: four images of ViT-Tiny at 256 × 256, passes that are long enough to be worth several cores.
_CHUNK_SCORES = 800_000
_OFFSETS = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]  # rows, columns, in the order of the kernel's taps


def suppressed_attention(q: Tensor, k: Tensor, v: Tensor, kernel: Tensor, dropout_p: float = 0.0) -> Tensor:
    """softmax(S − conv(S)) v, with dropout on the weights. q, k, v (B, h, N, d), kernel (h, 3, 3) -> (B, h, N, d)."""
    if cpu_kernel.applies(q, k, v, kernel) and dropout_p == 0.0:
        return _StencilAttention.apply(q, k, v, kernel)
    return attention(*as_wide_heads(q, k, kernel), v, dropout_p)


def as_wide_heads(q: Tensor, k: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, h, N, 3d) whose product over √3d is S − conv(S)."""
    N = q.shape[-2]
    taps = _minus_kernel(kernel).to(k.dtype) * 3**0.5  # attention divides by √3d where we want √d
    before, after = ([F.pad(t, (0, 0, 1, 1))[..., a : a + N, :] for t in (q, k)] for a in (0, 2))
    queries = torch.cat([before[0], q, after[0]], -1)
    neighbours = (before[1], k, after[1])
    keys = [sum(taps[:, a, b, None, None] * neighbours[b] for b in range(3)) for a in range(3)]
    return queries, torch.cat(keys, -1)  # type: ignore[arg-type]


def _minus_kernel(kernel: Tensor) -> Tensor:
    """δ − w."""
    return F.pad(kernel.new_ones(1, 1), (1, 1, 1, 1)) - kernel


class _StencilAttention(torch.autograd.Function):
    """The definition, a few heads at a time; the backward pass computes S again.

    All tensors get one more token, of zeros: see `_Stencil`. BH: images × heads.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, kernel: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(q, k, v, kernel)
        padded_q, padded_k, padded_v = map(_with_zero_token, (q, k, v))
        out = torch.empty_like(padded_v)  # (BH, N + 1, d)
        for heads, _, weights in _weights(padded_q, padded_k, kernel):
            torch.bmm(weights, padded_v[heads], out=out[heads])
        return out.view(*v.shape[:2], *out.shape[1:])[:, :, :-1]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor) -> tuple[Any, ...]:  # type: ignore[no-untyped-def]
        """Of U = S − conv(S): dU = P (dP − Σ P dP), dw_ab = −Σ dU_ij S_{i+a, j+b}, and dS is dU − conv'(dU) with the
        mirrored kernel.
        """
        q, k, v, kernel = ctx.saved_tensors
        shape = v.shape
        g, q, k, v = (_with_zero_token(t) for t in (grad_out, q, k, v))
        dq, dk, dv = (torch.empty_like(t) for t in (q, k, v))
        d_kernel = kernel.new_empty(len(q), 9)
        mirrored = _Stencil(q, kernel.flip(1, 2))
        for heads, stencil, weights in _weights(q, k, kernel):
            torch.bmm(weights.transpose(1, 2), g[heads], out=dv[heads])
            d_scores = mirrored.room(heads)
            torch.bmm(g[heads], v[heads].transpose(1, 2), out=d_scores)
            # dU, in which the weights' zeros make the last row and column zero as the stencil needs them.
            torch.ops.aten._softmax_backward_data.out(d_scores, weights, -1, weights.dtype, grad_input=d_scores)
            stencil.products(heads, d_scores, out=d_kernel[heads])
            d_scores = mirrored.apply(heads)
            scaled_product(d_scores, k[heads], q.shape[-1], dq[heads])
            scaled_product(d_scores.transpose(1, 2), q[heads], q.shape[-1], dk[heads])
        grads = (t.view(*shape[:2], *t.shape[1:])[:, :, :-1] for t in (dq, dk, dv))
        return *grads, -d_kernel.view(shape[0], *kernel.shape).sum(0)


class _Stencil:
    """δ − w over the scores of some heads.

    These have a row and a column of zeros at their ends, and one head follows the other in memory. So the neighbour
    (a, b) of each score lies at one offset, at a border as everywhere, and a tap is one pass without a loop over rows.
    """

    def __init__(self, padded_q: Tensor, kernel: Tensor) -> None:
        heads, self.side, _ = padded_q.shape  # side: N + 1
        area = self.side**2
        self.size = max(1, min(heads, _CHUNK_SCORES // area))
        self.taps = _minus_kernel(kernel).flatten(1).repeat(heads // len(kernel), 1)  # (BH, 9)
        self.around = self.side + 1  # zeros before the first score and after the last
        self._scores = padded_q.new_empty(self.size * area + 2 * self.around)
        self._scores[: self.around] = 0.0
        self._scores[-self.around :] = 0.0
        self._result = padded_q.new_empty(self.size, area)

    def room(self, heads: slice) -> Tensor:
        """Where the scores of these heads go: (c, N + 1, N + 1)."""
        return self._shifted(heads, 0, 0).view(-1, self.side, self.side)

    def apply(self, heads: slice) -> Tensor:
        """S − conv(S) of what is in the room: (c, N + 1, N + 1), with anything in its last row and column."""
        shifts = [self._shifted(heads, a, b) for a, b in _OFFSETS]
        taps = self.taps[heads].split(1, dim=1)
        out = torch.mul(shifts[0], taps[0], out=self._result[: len(shifts[0])])
        for shifted, tap in zip(shifts[1:], taps[1:], strict=True):
            out.addcmul_(shifted, tap)
        return out.view(-1, self.side, self.side)

    def products(self, heads: slice, d_scores: Tensor, out: Tensor) -> None:
        """Σ_ij dU_ij S_{i+a, j+b} of each head: (c, 9). What `apply` gave is overwritten."""
        for tap, (a, b) in enumerate(_OFFSETS):
            product = torch.mul(d_scores.flatten(1), self._shifted(heads, a, b), out=self._result[: len(out)])
            torch.sum(product, 1, out=out[:, tap])

    def _shifted(self, heads: slice, a: int, b: int) -> Tensor:
        start = self.around + a * self.side + b
        count = heads.stop - heads.start
        return self._scores[start : start + count * self.side**2].view(count, -1)


def _weights(q: Tensor, k: Tensor, kernel: Tensor) -> Iterator[tuple[slice, _Stencil, Tensor]]:
    """Yield (heads, the stencil with their scores in its room, softmax weights (c, N + 1, N + 1)), chunk by chunk.

    q, k: (BH, N + 1, d) whose last token is zero. The last column of the weights is zero, their last row means nothing.
    """
    stencil = _Stencil(q, kernel)
    for start in range(0, len(q), stencil.size):
        heads = slice(start, min(start + stencil.size, len(q)))
        scaled_product(q[heads], k[heads].transpose(1, 2), q.shape[-1], stencil.room(heads))
        weights = stencil.apply(heads)
        weights[:, :, -1] = -torch.inf
        torch.softmax(weights, -1, out=weights)
        weights[:, -1] = 0.0
        yield heads, stencil, weights


def _with_zero_token(t: Tensor) -> Tensor:
    """(B, h, N, d) -> (B · h, N + 1, d)."""
    return F.pad(t, (0, 0, 0, 1)).flatten(0, 1)
