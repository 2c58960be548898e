"""What claims.yaml's instant entries measure of the variants: each formula as it stands in the paper, and what follows.

Formulas are compared in double precision on random numbers: what is left of a difference is rounding.
"""

import math
from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import RotaryEmbeddingMixed, apply_rot_embed_cat
from torch import Tensor, nn

import clear_vit  # noqa: F401 -- registers the models with timm
from clear_vit.analyze import convolutions
from clear_vit.differential import differential_attention
from clear_vit.entropy import token_entropy, with_class_token
from clear_vit.model import DiffEntropyAttention, DiffSimilarityAttention, SuppressionAttention
from clear_vit.rope import Rope, rotate
from clear_vit.suppression import as_wide_heads
from vit_core.claims import Value

B, H, N, D = 2, 3, 17, 8  # images, heads, tokens and channels a head of the formulas' random numbers
GRID = (16, 16)  # patches of the paper's images


def _double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.double)


def _qkv() -> tuple[Tensor, Tensor, Tensor]:
    return _double(B, H, N, D), _double(B, H, N, D), _double(B, H, N, D)


def _largest(t: Tensor) -> float:
    return float(t.detach().abs().max())


def what_dropout_changes() -> str:
    """What differs between a training and an evaluation pass of the micro model of pos_dropout: compared once as it
    is, once without a position embedding.
    """
    model: Any = timm.create_model("clear_vit_micro_pos_dropout")
    images = torch.randn(2, 3, 32, 32)

    def differs() -> bool:
        with torch.no_grad():
            return _largest(model.train().forward_features(images) - model.eval().forward_features(images)) > 1e-4

    as_it_is = differs()
    nn.init.zeros_(model.pos_embed)
    return "more than the positional embedding" if differs() else "positional embedding" if as_it_is else "nothing"


def difference_similarity_to_formula() -> float:
    """Largest difference between diff_similarity and softmax(ΔQ ΔKᵀ / √d) V, in which a loop takes the differences."""
    q, k, v = _qkv()
    dq, dk = q.clone(), k.clone()
    for i in range(1, N):
        dq[:, :, i], dk[:, :, i] = q[:, :, i] - q[:, :, i - 1], k[:, :, i] - k[:, :, i - 1]
    expected = (dq @ dk.transpose(2, 3) / math.sqrt(D)).softmax(-1) @ v
    return _largest(DiffSimilarityAttention(H * D, H).attend(q, k, v, v, None) - expected)


def _common_feature(rule: str) -> Callable[[], float]:
    def check() -> float:
        attn = DiffSimilarityAttention(H * D, H, first_difference=rule)
        q, k, v = _qkv()
        shifted = attn.attend(q + _double(D), k + _double(D), v, v, None)
        return _largest(shifted - attn.attend(q, k, v, v, None))

    check.__doc__ = f"Largest change of diff_similarity when one vector is added to all Q, another to all K ({rule})."
    return check


def suppression_to_formula() -> float:
    """Largest difference between suppression and softmax(S − conv(S)) V with torch's depthwise 3 × 3 convolution."""
    attn = SuppressionAttention(H * D, H).double()
    q, k, v = _qkv()
    scores = q @ k.transpose(2, 3) / math.sqrt(D)
    conv = F.conv2d(scores, attn.kernel[:, None], padding=1, groups=H)
    return _largest(attn.attend(q, k, v, v, None) - (scores - conv).softmax(-1) @ v)


def taps_between_neighbours() -> float:
    """Of the kernel's taps around a score, on 16 × 16 patches and the class token, the percentage whose both shifts
    stay within a row of the image.
    """
    kernel = torch.ones(1, 3, 3)
    kernel[0, 1, 1] = 0  # the score itself
    whole, elsewhere = convolutions(torch.ones(1, 1, 257, 257), kernel, GRID)
    return 100 * (1 - float(elsewhere.sum() / whole.sum()))


def surround_that_is_reached() -> float:
    """Of all pairs of patches that touch in the 16 × 16 image, the percentage in which one's scores enter the other's.

    One query at a time has scores; those that the convolution passes them on to are counted.
    """
    patches = GRID[0] * GRID[1]
    q = torch.eye(patches + 1)[1:, None, :, None]  # of each patch (256, 1, 257, 1)
    k = torch.zeros(patches, 1, patches + 1, 1)
    k[:, :, 100] = 1
    wide_q, wide_k = as_wide_heads(q, k, torch.ones(1, 3, 3))
    reached = (wide_q @ wide_k.transpose(2, 3))[:, 0, 1:, 100].abs() > 1e-6
    row, column = torch.arange(patches).div(GRID[1], rounding_mode="floor"), torch.arange(patches) % GRID[1]
    far = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs())
    return 100 * float(reached[far == 1].float().mean())


def entropy_to_formula() -> float:
    """Largest difference between the token entropy times log K and −Σ p log p, p the softmax over K channels."""
    tokens = 3 * _double(50, 192)
    p = tokens.softmax(-1)
    return _largest(token_entropy(tokens) * math.log(192) + (p * p.log()).sum(-1))


def entropy_attention_to_formula() -> float:
    """Largest difference between diff_entropy and the Differential Transformer's formula with each patch's entropy in
    the place of λ.
    """
    q, k, v = _qkv()
    x = 3 * _double(B, N, H * D)
    attn = DiffEntropyAttention(H * D, H, layer=3).double()
    lam = with_class_token(token_entropy(x[:, 1:]))[:, None, :, None]
    halves = [q[..., h] @ k[..., h].transpose(2, 3) / math.sqrt(D / 2) for h in (slice(D // 2), slice(D // 2, None))]
    out = (halves[0].softmax(-1) - lam * halves[1].softmax(-1)) @ v
    rms = out.square().mean(-1, keepdim=True).add(1e-5).sqrt()
    return _largest(attn.attend(q, k, v, x, None) - (0.6 * math.exp(-0.9) + 0.2) * out / rms)


def modulation_by_entropy() -> float:
    """Correlation between the entropy given to a query and what is subtracted from the first map's output for it."""
    q, k, v = (t[:1, :, :1] for t in _qkv())
    q, k, v = (t.expand(1, H, 50, D) for t in (q, k, v))  # queries that differ in their entropy alone
    k, v = k + _double(50, D), v + _double(50, D)
    lam = torch.rand(1, 50, dtype=torch.double)
    out = differential_attention(q, k, v, lam)
    without = differential_attention(q, k, v, torch.zeros_like(lam))
    return float(torch.corrcoef(torch.stack([lam[0], (without - out)[0].norm(dim=-1).sum(0)]))[0, 1])


# ── rotary position embedding ────────────────────────────────────────────────────────────────────────────────────


def _rope() -> Rope:
    return Rope("mixed", 2, H, D).double()


def pairs_turned_relatively() -> float:
    """Largest difference between the scores of queries and keys that are turned apart, as the model does, and those of
    pairs in which the key alone is turned by the difference of the places.
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
    """Largest spread of the scores of one query and one key over all pairs of places that lie equally apart."""
    same = _double(2, H, D).expand(1, 1 + 20, 2, H, D)
    turned = rotate(same, _rope()((4, 5))[0].detach())
    scores = torch.einsum("nhd,mhd->hnm", turned[0, 1:, 0], turned[0, 1:, 1]).view(H, 4, 5, 4, 5)
    shifted = scores[:, 1:, 1:, 1:, 1:] - scores[:, :-1, :-1, :-1, :-1]  # both places one row and one column on
    return _largest(shifted)


def class_token_turned() -> float:
    """Largest change of the class token's query and key."""
    qk = _double(1, 1 + 12, 2, H, D)
    return _largest(rotate(qk, _rope()((4, 3))[0].detach())[:, 0] - qk[:, 0])


def rope_to_rope_vits() -> float:
    """Largest difference between the turned queries and those of timm's layer for rope-vit's RoPE-mixed."""
    r, theirs = Rope("mixed", 2, H, D), RotaryEmbeddingMixed(H * D, 2, H)
    with torch.no_grad():
        theirs.freqs.copy_(r.freqs.view(theirs.freqs.shape))
    q = torch.randn(1, 1 + 20, 2, H, D)
    expected = apply_rot_embed_cat(q[:, 1:, 0].transpose(1, 2), theirs.get_embed([4, 5])[1])
    return _largest(rotate(q, r((4, 5))[1])[:, 1:, 0].transpose(1, 2) - expected)


CHECKS: dict[str, Callable[[], Value]] = {
    "common_feature_keep": _common_feature("keep"),
    "common_feature_zero": _common_feature("zero"),
    **{
        f.__name__: f
        for f in (
            what_dropout_changes,
            difference_similarity_to_formula,
            suppression_to_formula,
            taps_between_neighbours,
            surround_that_is_reached,
            entropy_to_formula,
            entropy_attention_to_formula,
            modulation_by_entropy,
            pairs_turned_relatively,
            scores_at_equal_distance,
            class_token_turned,
            rope_to_rope_vits,
        )
    },
}
