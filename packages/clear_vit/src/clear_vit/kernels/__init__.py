"""Faster implementations of the package's formulas, and `choose`, which selects them.

The formulas also work without them: to remove a kernel, delete its file and its entry below.
"""

from collections.abc import Callable

from torch import Tensor

from clear_vit.kernels import cpu, cuda
from vit_core.models import cpu_kernel

CPU: dict[str, Callable[..., Tensor]] = {"rotate": cpu.rotate, "suppressed_attention": cpu.suppressed_attention}
CUDA: dict[str, Callable[..., Tensor]] = {"suppressed_attention": cuda.suppressed_attention}


def choose(formula: str, *tensors: Tensor, dropout_p: float = 0.0) -> Callable[..., Tensor] | None:
    """The kernel that computes `formula` for these tensors, or None to use the formula itself.

    None while the model is traced, exported or compiled, and while its attention is captured.
    """
    if cpu_kernel.formula_needed(*tensors):
        return None
    if all(t.device.type == "cuda" for t in tensors):
        return CUDA.get(formula)
    if dropout_p == 0.0 and cpu_kernel.applies(*tensors):  # not under autocast
        return CPU.get(formula)
    return None
