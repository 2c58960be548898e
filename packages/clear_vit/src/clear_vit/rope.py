"""Rotary position embedding in two dimensions: what the README calls its RoPE extension.

A pair of channels of the query or key at place (x, y) is turned by the angle x·f_x + y·f_y. "mixed" (Heo et al., Rotary
Position Embedding for Vision Transformer, ECCV 2024, eq. 14; code: naver-ai/rope-vit) learns the frequencies f of every
layer, head and pair; "axial" turns one half of the pairs with x and the other with y, by fixed frequencies (eq. 12).

A rotation R of the queries and one of the keys give the scores (R(a) q)ᵀ R(b) k = qᵀ R(b − a) k: they depend on the
difference of places alone. To rotate "Q-K pairs relative to each other", as the README has it, is the same thing.

Shapes: N tokens (the class token first, which stays as it is), h heads, d head_dim.
"""

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Grid = tuple[int, int]  # rows, columns


class Rope(nn.Module):
    """Frequencies, and the cosines and sines that they make on a grid.

    kind: "mixed" or "axial". theta: the slowest frequency is about 1/θ; 10 for mixed and 100 for axial in rope-vit.
    Raises ValueError for another kind, and for a head_dim that has no whole number of pairs for each axis.
    """

    def __init__(self, kind: str, depth: int, num_heads: int, head_dim: int, theta: float | None = None) -> None:
        super().__init__()
        if kind not in ("mixed", "axial"):
            raise ValueError(f"rope must be mixed or axial, got {kind!r}")
        if head_dim % 4:
            raise ValueError(f"rope needs a head_dim that is a multiple of 4, got {head_dim}")
        theta = {"mixed": 10.0, "axial": 100.0}[kind] if theta is None else theta
        if not (math.isfinite(theta) and theta > 0):
            raise ValueError(f"rope_theta must be a number over 0, got {theta}")
        self.kind, self.theta, self.depth = kind, theta, depth
        self._cached: tuple[Grid, Tensor, list[Tensor]] | None = None
        if kind == "mixed":
            self.freqs = nn.Parameter(torch.empty(2, depth, num_heads, head_dim // 2))
        else:
            self.register_buffer("freqs", torch.empty(2, 1, 1, head_dim // 2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """θ^(−4i/d) along two directions at a right angle: those of the axes, or turned at random, a layer and head."""
        head_dim = 2 * self.freqs.shape[-1]
        magnitude = self.theta ** (-torch.arange(0, head_dim, 4, device=self.freqs.device).float() / head_dim)
        turn = 2 * math.pi * torch.rand(self.freqs.shape[1:3], device=self.freqs.device) * (self.kind == "mixed")
        with torch.no_grad():
            for axis, direction in zip(self.freqs, (torch.cos, torch.sin), strict=True):
                pairs = [magnitude * direction(turn + right_angle)[..., None] for right_angle in (0.0, math.pi / 2)]
                axis.copy_(torch.cat(pairs, -1))

    def forward(self, grid: Grid) -> list[Tensor]:
        """Cosines and sines for `rotate`, a table a layer: (2, 1 + N, 1, h or 1, d/2).

        Computed once a forward pass; on a CPU they are kept in evaluation until the grid or the frequencies change. (On
        a GPU to ask whether these changed would take longer.)
        """
        f = self.freqs
        learns = torch.is_grad_enabled() and f.requires_grad
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if self.training or learns or traced or f.device.type != "cpu" or f.is_inference():
            return self._tables(grid)
        kept = self._cached
        if kept is None or kept[0] != grid or kept[1].dtype != f.dtype or not torch.equal(kept[1], f):
            with torch.inference_mode(False), torch.no_grad():  # tensors that a later backward pass may use
                kept = self._cached = grid, f.detach().clone(), self._tables(grid)
        return kept[2]

    def _tables(self, grid: Grid) -> list[Tensor]:
        freqs = self.freqs.to(torch.promote_types(self.freqs.dtype, torch.float32))
        rows, columns = grid
        place = torch.arange(rows * columns, device=freqs.device)
        x, y = (  # the class token's angle is 0
            torch.cat([place.new_zeros(1), p]).to(freqs.dtype)[:, None, None]
            for p in (place % columns, place.div(columns, rounding_mode="floor"))
        )
        angle = x * freqs[0, :, None] + y * freqs[1, :, None]  # (depth, 1 + N, h, d/2)
        tables = list(torch.stack([angle.cos(), angle.sin()], 1).unsqueeze(3).unbind())
        return tables if self.kind == "mixed" else tables * self.depth

    def extra_repr(self) -> str:
        return f"{self.kind}, theta={self.theta:g}"


def rotate(qk: Tensor, table: Tensor, *, overwrite: bool = False) -> Tensor:
    """Turn queries and keys (B, 1 + N, 2, h, d), whose channels 2i and 2i + 1 are a pair, by a layer's table
    (2, 1 + N, 1, h, d/2). overwrite: the result may take their place in memory; only where no gradient is wanted.
    """
    cos, sin = table
    if _complex_pays(qk, cos):
        if overwrite:
            return torch.view_as_real(_as_complex(qk).mul_(torch.complex(cos, sin))).flatten(-2)
        return _Rotate.apply(qk, cos, sin)
    x = qk.to(cos.dtype)  # half-precision queries and keys are turned in float32
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], -1)
    return turned.flatten(-2).to(qk.dtype)


def _complex_pays(qk: Tensor, cos: Tensor) -> bool:
    """On a CPU a complex product is a fifth of the time. torch.compile and lower precisions do not know it."""
    return (
        qk.device.type == "cpu"
        and qk.dtype == cos.dtype
        and qk.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
    )


class _Rotate(torch.autograd.Function):
    """Pairs as complex numbers, times cos + i sin. Tables that need no gradient cost nothing in the backward pass."""

    @staticmethod
    def forward(ctx, qk: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        turn = torch.complex(cos, sin)
        pairs = _as_complex(qk)
        ctx.save_for_backward(turn, pairs if ctx.needs_input_grad[1] else None)
        return torch.view_as_real(pairs * turn).flatten(-2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:  # type: ignore[no-untyped-def]
        turn, pairs = ctx.saved_tensors
        conjugate = _as_complex(grad).conj_physical()
        d_cos = d_sin = None
        if pairs is not None:
            d_turn = pairs.new_zeros(pairs.shape[1:])  # conjugate, too
            for image, g in zip(pairs.unbind(), conjugate.unbind(), strict=True):
                d_turn.addcmul_(image, g)
            d_turn = d_turn.sum(1, keepdim=True).sum_to_size(turn.shape)
            d_cos, d_sin = d_turn.real, -d_turn.imag
        d_pairs = (conjugate * turn).conj_physical_()
        return torch.view_as_real(d_pairs).flatten(-2), d_cos, d_sin


def _as_complex(t: Tensor) -> Tensor:
    """(…, d) -> complex (…, d/2), a view where the memory allows one."""
    pairs = t.unflatten(-1, (-1, 2))
    fits = pairs.stride(-1) == 1 and not any(s % 2 for s in (*pairs.stride()[:-1], pairs.storage_offset()))
    return torch.view_as_complex(pairs if fits else pairs.clone(memory_format=torch.contiguous_format))
