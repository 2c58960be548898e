"""The paper's attention: softmax weights up to a threshold are removed, and the rest is renormalized.

    P = softmax(Q Kᵀ / √d)
    w = ReLU(P − τ)      "relu", the paper's formula
    w = P · [P > τ]      "hard", the original's notebook
    out = w V / (Σ w + ε)

A row in which no weight passes gives zero, as published (empty_row="zero"), or keeps its largest weight ("argmax").
Dropout is applied to the normalized weights. `kernels/` computes the same without storing the N × M weights: on a CPU,
and with kernel="flex" on a GPU.

Shapes: B batch, h heads, N queries, M keys, d head_dim.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

from selective_vit.kernels import choose
from vit_core.models.attention import masked_softmax, observed

MODES = ("relu", "hard")
EMPTY_ROWS = ("argmax", "zero")
KERNELS = ("auto", "weights", "flex")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How weights are selected, given the threshold."""

    mode: str = "relu"
    empty_row: str = "argmax"  # ours; "zero" is as published
    eps: float = 1e-6
    kernel: str = "auto"  # or "weights": the plain formula; "flex": FlexAttention on a GPU

    def __post_init__(self) -> None:
        for name, values in (("mode", MODES), ("empty_row", EMPTY_ROWS), ("kernel", KERNELS)):
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {', '.join(values)}; got {getattr(self, name)!r}")
        number("eps", self.eps)
        if not 0 < self.eps <= 1e6:
            raise ValueError(f"eps must be positive and at most 1e6, got {self.eps}")


def number(name: str, value: object) -> None:
    """Raise ValueError unless an argument is a finite real number; strings are not accepted."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")


def selective_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tau: float | Tensor,
    selection: Selection,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    dropout_p: float = 0.0,
    watch: Callable[[Tensor, float | Tensor], None] | None = None,
) -> Tensor:
    """q (B, h, N, d), k and v (B, h, M, d) -> (B, h, N, d).

    tau: the threshold, a number, or a tensor broadcastable to (h, 1, 1), which then gets a gradient.
    attn_mask, is_causal: as in torch's `scaled_dot_product_attention`.
    watch: called with the softmax weights P and with tau.
    Raises ValueError if kernel="flex" does not support the arguments on a GPU.
    """
    masked = attn_mask is not None or is_causal
    fast = choose(selection.kernel, q, k, v, tau, masked=masked, watched=watch is not None, dropout_p=dropout_p)
    if fast is not None:
        return fast(q, k, v, tau, selection.mode, selection.empty_row, selection.eps, dropout_p)
    kind = torch.promote_types(q.dtype, torch.float32)  # bfloat16 is too coarse to compare with τ
    with torch.autocast(q.device.type, enabled=False):
        scores = (q.to(kind) @ k.to(kind).transpose(-2, -1)) * q.shape[-1] ** -0.5
        P = masked_softmax(scores, attn_mask, is_causal)
        if watch is not None:
            watch(P, tau)
        weights = selected_weights(P, tau, selection)
        return F.dropout(weights, dropout_p).to(v.dtype) @ v


def selected_weights(P: Tensor, tau: float | Tensor, selection: Selection) -> Tensor:
    """Softmax weights P (B, h, N, M) -> the weights that multiply the values, w / (Σ w + ε)."""
    w = select(P, tau, selection)
    return observed(w / (w.sum(-1, keepdim=True) + selection.eps))


def select(P: Tensor, tau: float | Tensor, selection: Selection) -> Tensor:
    """Softmax weights P (…, N, M) -> the weights that pass, not normalized.

    A tensor `tau` gets a gradient: in the ReLU form the exact one, −1 for each weight that passes. The hard gate is a
    step function with zero gradient; its gradient is replaced by that of a sigmoid of width τ / 4 (straight-through),
    so that it comes from the weights near the threshold.
    """
    if selection.mode == "relu":
        w = (P - tau).relu()
    else:
        gate = torch.gt(P, tau).to(P.dtype)
        if isinstance(tau, Tensor) and tau.requires_grad:
            near = soft_gate(P.detach(), tau)
            gate = gate + (near - near.detach())
        w = P * gate
    if selection.empty_row == "argmax":
        empty = (w <= 0).all(-1, keepdim=True)
        strongest = torch.zeros_like(P).scatter_(-1, P.argmax(-1, keepdim=True), 1.0)
        w = torch.where(empty, P * strongest, w)
    return w


def soft_gate(P: Tensor, tau: float | Tensor) -> Tensor:
    """A smooth version of [P > τ]: a sigmoid of width τ / 4."""
    width = tau.detach() if isinstance(tau, Tensor) else torch.tensor(tau, dtype=P.dtype, device=P.device)
    return torch.sigmoid((P - tau) / (width / 4).clamp_min(1e-12))
