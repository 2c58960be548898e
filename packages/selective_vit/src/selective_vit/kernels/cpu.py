"""Selective attention on a CPU: a few heads at a time, in buffers that stay in the cache.

Computing the weights of all heads at once, 15 MB for ViT-B/16 with batch size 8, costs more in page faults and memory
traffic than in arithmetic, and torch's fused kernel cannot apply a threshold. So each chunk does all steps before the
next one starts. The backward pass recomputes the weights, and regenerates the dropout mask from the same random seed.

Shapes: B batch, h heads, N queries, M keys, d head_dim; c = images × heads of one chunk.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vit_core.models.cpu_kernel import scaled_product
from vit_core.models.dropout import fill_keep_mask, keep_probability

# Weights per chunk: one image of ViT-B/16 (12 × 197 × 197), so that a chunk's heads need no copy.
_CHUNK_WEIGHTS = 480_000
# Operators that need one pass instead of several:
_softshrink = torch.ops.aten.softshrink.out  # P − τ where P > τ, else 0, since P is not negative
_where_positive = torch.ops.aten.threshold_backward.grad_input  # the gradient where w > 0, else 0
_softmax_backward = torch.ops.aten._softmax_backward_data.out  # P (dw − Σ P dw)


def chunked_selective_attention(
    q: Tensor, k: Tensor, v: Tensor, tau: float, mode: str, empty_row: str, eps: float, dropout_p: float = 0.0
) -> Tensor:
    """q (B, h, N, d), k and v (B, h, M, d) -> (B, h, N, d)."""
    return _ChunkedSelectiveAttention.apply(q, k, v, float(tau), mode == "relu", empty_row == "argmax", eps, dropout_p)


class _ChunkedSelectiveAttention(torch.autograd.Function):
    """(q (B, h, N, d), k, v (B, h, M, d), τ, relu, argmax, ε, dropout) -> (B, h, N, d), in memory (B, N, h, d)."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, q: Tensor, k: Tensor, v: Tensor, tau: float, relu: bool, argmax: bool, eps: float, dropout_p: float
    ) -> Tensor:
        seed = int(torch.randint(2**62, ())) if dropout_p > 0.0 else None  # torch's generator: resume is exact
        B, h, N, _ = q.shape
        size = _chunk_size(q, k)
        sums, totals = q.new_empty(B, h, N, v.shape[-1]), q.new_empty(B, h, N, 1)  # w V and Σ w
        parts = _parts(size, v, sums)
        selected = _selected(size, q, k, totals, tau, relu, argmax, dropout_p, seed, keep_softmax=False)
        for (v_part, sum_part), (_, w, _, mask) in zip(parts, selected, strict=True):
            torch.bmm(w if mask is None else w.mul_(mask), v_part, out=sum_part)
        keep = keep_probability(dropout_p) or 1.0  # if nothing is kept, the sum is zero
        out = q.new_empty(B, N, h, v.shape[-1]).transpose(1, 2)
        torch.div(sums, totals.add_(eps).mul_(keep), out=out)
        ctx.save_for_backward(q, k, v, out)
        ctx.settings = (tau, relu, argmax, dropout_p, seed)
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor) -> tuple[Any, ...]:  # type: ignore[no-untyped-def]
        """With S = Σ w + ε and A = w / S: dw = (dA − Σ A dA) / S where w passed, ds = P (dw − Σ P dw)."""
        q, k, v, out = ctx.saved_tensors
        size = _chunk_size(q, k)
        dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype) for t in (q, k, v))
        keep = keep_probability(ctx.settings[3]) or 1.0
        delta = (grad_out * out).sum(-1, keepdim=True)  # Σ A dA = dO · O, with dropout too
        dw_buffer = None
        parts = _parts(size, q, k, v, grad_out, delta, dq, dk, dv)
        totals = torch.empty_like(delta)
        for part, (P, w, total, mask) in zip(parts, _selected(size, q, k, totals, *ctx.settings), strict=True):
            q_part, k_part, v_part, g, d, dq_part, dk_part, dv_part = part
            dw_buffer = torch.empty_like(P) if dw_buffer is None else dw_buffer
            dw = dw_buffer[: len(P)]
            total.add_(ctx.eps)
            d_out, d_delta = g / (total * keep), d / total
            torch.bmm(d_out, v_part.transpose(1, 2), out=dw)
            if mask is not None:
                dw.mul_(mask)
            _where_positive(dw.sub_(d_delta), w, 0.0, grad_input=dw)
            torch.bmm((w if mask is None else w.mul_(mask)).transpose(1, 2), d_out, out=dv_part)
            d_scores = _softmax_backward(dw, P, -1, P.dtype, grad_input=dw)
            scaled_product(d_scores, k_part, q.shape[-1], dq_part)
            scaled_product(d_scores.transpose(1, 2), q_part, q.shape[-1], dk_part)
        return dq, dk, dv, None, None, None, None, None


def _chunk_size(q: Tensor, k: Tensor) -> tuple[int, int]:
    """(images, heads) of a chunk: several whole images, or part of one."""
    weights = q.shape[2] * k.shape[2]
    return max(1, _CHUNK_WEIGHTS // (q.shape[1] * weights)), min(q.shape[1], max(1, _CHUNK_WEIGHTS // weights))


def _parts(size: tuple[int, int], *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The chunks of each (B, h, N, d) as (c, N, d): views if a chunk is of one image or the tensor is contiguous."""
    images, heads = size

    def of(t: Tensor) -> list[Tensor]:
        if heads < t.shape[1]:
            return [part for image in t.unbind(0) for part in image.split(heads)]
        return list(t.unbind(0)) if images == 1 else [part.flatten(0, 1) for part in t.split(images)]

    return zip(*map(of, tensors), strict=True)


def _selected(
    size: tuple[int, int],
    q: Tensor,
    k: Tensor,
    totals: Tensor,
    tau: float,
    relu: bool,
    argmax: bool,
    dropout_p: float,
    seed: int | None,
    *,
    keep_softmax: bool = True,
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """Yield for each chunk P (c, N, M), w (c, N, M), Σ w (c, N, 1) and the keep mask or None; the buffers are reused.

    Σ w is written to `totals` (B, h, N, 1). Without `keep_softmax` w overwrites P, which halves the memory traffic.
    """
    generator = torch.Generator().manual_seed(seed) if seed is not None else None
    P_buffer = q.new_empty(min(size[0], len(q)) * size[1], q.shape[2], k.shape[2])
    w_buffer = torch.empty_like(P_buffer) if keep_softmax else P_buffer
    masks = torch.empty_like(P_buffer) if seed is not None else None
    for q_part, k_part, total in _parts(size, q, k.transpose(-2, -1), totals):
        n = len(q_part)
        P, w = (P_buffer, w_buffer) if n == len(P_buffer) else (P_buffer[:n], w_buffer[:n])
        _softmax_weights(q_part, k_part, P)
        if relu:
            _softshrink(P, tau, out=w)
        else:
            torch.threshold(P, tau, 0.0, out=w)
        torch.sum(w, -1, keepdim=True, out=total)
        if argmax and not total.min().item() > 0:  # also for NaN
            if w_buffer is P_buffer:  # P was overwritten; keep it from now on, as other chunks will also need it
                P = _softmax_weights(q_part, k_part, torch.empty_like(P))
                w_buffer = torch.empty_like(P_buffer)
            _keep_strongest(P, w, total)
        mask = None if masks is None else fill_keep_mask(masks[:n], dropout_p, generator)
        yield P, w, total, mask


def _softmax_weights(q: Tensor, k_transposed: Tensor, out: Tensor) -> Tensor:
    scaled_product(q, k_transposed, q.shape[-1], out)
    return torch.softmax(out, -1, out=out)


def _keep_strongest(P: Tensor, w: Tensor, total: Tensor) -> None:
    """Put the largest weight of P into the rows of w in which no weight passed, in place."""
    empty = total == 0
    i, r, _ = empty.nonzero(as_tuple=True)
    if 4 * len(i) < empty.numel():  # gathering a few rows is faster than searching all
        most, where = P[i, r].max(-1)
        w[i, r, where] = most
        total[i, r, 0] = most
    else:
        most, where = P.max(-1, keepdim=True)
        most *= empty
        w.scatter_add_(-1, where, most)
        total += most
