"""Softmax attention `attention(q, k, v)`, which selects one of three backends.

flash-attn    if installed, for fp16 and bf16 tensors on CUDA whose head_dim is a multiple of 8
chunked       on a CPU, for attention dropout, very narrow heads, or values of another width than queries
              (see `_ChunkedAttention`)
SDPA          `torch.nn.functional.scaled_dot_product_attention`, in all other cases

Shapes: B batch, h heads, N queries, M keys, d head_dim.
"""

import importlib.util
import logging
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function_unary, has_torch_function_variadic

from vit_core.models.dropout import fill_keep_mask, keep_probability

log = logging.getLogger(__name__)
_logged: set[tuple[str, str]] = set()
_FLASH_ATTN_INSTALLED = importlib.util.find_spec("flash_attn") is not None

# Scores per chunk: 1.3 MB in float32, which fits in the L2 cache.
_CHUNK_SCORES = 340_000
# Below this width torch's fused CPU kernel is slower than plain matrix products (2.4 ns per score at head_dim 4).
_NARROW_HEAD = 16


def attention(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
    """softmax(q kᵀ / √d) v with dropout on the weights.

    q (B, h, N, d), k (B, h, M, d), v (B, h, M, e), where e is d in most models -> (B, h, N, e).
    """
    if has_torch_function_variadic(q, k, v):  # a TorchFunctionMode is active, such as explain.capture_attention
        return handle_torch_function(attention, (q, k, v), q, k, v, dropout_p=dropout_p)
    backend = choose_backend(q.device.type, q.dtype, q.shape[-1], dropout_p, v.shape[-1])
    if not torch.compiler.is_compiling():
        _log_choice(backend, q.device.type)
    if backend == "flash-attn":
        return _flash(q, k, v, dropout_p)
    if backend == "chunked":
        B, h, N, d = q.shape
        M, e = k.shape[2], v.shape[-1]
        out = _ChunkedAttention.apply(q.reshape(B * h, N, d), k.reshape(B * h, M, d), v.reshape(B * h, M, e), dropout_p)
        return out.view(B, h, N, e)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)


def observed(weights: Tensor) -> Tensor:
    """Return softmax weights (B, h, N, M) unchanged, so that `explain.capture_attention` can record them."""
    if has_torch_function_unary(weights):
        return handle_torch_function(observed, (weights,), weights)
    return weights


def masked_softmax(scores: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """Softmax of scores (…, N, M) with SDPA's masks: boolean (True is kept) or float (added).

    A query whose keys are all masked gets zeros, as in torch, not NaN.
    """
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is None:
        return scores.softmax(-1)
    is_bool = attn_mask.dtype == torch.bool
    scores = scores.masked_fill(~attn_mask, -torch.inf) if is_bool else scores + attn_mask
    blind = (scores == -torch.inf).all(-1, keepdim=True)
    return scores.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)


def choose_backend(
    device: str, dtype: torch.dtype, head_dim: int, dropout_p: float = 0.0, value_dim: int | None = None
) -> str:
    """The backend that `attention` uses for such tensors: "flash-attn", "chunked" or "SDPA".

    value_dim: width of the values, if different from head_dim.
    """
    half = dtype in (torch.float16, torch.bfloat16)
    one_width = value_dim in (None, head_dim)
    if device == "cuda" and half and head_dim % 8 == 0 and head_dim <= 256 and one_width and flash_attn_installed():
        return "flash-attn"
    if device == "cpu" and not half and not torch.compiler.is_compiling():
        return "chunked" if dropout_p > 0.0 or head_dim < _NARROW_HEAD or not one_width else "SDPA"
    return "SDPA"


def flash_attn_installed() -> bool:
    """Whether the optional extra `flash-attn` can be imported."""
    return _FLASH_ATTN_INSTALLED


def _log_choice(backend: str, device: str) -> None:
    """Log each choice once per process, not once per step."""
    if (backend, device) not in _logged:
        _logged.add((backend, device))
        log.info("attention on %s: %s", device, backend)


def _flash(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
    from flash_attn import flash_attn_func

    # flash-attn needs (B, N, h, d) and a single dtype: under autocast, k and v may be float32 with q in half precision.
    q, k, v = (t.transpose(1, 2).to(q.dtype).contiguous() for t in (q, k, v))
    return flash_attn_func(q, k, v, dropout_p=dropout_p).transpose(1, 2)


class _ChunkedAttention(torch.autograd.Function):
    """Attention on a CPU over a few heads at a time, in preallocated buffers.

    It avoids storing the N × M weights of all heads (the page faults cost more than the arithmetic), torch's fused
    kernel for very narrow heads, and torch's unfused path with dropout. The dropout mask is not stored: the backward
    pass draws it again from the same seed.
    Tensors are (BH, N, d) with batch and heads merged. Products are computed transposed, (d, N) instead of (N, d),
    which is twice as fast for d = 4.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:  # type: ignore[no-untyped-def]
        seed = int(torch.randint(2**62, ())) if dropout_p > 0.0 else None  # from torch's generator: resume is exact
        qt, kt, vt = (t.transpose(1, 2).contiguous() for t in (q * q.shape[-1] ** -0.5, k, v))
        out_t = vt.new_empty(len(qt), vt.shape[1], qt.shape[2])
        for rows, weights, mask in _weights(qt, kt, dropout_p, seed):
            if mask is not None:
                weights *= mask
            torch.bmm(vt[rows], weights.transpose(1, 2), out=out_t[rows])
        keep = keep_probability(dropout_p)
        if dropout_p > 0.0 and keep > 0.0:
            out_t /= keep
        ctx.save_for_backward(qt, kt, vt, out_t)
        ctx.dropout_p, ctx.seed = dropout_p, seed
        return out_t.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor):  # type: ignore[no-untyped-def]
        qt, kt, vt, out_t = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(qt), torch.empty_like(kt), torch.empty_like(vt)
        grad_t = grad_out.transpose(1, 2).contiguous()
        # Σ_j P_ij dP_ij = dO_i · O_i, also with dropout: the sum is over the kept weights.
        delta = (grad_t * out_t).sum(1).unsqueeze(2)  # (BH, N, 1)
        keep = keep_probability(ctx.dropout_p)
        if ctx.dropout_p > 0.0 and keep > 0.0:
            grad_t /= keep
        buffer = None
        for rows, weights, mask in _weights(qt, kt, ctx.dropout_p, ctx.seed):
            buffer = torch.empty_like(weights) if buffer is None else buffer
            d_weights = buffer[: weights.shape[0]]
            dropped = weights if mask is None else torch.mul(weights, mask, out=d_weights)
            torch.bmm(grad_t[rows], dropped, out=dv[rows])
            torch.bmm(grad_t[rows].transpose(1, 2), vt[rows], out=d_weights)
            if mask is not None:
                d_weights *= mask
            d_weights.sub_(delta[rows]).mul_(weights)  # gradient of the scores
            torch.bmm(kt[rows], d_weights.transpose(1, 2), out=dq[rows])
            torch.bmm(qt[rows], d_weights, out=dk[rows])
        dq *= qt.shape[1] ** -0.5
        return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2), None


def _weights(
    qt: Tensor, kt: Tensor, dropout_p: float, seed: int | None
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Yield (rows, softmax weights (c, N, M), keep mask or None) for c heads at a time; the buffers are reused."""
    BH, _, N = qt.shape
    M = kt.shape[2]
    c = max(1, min(BH, _CHUNK_SCORES // (N * M)))
    scores = qt.new_empty(c, N, M)
    masks = qt.new_empty(c, N, M) if seed is not None else None
    generator = torch.Generator().manual_seed(seed) if seed is not None else None
    for start in range(0, BH, c):
        rows = slice(start, min(start + c, BH))
        weights = scores[: rows.stop - start]
        torch.bmm(qt[rows].transpose(1, 2), kt[rows], out=weights)
        torch.softmax(weights, -1, out=weights)
        mask = None if masks is None else fill_keep_mask(masks[: rows.stop - start], dropout_p, generator)
        yield rows, weights, mask
