"""The mathematics of each attention, against the formula as it stands in the README and in the papers."""

import itertools
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import RotaryEmbeddingMixed, apply_rot_embed_cat
from torch.testing import assert_close

import clear_vit  # noqa: F401 -- registers the models
from clear_vit.attention import differential_attention, suppressed_attention
from clear_vit.entropy import pixel_entropy, token_entropy, with_class_token
from clear_vit.model import Attention, DiffEntropyAttention, DiffSimilarityAttention, SuppressionAttention
from clear_vit.rope import Rope, rotate

B, H, N, D = 3, 2, 17, 8


def double(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def qkv():
    return tuple(double(B, H, N, D, seed=s) for s in range(3))


def plain(scores, v):
    return scores.softmax(-1) @ v


# ── rotary position embedding ────────────────────────────────────────────────────────────────────────────────────


def rope(kind="mixed", depth=2, heads=H, head_dim=D):
    torch.manual_seed(0)
    return Rope(kind, depth, heads, head_dim).double()


@pytest.mark.parametrize("kind", ["mixed", "axial"])
def test_rotating_q_and_k_apart_is_rotating_each_pair_relatively(kind):
    """R(a)ᵀ R(b) = R(b − a): the README's "rotates Q-K pairs relative to each other" is standard RoPE."""
    grid, layer = (4, 3), 1
    r = rope(kind)
    q, k = (double(1, 1 + 12, H, D, seed=s) for s in (1, 2))
    table = r(grid)[layer].detach()
    turned = rotate(torch.stack([q, k], 2), table)
    scores = torch.einsum("bnhd,bmhd->bhnm", turned[:, :, 0], turned[:, :, 1])
    freqs = r.freqs.detach().expand(2, 2, H, -1)[:, layer]  # (2, h, d/2)
    for head, i, j in itertools.product(range(H), range(12), range(12)):
        (yi, xi), (yj, xj) = divmod(i, 3), divmod(j, 3)
        angle = (xj - xi) * freqs[0, head] + (yj - yi) * freqs[1, head]
        relative = sum(
            qa @ torch.stack([torch.stack([a.cos(), -a.sin()]), torch.stack([a.sin(), a.cos()])]) @ ka
            for qa, ka, a in zip(q[0, 1 + i, head].view(-1, 2), k[0, 1 + j, head].view(-1, 2), angle, strict=True)
        )
        assert_close(scores[0, head, 1 + i, 1 + j], relative, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["mixed", "axial"])
def test_scores_depend_on_the_difference_of_places_alone(kind):
    r = rope(kind)
    one_q, one_k = double(H, D, seed=1), double(H, D, seed=2)
    same = torch.stack([one_q, one_k]).expand(1, 1 + 20, 2, H, D)  # the same content everywhere
    turned = rotate(same, r((4, 5))[0].detach())
    scores = torch.einsum("nhd,mhd->hnm", turned[0, 1:, 0], turned[0, 1:, 1]).view(H, 4, 5, 4, 5)
    for dy, dx in ((0, 1), (2, 0), (1, -2), (-3, 4)):
        found = [
            scores[:, y, x, y + dy, x + dx] for y in range(4) for x in range(5) if 0 <= y + dy < 4 and 0 <= x + dx < 5
        ]
        assert_close(torch.stack(found), found[0].expand(len(found), -1), rtol=1e-12, atol=1e-12)
    assert (scores[:, 0, 0] - scores[:, 1, 1]).abs().max() > 0.1, "and they do depend on it"


def test_the_class_token_is_not_turned_and_lengths_stay():
    qk = double(2, 1 + 6, 2, H, D)
    turned = rotate(qk, rope()((2, 3))[0].detach())
    assert torch.equal(turned[:, 0], qk[:, 0])
    assert_close(turned.norm(dim=-1), qk.norm(dim=-1))
    assert not torch.allclose(turned[:, 2], qk[:, 2])


def test_rotation_agrees_with_timms_mixed_rope():
    """The layer of timm's vit_small_patch16_rope_mixed_ape_224, whose code follows rope-vit."""
    r = Rope("mixed", 3, H, D)
    theirs = RotaryEmbeddingMixed(H * D, 3, H)
    with torch.no_grad():
        theirs.freqs.copy_(r.freqs.view(theirs.freqs.shape))
    q = torch.randn(2, H, 4 * 5, D)
    for layer in range(3):
        expected = apply_rot_embed_cat(q, theirs.get_embed([4, 5])[layer])
        both = F.pad(torch.stack([q, q], 2).permute(0, 3, 2, 1, 4), (0, 0, 0, 0, 0, 0, 1, 0))
        assert_close(rotate(both, r((4, 5))[layer])[:, 1:, 0].transpose(1, 2), expected)


def test_axial_frequencies_are_those_of_rope_vit():
    freqs = Rope("axial", 1, 1, 16).freqs[:, 0, 0]
    magnitude = 100.0 ** (-torch.arange(0, 16, 4) / 16)
    assert_close(freqs[0], torch.cat([magnitude, torch.zeros(4)]), atol=1e-6, rtol=1e-6)
    assert_close(freqs[1], torch.cat([torch.zeros(4), magnitude]), atol=1e-6, rtol=1e-6)


def test_a_mixed_start_is_a_turned_axial_one():
    freqs = Rope("mixed", 2, 3, 16).freqs
    magnitude = 10.0 ** (-torch.arange(0, 16, 4) / 16)
    assert_close(freqs.norm(dim=0), torch.cat([magnitude, magnitude]).expand(2, 3, 8))
    first, second = freqs.chunk(2, -1)
    assert_close((first * second).sum(0), torch.zeros(2, 3, 4), atol=1e-6, rtol=0)  # at a right angle
    assert len(torch.unique((freqs[0, :, :, 0] * 1e4).round())) == 6, "each layer and head its own"


def test_half_precision_is_turned_in_float32():
    qk, table = torch.randn(2, 17, 2, H, D), rope()((4, 4))[0].detach().float()
    half = rotate(qk.bfloat16(), table)
    assert half.dtype == torch.bfloat16
    assert_close(half.float(), rotate(qk, table), atol=0.05, rtol=0.05)


# ── difference similarity ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rule", ["keep", "zero"])
def test_difference_similarity(qkv, rule):
    q, k, v = qkv
    attn = DiffSimilarityAttention(H * D, H, first_difference=rule)
    dq, dk = torch.zeros_like(q), torch.zeros_like(k)
    for t, out in ((q, dq), (k, dk)):
        for i in range(1, N):
            out[:, :, i] = t[:, :, i] - t[:, :, i - 1]
        if rule == "keep":
            out[:, :, 0] = t[:, :, 0]
    expected = plain(dq @ dk.transpose(-2, -1) / math.sqrt(D), v)
    out = attn.attend(q, k, v, None, None)
    assert_close(out, expected)
    if rule == "zero":
        assert_close(out[:, :, 0], v.mean(2)), "without a query it looks at all alike"


# ── suppression ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_suppression_is_the_definition(qkv):
    q, k, v = qkv
    kernel = double(H, 3, 3, seed=5)
    conv = torch.zeros(B, H, N, N, dtype=torch.double)
    scores = q @ k.transpose(-2, -1) / math.sqrt(D)
    for i, j, a, b in itertools.product(range(N), range(N), (-1, 0, 1), (-1, 0, 1)):
        if 0 <= i + a < N and 0 <= j + b < N:
            conv[:, :, i, j] += kernel[:, a + 1, b + 1] * scores[:, :, i + a, j + b]
    assert_close(suppressed_attention(q, k, v, kernel), plain(scores - conv, v))


def test_a_zero_kernel_is_plain_attention():
    torch.manual_seed(0)
    ours, baseline = SuppressionAttention(32, 2), Attention(32, 2)
    with torch.no_grad():
        ours.kernel.zero_()
    baseline.load_state_dict(ours.state_dict(), strict=False)
    x = torch.randn(2, 17, 32)
    assert_close(ours(x), baseline(x))


# ── differential attention with an entropy ───────────────────────────────────────────────────────────────────────


def differential_by_hand(q, k, v, lam):
    first, second = (
        (q1 @ k1.transpose(-2, -1) / math.sqrt(q1.shape[-1])).softmax(-1)
        for q1, k1 in zip(q.chunk(2, -1), k.chunk(2, -1), strict=True)
    )
    return (first - lam[:, None, :, None] * second) @ v


def test_differential_attention_is_the_definition(qkv):
    lam = double(B, N, seed=4).sigmoid()
    assert_close(differential_attention(*qkv, lam), differential_by_hand(*qkv, lam))


def test_gradients_of_differential_attention():
    inputs = [double(2, 2, 5, 4, seed=s).requires_grad_() for s in range(3)]
    lam = double(2, 5, seed=4).sigmoid().requires_grad_()
    found = torch.autograd.grad(differential_attention(*inputs, lam).square().sum(), (*inputs, lam))
    expected = torch.autograd.grad(differential_by_hand(*inputs, lam).square().sum(), (*inputs, lam))
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs)


def test_entropy_zero_is_plain_attention_of_the_first_half_up_to_the_head_norm(qkv):
    q, k, v = qkv
    attn = DiffEntropyAttention(H * D, H, layer=3).double()
    out = attn.attend(q, k, v, None, torch.zeros(B, N))
    half = slice(None, D // 2)
    expected = plain(q[..., half] @ k[..., half].transpose(-2, -1) / math.sqrt(D / 2), v)
    scale = expected.square().mean(-1, keepdim=True).add(1e-5).rsqrt()
    assert_close(out, expected * scale * (1 - attn.lambda_init))


def test_lambda_init_is_the_papers():
    found = [DiffEntropyAttention(8, 1, layer=i).lambda_init for i in range(12)]
    assert found == pytest.approx([0.8 - 0.6 * math.exp(-0.3 * i) for i in range(12)])
    assert found[0] == pytest.approx(0.2)


def test_lambda_of_each_query_is_its_tokens_entropy(qkv):
    q, k, v = qkv
    attn = DiffEntropyAttention(H * D, H).double()
    x = 3 * double(B, N, H * D, seed=7)
    lam = with_class_token(token_entropy(x[:, 1:]))
    assert lam.std() > 0.05
    assert_close(lam[:, 0], lam[:, 1:].mean(1))
    out = differential_by_hand(q, k, v, lam)
    expected = out * out.square().mean(-1, keepdim=True).add(1e-5).rsqrt() * (1 - attn.lambda_init)
    assert_close(attn.attend(q, k, v, x, None), expected)


def test_token_entropy():
    tokens = torch.cat([torch.zeros(1, 192), 50 * F.one_hot(torch.tensor([3]), 192), 3 * torch.randn(5, 192)])
    entropy = token_entropy(tokens)
    assert entropy[0] == pytest.approx(1.0, abs=1e-6), "all channels alike"
    assert entropy[1] == pytest.approx(0.0, abs=1e-6), "one channel alone"
    assert ((entropy >= 0) & (entropy <= 1 + 1e-6)).all()
    p = tokens[4].softmax(0)
    assert_close(entropy[4], -(p * p.log()).sum() / math.log(192))


def test_pixel_entropy():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 48, 32, generator=generator)[:, :1].expand(-1, 3, -1, -1).clone()
    images[:, :, :16, :16] = 0.3  # a flat patch
    images[:, :, 16:32, 16:] = (torch.arange(16) % 2).float()  # two gray levels
    entropy = pixel_entropy(images, (16, 16)).view(2, 3, 2)
    assert torch.equal(entropy[:, 0, 0], torch.zeros(2))
    assert_close(entropy[:, 1, 1], torch.full((2,), math.log(2) / math.log(32)))
    assert (entropy[:, 2] > 0.97).all(), "noise"
    assert ((entropy >= 0) & (entropy <= 1)).all()
    mean, std = 0.4, 0.2  # one of each for all channels
    assert_close(pixel_entropy((images - mean) / std, (16, 16)).view(2, 3, 2), entropy), "normalized images, too"
    assert torch.equal(pixel_entropy(torch.ones(1, 3, 32, 32), (16, 16)), torch.zeros(1, 4))
    assert pixel_entropy(torch.rand(1, 3, 4, 4), (4, 4)).item() > 0.8, "16 pixels cannot fill 32 bins"


# ── position dropout ─────────────────────────────────────────────────────────────────────────────────────────────


def test_pos_dropout_is_the_baseline_in_evaluation_and_drops_places_in_training():
    models = [timm.create_model(f"clear_vit_micro_{v}", num_classes=5) for v in ("pos_dropout", "baseline")]
    for model in models:
        torch.manual_seed(0)
        model.init_weights()
    ours, baseline = models
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours.eval()(x), baseline.eval()(x))
    ours.train()
    patches = torch.zeros(1, 8, 8, 64)
    places = torch.stack([ours._pos_embed(patches)[0, 1:] for _ in range(200)])
    dropped = places == 0
    assert 0.09 < dropped.float().mean() < 0.11
    kept = torch.where(dropped, torch.nan, places).nanmean(0)
    assert_close(kept, ours.pos_embed[0].detach() / 0.9)
