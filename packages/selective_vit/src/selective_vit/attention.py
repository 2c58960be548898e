"""The paper's attention: softmax weights that do not pass a threshold are removed, the rest sums to one again.

    P = softmax(Q Kᵀ / √d)
    w = ReLU(P − τ)      "relu", the paper's formula
    w = P · [P > τ]      "hard", the original's notebook
    out = w V / (Σ w + ε)

A row in which nothing passes gives zero, as published (empty_row="zero"), or its strongest key alone ("argmax").
Dropout acts on the normalized weights. `kernels/` computes the same without N × M weights in memory: on a CPU, and on a
GPU where kernel="flex" asks for it.

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
    """How weights are selected once the threshold is known."""

    mode: str = "relu"
    empty_row: str = "argmax"  # new work's choice; "zero" is the published one
    eps: float = 1e-6
    kernel: str = "auto"  # or "weights", the plain formula; "flex", FlexAttention on a GPU

    def __post_init__(self) -> None:
        for name, values in (("mode", MODES), ("empty_row", EMPTY_ROWS), ("kernel", KERNELS)):
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {', '.join(values)}; got {getattr(self, name)!r}")
        number("eps", self.eps)
        if not 0 < self.eps <= 1e6:
            raise ValueError(f"eps must be positive and at most 1e6, got {self.eps}")


def number(name: str, value: object) -> None:
    """ValueError unless an argument is a finite real number: a text of one is not."""
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

    tau: the threshold, a number, or a tensor that (h, 1, 1) broadcasts to, which then gets a gradient.
    attn_mask, is_causal: as for torch's `scaled_dot_product_attention`.
    watch: called with the softmax weights P and with tau.
    Raises ValueError where kernel="flex" cannot compute what is asked for on a GPU.
    """
    masked = attn_mask is not None or is_causal
    fast = choose(selection.kernel, q, k, v, tau, masked=masked, watched=watch is not None, dropout_p=dropout_p)
    if fast is not None:
        return fast(q, k, v, tau, selection.mode, selection.empty_row, selection.eps, dropout_p)
    kind = torch.promote_types(q.dtype, torch.float32)  # a bfloat16 has no digits to compare with τ
    with torch.autocast(q.device.type, enabled=False):
        scores = (q.to(kind) @ k.to(kind).transpose(-2, -1)) * q.shape[-1] ** -0.5
        P = masked_softmax(scores, attn_mask, is_causal)
        if watch is not None:
            watch(P, tau)
        weights = selected_weights(P, tau, selection)
        return F.dropout(weights, dropout_p).to(v.dtype) @ v


def selected_weights(P: Tensor, tau: float | Tensor, selection: Selection) -> Tensor:
    """Softmax weights P (B, h, N, M) -> those that the values are multiplied by, w / (Σ w + ε)."""
    w = select(P, tau, selection)
    return observed(w / (w.sum(-1, keepdim=True) + selection.eps))


def select(P: Tensor, tau: float | Tensor, selection: Selection) -> Tensor:
    """Softmax weights P (…, N, M) -> what is left of them, not normalized.

    A tensor `tau` gets a gradient: in the ReLU form its own, −1 for each weight that passes. The hard gate is a step,
    flat on both sides; there the gradient is that of a sigmoid of width τ / 4 in its place (straight-through), so that
    the weights near the threshold say where it should move.
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
    """[P > τ] as a smooth function of both: a sigmoid of width τ / 4."""
    width = tau.detach() if isinstance(tau, Tensor) else torch.tensor(tau, dtype=P.dtype, device=P.device)
    return torch.sigmoid((P - tau) / (width / 4).clamp_min(1e-12))
