"""Dropout with fast mask generation on a CPU.

On a CPU, `torch.nn.functional.dropout` draws one double per element from a serial generator: 5.8 ns per element here,
more than half of a training step of a model with attention dropout. One 64-bit draw contains four independent 16-bit
numbers, so four elements cost one draw. The drop probability is therefore rounded to a multiple of 1/65536 (0.1 becomes
0.100006), and kept elements are scaled by the reciprocal of the exact keep probability. On other devices these
functions use torch's dropout.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 65536  # values of one 16-bit number


def keep_probability(p: float) -> float:
    """The exact probability with which `fill_keep_mask` keeps an element."""
    return 1.0 - round(p * _LEVELS) / _LEVELS


def fill_keep_mask(mask: Tensor, p: float, generator: torch.Generator | None = None) -> Tensor:
    """Fill the contiguous CPU tensor `mask` with 1 (kept) and 0 (dropped), independently for each element."""
    draws = torch.empty((mask.numel() + 3) // 4, dtype=torch.int64)
    draws.random_(-(2**63), None, generator=generator)
    numbers = draws.view(torch.int16)[: mask.numel()].view(mask.shape)
    threshold = round(p * _LEVELS) - _LEVELS // 2
    if threshold >= _LEVELS // 2:  # p rounds to 1, whose threshold does not fit in int16
        return mask.zero_()
    return torch.ge(numbers, threshold, out=mask)


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """`torch.nn.functional.dropout` with fast masks on a CPU. x: any shape and floating-point dtype."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability must lie in [0, 1], got {p}")
    if not training or p == 0.0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    keep = keep_probability(p)
    mask = fill_keep_mask(torch.empty(x.shape, dtype=x.dtype), p)
    return x * (mask.div_(keep) if keep > 0.0 else mask)


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` with fast masks on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p, self.training)
