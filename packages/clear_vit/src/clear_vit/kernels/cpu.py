"""CPU kernels in full precision: suppression a few heads at a time, and rotation as complex multiplication.

The scores of a few heads stay in the cache, where nine shifted additions replace suppression's convolution.
A complex product rotates a pair of channels in a fifth of the time of four real products.

Shapes: B batch, h heads, N tokens, d head_dim.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vit_core.models.cpu_kernel import scaled_product

# Scores per chunk: four images of ViT-Tiny at 256 × 256, enough work per pass for several cores.
_CHUNK_SCORES = 800_000
_OFFSETS = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]  # rows, columns, in the order of the kernel's taps


# ── suppression ──────────────────────────────────────────────────────────────────────────────────────────────────


def suppressed_attention(q: Tensor, k: Tensor, v: Tensor, kernel: Tensor, dropout_p: float = 0.0) -> Tensor:
    """softmax(S − conv(S)) v, without dropout. q, k, v (B, h, N, d), kernel (h, 3, 3) -> (B, h, N, d)."""
    assert dropout_p == 0.0
    return _StencilAttention.apply(q, k, v, kernel)


class _StencilAttention(torch.autograd.Function):
    """The definition, a few heads at a time; the backward pass recomputes S.

    All tensors are padded with one token of zeros: see `_Stencil`. BH: images × heads.
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
        """With U = S − conv(S): dU = P (dP − Σ P dP), dw_ab = −Σ dU_ij S_{i+a, j+b}, and dS = dU − conv'(dU) with the
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
            # dU; zero weights make its last row and column zero, as the stencil requires.
            torch.ops.aten._softmax_backward_data.out(d_scores, weights, -1, weights.dtype, grad_input=d_scores)
            stencil.products(heads, d_scores, out=d_kernel[heads])
            d_scores = mirrored.apply(heads)
            scaled_product(d_scores, k[heads], q.shape[-1], dq[heads])
            scaled_product(d_scores.transpose(1, 2), q[heads], q.shape[-1], dk[heads])
        grads = (t.view(*shape[:2], *t.shape[1:])[:, :, :-1] for t in (dq, dk, dv))
        return *grads, -d_kernel.view(shape[0], *kernel.shape).sum(0)


class _Stencil:
    """Applies δ − w to the scores of some heads.

    Each head's scores end with a row and a column of zeros, and the heads are contiguous in memory. So the neighbor
    (a, b) of every score, also at the borders, is at one fixed offset, and a tap is one pass without a loop over rows.
    """

    def __init__(self, padded_q: Tensor, kernel: Tensor) -> None:
        heads, self.side, _ = padded_q.shape  # side: N + 1
        area = self.side**2
        self.size = max(1, min(heads, _CHUNK_SCORES // area))
        minus_kernel = F.pad(kernel.new_ones(1, 1), (1, 1, 1, 1)) - kernel  # δ − w
        self.taps = minus_kernel.flatten(1).repeat(heads // len(kernel), 1)  # (BH, 9)
        self.around = self.side + 1  # zeros before the first score and after the last
        self._scores = padded_q.new_empty(self.size * area + 2 * self.around)
        self._scores[: self.around] = 0.0
        self._scores[-self.around :] = 0.0
        self._result = padded_q.new_empty(self.size, area)

    def room(self, heads: slice) -> Tensor:
        """The buffer for the scores of these heads: (c, N + 1, N + 1)."""
        return self._shifted(heads, 0, 0).view(-1, self.side, self.side)

    def apply(self, heads: slice) -> Tensor:
        """S − conv(S) of the scores in `room`: (c, N + 1, N + 1); its last row and column are arbitrary."""
        shifts = [self._shifted(heads, a, b) for a, b in _OFFSETS]
        taps = self.taps[heads].split(1, dim=1)
        out = torch.mul(shifts[0], taps[0], out=self._result[: len(shifts[0])])
        for shifted, tap in zip(shifts[1:], taps[1:], strict=True):
            out.addcmul_(shifted, tap)
        return out.view(-1, self.side, self.side)

    def products(self, heads: slice, d_scores: Tensor, out: Tensor) -> None:
        """Σ_ij dU_ij S_{i+a, j+b} of each head: (c, 9). Overwrites the result of `apply`."""
        for tap, (a, b) in enumerate(_OFFSETS):
            product = torch.mul(d_scores.flatten(1), self._shifted(heads, a, b), out=self._result[: len(out)])
            torch.sum(product, 1, out=out[:, tap])

    def _shifted(self, heads: slice, a: int, b: int) -> Tensor:
        start = self.around + a * self.side + b
        count = heads.stop - heads.start
        return self._scores[start : start + count * self.side**2].view(count, -1)


def _weights(q: Tensor, k: Tensor, kernel: Tensor) -> Iterator[tuple[slice, _Stencil, Tensor]]:
    """Yield (heads, the stencil with their scores in `room`, softmax weights (c, N + 1, N + 1)), chunk by chunk.

    q, k: (BH, N + 1, d) whose last token is zero. The last row and column of the weights are zero.
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


# ── rotation ─────────────────────────────────────────────────────────────────────────────────────────────────────


def rotate(qk: Tensor, cos: Tensor, sin: Tensor, overwrite: bool = False) -> Tensor:
    """Rotate (B, N, 2, h, d) by cos and sin (N, 1, h, d/2). overwrite: in place; only if no gradient is needed."""
    if overwrite:
        return torch.view_as_real(_as_complex(qk).mul_(torch.complex(cos, sin))).flatten(-2)
    return _Rotate.apply(qk, cos, sin)


class _Rotate(torch.autograd.Function):
    """Pairs as complex numbers times cos + i sin. Tables without gradient cost nothing in the backward pass."""

    @staticmethod
    def forward(ctx, qk: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        turn = torch.complex(cos, sin)
        pairs = _as_complex(qk)
        ctx.save_for_backward(turn, pairs if ctx.needs_input_grad[1] else None)
        return torch.view_as_real(pairs * turn).flatten(-2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:  # type: ignore[no-untyped-def]
        turn, pairs = ctx.saved_tensors
        conjugate = _as_complex(grad).conj_physical()
        d_cos = d_sin = None
        if pairs is not None:
            d_turn = pairs.new_zeros(pairs.shape[1:])  # also conjugate
            for image, g in zip(pairs.unbind(), conjugate.unbind(), strict=True):
                d_turn.addcmul_(image, g)
            d_turn = d_turn.sum(1, keepdim=True).sum_to_size(turn.shape)
            d_cos, d_sin = d_turn.real, -d_turn.imag
        d_pairs = (conjugate * turn).conj_physical_()
        return torch.view_as_real(d_pairs).flatten(-2), d_cos, d_sin


def _as_complex(t: Tensor) -> Tensor:
    """(…, d) -> complex (…, d/2), a view if the memory layout allows one."""
    pairs = t.unflatten(-1, (-1, 2))
    fits = pairs.stride(-1) == 1 and not any(s % 2 for s in (*pairs.stride()[:-1], pairs.storage_offset()))
    return torch.view_as_complex(pairs if fits else pairs.clone(memory_format=torch.contiguous_format))
