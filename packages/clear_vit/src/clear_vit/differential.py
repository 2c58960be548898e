"""Differential attention, (A₁ − λ A₂) V, with a λ for each query: A₁ and A₂ are softmax maps of half a head each.

On a CPU the two maps of wide heads become one before the product with V, a few heads at a time in buffers that stay in
the cache: `_ChunkedDifference`. Everywhere else, and where somebody looks on, each map is a call of fused attention.

Shapes: B batch, h heads, N tokens, d head_dim; BH is images × heads.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vit_core.models import cpu_kernel
from vit_core.models.attention import attention
from vit_core.models.cpu_kernel import scaled_product

# Scores of one map in one chunk: two images of ViT-Tiny at 256 × 256.
_CHUNK_SCORES = 400_000
# Below this width the products with half a head are slower than two calls of the fused attention.
_WIDE_HEAD = 64


def differential_attention(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, dropout_p: float = 0.0) -> Tensor:
    """(softmax(q₁ k₁ᵀ / √(d/2)) − λ softmax(q₂ k₂ᵀ / √(d/2))) v, with dropout on the weights of both.

    q, k, v (B, h, N, d) with an even d, of which q₁ and k₁ are the first half; lam (B, N), a row's -> (B, h, N, d).
    """
    lam = lam.to(v.dtype)
    if dropout_p == 0.0 and q.shape[-1] >= _WIDE_HEAD and cpu_kernel.applies(q, k, v, lam):
        return _ChunkedDifference.apply(q, k, v, lam)
    first, second = (attention(half, k, v, dropout_p) for half in _halves_alone(q))
    return torch.addcmul(first, lam[:, None, :, None], second, value=-1)


def _halves_alone(q: Tensor) -> tuple[Tensor, Tensor]:
    """q with zeros in the other half of its channels, which leave that out of the product with k: one width for all.

    Times √2, since attention divides by √d.
    """
    d = q.shape[-1]
    mask = (torch.arange(d, device=q.device) < d // 2).to(q.dtype) * 2**0.5
    return q * mask, q * mask.flip(0)


class _ChunkedDifference(torch.autograd.Function):
    """One map P = A₁ − λ A₂ and one product with V. The backward pass computes A₁ and A₂ again."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, lam: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(q, k, v, lam)
        values, lams = v.flatten(0, 1), _of_heads(lam, q.shape[1])
        out = torch.empty_like(values, memory_format=torch.contiguous_format)
        for heads, first, second in _maps(_halves(q), _halves(k)):
            difference = first.addcmul_(second, lams[heads], value=-1)
            torch.bmm(difference, values[heads], out=out[heads])
        return out.view(v.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor) -> tuple[Any, ...]:  # type: ignore[no-untyped-def]
        """dA₁ = dP and dA₂ = −λ dP; of a softmax A: dS = A (dA − Σ A dA). dλ = −Σ A₂ dP."""
        q, k, v, lam = ctx.saved_tensors
        queries, keys, lams = _halves(q), _halves(k), _of_heads(lam, q.shape[1])
        values, grad = v.flatten(0, 1), grad_out.flatten(0, 1)
        dq, dk = torch.empty_like(queries), torch.empty_like(keys)
        dv = torch.empty_like(values, memory_format=torch.contiguous_format)
        d_lams, half = torch.empty_like(lams), queries.shape[-1]
        buffer = None
        for heads, first, second in _maps(queries, keys):
            buffer = torch.empty(2, *first.shape, dtype=q.dtype) if buffer is None else buffer[:, : len(first)]
            d_map, d_scores = buffer
            difference = torch.addcmul(first, second, lams[heads], value=-1, out=d_scores)
            torch.bmm(difference.transpose(1, 2), grad[heads], out=dv[heads])
            torch.bmm(grad[heads], values[heads].transpose(1, 2), out=d_map)
            torch.ops.aten._softmax_backward_data.out(d_map, first, -1, first.dtype, grad_input=d_scores)
            scaled_product(d_scores, keys[0, heads], half, dq[0, heads])
            scaled_product(d_scores.transpose(1, 2), queries[0, heads], half, dk[0, heads])
            d_map.mul_(second)
            sums = d_map.sum(-1, keepdim=True)
            torch.neg(sums, out=d_lams[heads])
            d_map.addcmul_(second, sums, value=-1).mul_(-lams[heads])
            scaled_product(d_map, keys[1, heads], half, dq[1, heads])
            scaled_product(d_map.transpose(1, 2), queries[1, heads], half, dk[1, heads])
        d_lam = d_lams.view(*q.shape[:3]).sum(1)
        return _whole(dq, q), _whole(dk, k), dv.view(v.shape), d_lam


def _halves(t: Tensor) -> Tensor:
    """(B, h, N, d) -> (2, BH, N, d/2)."""
    return t.unflatten(-1, (2, -1)).permute(3, 0, 1, 2, 4).flatten(1, 2).contiguous()


def _whole(halves: Tensor, like: Tensor) -> Tensor:
    """`_halves` back: (2, BH, N, d/2) -> (B, h, N, d)."""
    return halves.permute(1, 2, 0, 3).reshape(like.shape)


def _of_heads(lam: Tensor, heads: int) -> Tensor:
    """(B, N) -> (BH, N, 1)."""
    return lam[:, None, :, None].expand(-1, heads, -1, -1).flatten(0, 1)


def _maps(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield (heads, A₁, A₂), both (c, N, N), chunk by chunk; the buffers are reused."""
    _, BH, N, _ = queries.shape
    size = max(1, min(BH, _CHUNK_SCORES // N**2))
    buffer = queries.new_empty(2, size, N, N)
    for start in range(0, BH, size):
        heads = slice(start, min(start + size, BH))
        maps = buffer[:, : heads.stop - start]
        for i in range(2):
            scaled_product(queries[i, heads], keys[i, heads].transpose(1, 2), queries.shape[-1], maps[i])
            torch.softmax(maps[i], -1, out=maps[i])
        yield heads, maps[0], maps[1]
