"""Shared by the papers' CPU attention kernels."""

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic


def formula_needed(*tensors: Tensor) -> bool:
    """Whether the plain operations must run: while tracing, exporting or compiling, and while attention is captured."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or has_torch_function_variadic(*tensors)


def applies(*tensors: Tensor) -> bool:
    """Whether a CPU kernel can be used: full precision on a CPU, without autocast, tracing, compiling or capturing."""
    return (
        all(t.device.type == "cpu" and t.dtype == tensors[0].dtype for t in tensors)
        and tensors[0].dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not formula_needed(*tensors)
        and tensors[0].numel() > 0
    )


def scaled_product(a: Tensor, b: Tensor, d: int, out: Tensor) -> None:
    """out = a b / √d, batch by batch: (c, N, k) and (c, k, M) -> (c, N, M)."""
    torch.baddbmm(out, a, b, beta=0, alpha=d**-0.5, out=out)
