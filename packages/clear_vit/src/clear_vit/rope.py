"""Two-dimensional rotary position embedding (RoPE): the README's "RoPE extension".

A pair of channels of the query or key at position (x, y) is rotated by the angle x·f_x + y·f_y. "mixed" (Heo et al.,
Rotary Position Embedding for Vision Transformer, ECCV 2024, eq. 14; code: naver-ai/rope-vit) learns the frequencies f
of every layer, head and pair; "axial" rotates half of the pairs by x and the other half by y, with fixed frequencies
(eq. 12).

Rotating queries and keys gives the scores (R(a) q)ᵀ R(b) k = qᵀ R(b − a) k, which depend only on the difference of the
positions. Rotating "Q-K pairs relative to each other", as the README puts it, is therefore the same.

Shapes: N patches, after the class token, which is not rotated; h heads, d head_dim.
"""

import math

import torch
from torch import Tensor, nn

from clear_vit.kernels import choose

Grid = tuple[int, int]  # rows, columns


class Rope(nn.Module):
    """The frequencies, and their tables of cosines and sines on a grid.

    kind: "mixed" or "axial". theta: the slowest frequency is about 1/θ; 10 for mixed and 100 for axial in rope-vit.
    Raises ValueError for another kind, and if head_dim is not a multiple of 4 (pairs of channels for two axes).
    """

    def __init__(self, kind: str, depth: int, num_heads: int, head_dim: int, theta: float | None = None) -> None:
        super().__init__()
        if kind not in ("mixed", "axial"):
            raise ValueError(f"rope must be mixed or axial, got {kind!r}")
        if head_dim % 4:
            raise ValueError(f"rope: head_dim must be a multiple of 4, got {head_dim}")
        theta = {"mixed": 10.0, "axial": 100.0}[kind] if theta is None else theta
        if not (math.isfinite(theta) and theta > 0):
            raise ValueError(f"rope_theta must be finite and greater than 0, got {theta}")
        self.kind, self.theta, self.depth = kind, theta, depth
        if kind == "mixed":
            self.freqs = nn.Parameter(torch.empty(2, depth, num_heads, head_dim // 2))
        else:
            self.register_buffer("freqs", torch.empty(2, 1, 1, head_dim // 2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """θ^(−4i/d) along two orthogonal directions: the axes; for mixed, rotated at random per layer and head."""
        head_dim = 2 * self.freqs.shape[-1]
        magnitude = self.theta ** (-torch.arange(0, head_dim, 4, device=self.freqs.device).float() / head_dim)
        turn = 2 * math.pi * torch.rand(self.freqs.shape[1:3], device=self.freqs.device) * (self.kind == "mixed")
        with torch.no_grad():
            for axis, direction in zip(self.freqs, (torch.cos, torch.sin), strict=True):
                pairs = [magnitude * direction(turn + right_angle)[..., None] for right_angle in (0.0, math.pi / 2)]
                axis.copy_(torch.cat(pairs, -1))

    def forward(self, grid: Grid) -> list[Tensor]:
        """Cosines and sines for `rotate`, one table per layer: (2, 1 + N, 1, h or 1, d/2)."""
        freqs = self.freqs.to(torch.promote_types(self.freqs.dtype, torch.float32))
        rows, columns = grid
        position = torch.arange(rows * columns, device=freqs.device)
        x, y = (  # the class token's angle is 0
            torch.cat([position.new_zeros(1), p]).to(freqs.dtype)[:, None, None]
            for p in (position % columns, position.div(columns, rounding_mode="floor"))
        )
        angle = x * freqs[0, :, None] + y * freqs[1, :, None]  # (depth, 1 + N, h, d/2)
        tables = list(torch.stack([angle.cos(), angle.sin()], 1).unsqueeze(3).unbind())
        return tables if self.kind == "mixed" else tables * self.depth

    def extra_repr(self) -> str:
        return f"{self.kind}, theta={self.theta:g}"


def rotate(qk: Tensor, table: Tensor, *, overwrite: bool = False) -> Tensor:
    """Rotate queries and keys (B, 1 + N, 2, h, d), whose channels 2i and 2i + 1 are a pair, by a layer's table
    (2, 1 + N, 1, h, d/2). overwrite: the operation may be done in place; only if no gradient is needed.
    """
    cos, sin = table
    if fast := choose("rotate", qk, cos):
        return fast(qk, cos, sin, overwrite)
    x = qk.to(cos.dtype)  # half-precision queries and keys are rotated in float32
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], -1)
    return turned.flatten(-2).to(qk.dtype)
