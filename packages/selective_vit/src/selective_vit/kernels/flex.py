"""Selective attention on a GPU without storing the N × M weights: two passes of FlexAttention.

The first pass gives each row's log-sum-exp L, so that P = exp(s − L) for any score s. The second is softmax
attention over modified scores, whose exponentials are the selected weights:

    hard    s            where s > L + log τ, else −∞
    relu    log(P − τ)   where P > τ, else −∞;  L keeps its gradient here, since w depends on it

Each form keeps its own comparison, since s > L + log τ and exp(s − L) > τ round differently near τ.

Rows in which no weight passes are zero; with empty_row="argmax" the largest score of the first pass is kept, and all
scores that equal it up to rounding. FlexAttention divides by Σ w; the factor Σ w / (Σ w + ε) is applied afterwards.

Opt-in with `Selection(kernel="flex")`, since it has not been measured to be faster; on a GPU only, since FlexAttention
has no backward pass on a CPU.

Shapes: B batch, h heads, N queries, M keys, d head_dim.
"""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention


def flex_selective_attention(
    q: Tensor, k: Tensor, v: Tensor, tau: float, mode: str, empty_row: str, eps: float, dropout_p: float = 0.0
) -> Tensor:
    """q (B, h, N, d), k and v (B, h, M, d) -> (B, h, N, d), without dropout.

    Raises ValueError if torch is too old for "argmax".
    """
    assert dropout_p == 0.0
    argmax = empty_row == "argmax" and tau > 0
    _, lse, most = _attend(q, k, v, None, with_max=argmax)
    least = lse.detach() + (math.log(tau) if tau > 0 else -math.inf)  # of s
    tau_there = lse.new_tensor(tau)  # a Python number would be a constant, and each new one recompile
    empty = None  # (B, h, N)
    if argmax:
        empty = most <= least if mode == "hard" else torch.exp(most - lse.detach()) <= tau_there
        most = most - 2e-6 * (1 + most.abs())  # the second pass may round differently

    def strongest(s: Tensor, b: Tensor, head: Tensor, i: Tensor) -> Tensor:
        return s > math.inf if empty is None else empty[b, head, i] & (s >= most[b, head, i])

    if mode == "hard":

        def score(s: Tensor, b: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return torch.where((s > least[b, head, i]) | strongest(s, b, head, i), s, -math.inf)

    else:

        def score(s: Tensor, b: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            p = torch.exp(s - lse[b, head, i])
            w = torch.where(p > tau_there, p - tau_there, 0.0)
            w = torch.where(strongest(s, b, head, i), p, w)
            # For removed weights the logarithm's argument is 1, so that the gradient is 0 and not NaN.
            return torch.where(w > 0, torch.log(torch.where(w > 0, w, 1.0)), -math.inf)

    out, log_sum, _ = _attend(q, k, v, score)
    # relu: log Σ w. hard: the scores are not normalized, so log Σ w + L.
    total = torch.exp(log_sum if mode == "relu" else log_sum - lse)
    return out * (total / (total + eps)).unsqueeze(-1).to(out.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, score: Any, with_max: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(output, log-sum-exp, largest score or an empty tensor) of FlexAttention, compiled on a GPU."""
    on_gpu = q.device.type == "cuda"
    flex = _compiled() if on_gpu else flex_attention
    try:
        from torch.nn.attention.flex_attention import AuxRequest
    except ImportError:  # torch before 2.10
        if with_max and on_gpu:
            raise ValueError(
                f'kernel="flex" with empty_row="argmax" requires torch 2.10 or newer, got {torch.__version__}'
            ) from None
        out, lse = flex(q, k, v, score_mod=score, return_lse=True)
    else:
        out, aux = flex(q, k, v, score_mod=score, return_aux=AuxRequest(lse=True, max_scores=with_max and on_gpu))
        lse = aux.lse
        if with_max and on_gpu:
            return out, lse, aux.max_scores.detach()
    if with_max:  # FlexAttention does not return it on a CPU
        return out, lse, (q @ k.transpose(-2, -1)).detach().amax(-1) * q.shape[-1] ** -0.5
    return out, lse, lse.new_empty(0)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False)
