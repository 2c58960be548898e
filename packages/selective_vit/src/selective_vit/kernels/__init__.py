"""Faster implementations of `attention.selective_attention`, and `choose`, which selects them.

The formula also works without them: to remove a kernel, delete its file and its lines here.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from selective_vit.kernels.cpu import chunked_selective_attention
from selective_vit.kernels.flex import flex_selective_attention
from vit_core.models import cpu_kernel


def choose(
    kernel: str, q: Tensor, k: Tensor, v: Tensor, tau: float | Tensor, *, masked: bool, watched: bool, dropout_p: float
) -> Callable[..., Tensor] | None:
    """A kernel that takes (q, k, v, τ, mode, empty_row, ε, dropout_p), or None to use the formula itself.

    kernel: "auto", "weights" for the formula, or "flex". None while the model is traced or exported, and while its
    attention is captured; for "auto" also under `torch.compile` and autocast.
    Raises ValueError if "flex" does not support the arguments on a GPU.
    """
    if torch.compiler.is_exporting() or torch.jit.is_tracing() or has_torch_function_variadic(q, k, v):
        return None
    if kernel == "flex" and q.device.type == "cuda":
        if isinstance(tau, Tensor):
            raise ValueError('kernel="flex" supports fixed thresholds only; got a tensor')
        if masked:
            raise ValueError('kernel="flex" does not support attention masks')
        if dropout_p:
            raise ValueError('kernel="flex" does not support attention dropout')
        return flex_selective_attention
    plain = not masked and not watched and not isinstance(tau, Tensor)
    return chunked_selective_attention if kernel != "weights" and plain and cpu_kernel.applies(q, k, v) else None
