"""Checks for claims.yaml's instant entries about the variants: each formula as the paper states it, and its properties.

Formulas are compared in double precision on random inputs, so that remaining differences are rounding errors.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from clear_vit.model import SuppressionAttention
from clear_vit.rope import Rope, rotate
from vit_core.ledger.claims import Value

B, H, N, D = 2, 3, 17, 8  # images, heads, tokens and channels per head of the random inputs
GRID = (16, 16)  # patches of the paper's images


def _double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.double)


def _qkv() -> tuple[Tensor, Tensor, Tensor]:
    return _double(B, H, N, D), _double(B, H, N, D), _double(B, H, N, D)


def _largest(t: Tensor) -> float:
    return float(t.detach().abs().max())


def suppression_to_formula() -> float:
    """Largest difference between suppression and softmax(S − conv(S)) V with torch's depthwise 3 × 3 convolution."""
    attn = SuppressionAttention(H * D, H).double()
    q, k, v = _qkv()
    scores = q @ k.transpose(2, 3) / math.sqrt(D)
    conv = F.conv2d(scores, attn.kernel[:, None], padding=1, groups=H)
    return _largest(attn.attend(q, k, v, v, None) - (scores - conv).softmax(-1) @ v)


# ── rotary position embedding ────────────────────────────────────────────────────────────────────────────────────


def _rope() -> Rope:
    return Rope("mixed", 2, H, D).double()


def pairs_turned_relatively() -> float:
    """Largest difference between the scores of queries and keys rotated independently, as in the model, and the scores
    of pairs in which only the key is rotated, by the difference of the positions.
    """
    r, (q, k) = _rope(), (_double(1 + 12, H, D), _double(1 + 12, H, D))
    turned = rotate(torch.stack([q, k], 1)[None], r((4, 3))[1].detach())[0]
    apart = torch.einsum("nhd,mhd->hnm", turned[1:, 0], turned[1:, 1])
    y, x = torch.arange(12).div(3, rounding_mode="floor").double(), (torch.arange(12) % 3).double()
    fx, fy = r.freqs[:, 1].detach()[:, :, None, None]  # (h, 1, 1, d/2)
    angle = (x - x[:, None])[..., None] * fx + (y - y[:, None])[..., None] * fy  # (h, n, m, d/2)
    query, key = (torch.view_as_complex(t[1:].unflatten(-1, (-1, 2))) for t in (q, k))
    pairs = (
        query.conj()[:, None] * key * torch.polar(torch.ones_like(angle), angle).permute(1, 2, 0, 3)
    )  # (n, m, h, d/2)
    return _largest(apart - pairs.real.sum(-1).permute(2, 0, 1))


def scores_at_equal_distance() -> float:
    """Largest difference of the scores of one query and one key between position pairs with the same offset."""
    same = _double(2, H, D).expand(1, 1 + 20, 2, H, D)
    turned = rotate(same, _rope()((4, 5))[0].detach())
    scores = torch.einsum("nhd,mhd->hnm", turned[0, 1:, 0], turned[0, 1:, 1]).view(H, 4, 5, 4, 5)
    shifted = scores[:, 1:, 1:, 1:, 1:] - scores[:, :-1, :-1, :-1, :-1]  # both shifted by one row and column
    return _largest(shifted)


CHECKS: dict[str, Callable[[], Value]] = {
    f.__name__: f for f in (suppression_to_formula, pairs_turned_relatively, scores_at_equal_distance)
}
