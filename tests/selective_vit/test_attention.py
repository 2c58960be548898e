"""The attention itself: the paper's formulas, their invariants, the original's outputs, three ways to compute it."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from selective_vit.attention import EMPTY_ROWS, MODES, Selection, select, selective_attention
from selective_vit.convert import attention_from_original
from vit_core.explain import SparsityTracker, capture_attention

FORMS = [(mode, empty) for mode in MODES for empty in EMPTY_ROWS]


def by_the_formula(q: Tensor, k: Tensor, v: Tensor, tau: float, mode: str, empty_row: str, eps: float) -> Tensor:
    """Row by row, as the paper writes it."""
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    for b, h, i in torch.cartesian_prod(*(torch.arange(s) for s in q.shape[:3])).tolist():
        scores = torch.stack([q[b, h, i] @ k[b, h, j] for j in range(k.shape[2])]) / math.sqrt(q.shape[-1])
        P = scores.exp() / scores.exp().sum()
        w = (P - tau).clamp(min=0) if mode == "relu" else P * P.gt(tau)
        if empty_row == "argmax" and not w.any():
            w[P.argmax()] = P.max()
        out[b, h, i] = w @ v[b, h] / (w.sum() + eps)
    return out


def qkv(B=2, h=3, N=17, d=8, sharp=2.0, dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, B, h, N, d, dtype=dtype).unbind(0)
    return sharp * q, k, v


# ── the formulas ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kernel", ["auto", "weights"])
@pytest.mark.parametrize("tau", [0.0, 0.02, 0.3])
@pytest.mark.parametrize(("mode", "empty"), FORMS)
def test_it_is_the_formula(mode, empty, tau, kernel):
    q, k, v = qkv(dtype=torch.float64)
    ours = selective_attention(q, k, v, tau, Selection(mode=mode, empty_row=empty, kernel=kernel))
    assert_close(ours, by_the_formula(q, k, v, tau, mode, empty, 1e-6))


@pytest.mark.parametrize("tau", ["0.01", "0.05"])
@pytest.mark.parametrize("mode", MODES)
def test_parity_with_the_original(reference, tau, mode):
    tensors, config = reference(f"selective_attention_tau{tau}")
    weights = {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}
    attn = attention_from_original(weights, {**config, "mode": mode})
    with torch.no_grad():
        assert_close(attn(tensors["input"]), tensors[f"output_{mode}"], rtol=1e-4, atol=1e-5)
        with capture_attention(attn) as captured:
            assert_close(attn(tensors["input"]), tensors[f"output_{mode}"], rtol=1e-4, atol=1e-5)
    tracker = SparsityTracker()
    tracker.add("attn", captured.calls[0].weights)
    assert_close(tracker.layers["attn"].active_tokens, tensors["active_tokens_per_head"])


def test_a_threshold_of_zero_is_dense_attention():
    """Exactly: the same weights to the bit. (Through SDPA up to rounding and to ε.)"""
    q, k, v = qkv(dtype=torch.float64)
    P = (q @ k.transpose(-2, -1) / math.sqrt(8)).softmax(-1)
    for mode, empty in FORMS:
        assert torch.equal(select(P, 0.0, Selection(mode=mode, empty_row=empty)), P)
        ours = selective_attention(q, k, v, 0.0, Selection(mode=mode, empty_row=empty))
        dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        assert_close(ours * (1 + 1e-6), dense, rtol=1e-12, atol=1e-12)


def weights_of(tau: float, mode: str, empty: str, sharp: float = 2.0) -> Tensor:
    """As they are applied: with the unit matrix for values."""
    q, k, _ = qkv(sharp=sharp, dtype=torch.float64)
    unit = torch.eye(17, dtype=torch.float64).expand(2, 3, 17, 17)
    return selective_attention(q, k, unit, tau, Selection(mode=mode, empty_row=empty))


@pytest.mark.parametrize(("mode", "empty"), FORMS)
def test_rows_sum_to_one_where_anything_passes(mode, empty):
    weights = weights_of(0.25, mode, empty)
    sums, passed = weights.sum(-1), (weights > 0).any(-1)
    assert (weights >= 0).all()
    assert_close(sums[passed], torch.ones_like(sums[passed]), rtol=0, atol=2e-3)  # w / (w + ε) of the smallest w
    assert (sums[~passed] == 0).all()
    assert bool(passed.all()) == (empty == "argmax")


def test_an_empty_row_keeps_its_strongest_key():
    weights = weights_of(0.9, "hard", "argmax", sharp=0.1)  # nothing passes anywhere
    assert ((weights > 0).sum(-1) == 1).all()
    assert torch.equal(weights.argmax(-1), weights_of(0.0, "hard", "zero", sharp=0.1).argmax(-1))
    assert not weights_of(0.9, "hard", "zero", sharp=0.1).any()


@pytest.mark.parametrize("mode", MODES)
def test_a_higher_threshold_never_keeps_more(mode):
    kept = [(weights_of(tau, mode, "zero") > 0) for tau in (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)]
    for low, high in itertools.pairwise(kept):
        assert (low | ~high).all(), "what passes a higher threshold passes a lower one"
    assert kept[0].sum() > kept[-1].sum()


@pytest.mark.parametrize(("mode", "empty"), FORMS)
def test_the_order_of_the_keys_does_not_matter(mode, empty):
    q, k, v = qkv(dtype=torch.float64)
    order = torch.randperm(17)
    selection = Selection(mode=mode, empty_row=empty)
    ours = selective_attention(q, k[:, :, order], v[:, :, order], 0.05, selection)
    assert_close(ours, selective_attention(q, k, v, 0.05, selection))


# ── gradients ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kernel", ["auto", "weights"])
@pytest.mark.parametrize("empty", EMPTY_ROWS)
@pytest.mark.parametrize(("mode", "tau"), [("relu", 0.0), ("relu", 0.05), ("relu", 0.3), ("hard", 0.05), ("hard", 0.3)])
def test_gradients_are_those_of_the_formula(mode, tau, empty, kernel):
    """Numerically. Of the hard gate: through the weights that are kept, since the gate is flat but for its steps."""
    inputs = [t.requires_grad_() for t in qkv(1, 2, 6, 4, sharp=1.5, dtype=torch.float64)]
    selection = Selection(mode=mode, empty_row=empty, kernel=kernel, eps=1e-3)
    assert torch.autograd.gradcheck(lambda q, k, v: selective_attention(q, k, v, tau, selection), inputs, eps=1e-7)


def test_dropout_of_everything_is_zero_and_of_nothing_is_nothing():
    q, k, v = qkv()
    assert not selective_attention(q, k, v, 0.05, Selection(), dropout_p=1.0).any()


@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_finite_stays_so(mode):
    q, k, v = qkv()
    q[0, 0, 0, 0] = math.nan
    out = selective_attention(q, k, v, 0.05, Selection(mode=mode))
    assert out[0, 0, 0].isnan().all()
    assert out[1].isfinite().all()


def test_masks_are_torchs():
    q, k, v = qkv(dtype=torch.float64)
    mask = torch.rand(17, 17) > 0.3
    mask[3] = False
    sdpa = torch.nn.functional.scaled_dot_product_attention
    for kind in ({"attn_mask": mask}, {"is_causal": True}, {"attn_mask": torch.randn(17, 17, dtype=torch.float64)}):
        dense = sdpa(q, k, v, **kind)
        assert_close(
            selective_attention(q, k, v, 0.0, Selection(empty_row="zero"), **kind), dense, rtol=1e-5, atol=1e-5
        )
    kept = selective_attention(q, k, torch.eye(17).double().expand(2, 3, 17, 17), 0.05, Selection(), attn_mask=mask)
    assert not (kept[..., ~mask]).any()


def test_bfloat16_is_selected_in_float32():
    q, k, v = (t.bfloat16() for t in qkv())
    ours = selective_attention(q, k, v, 0.05, Selection())
    assert ours.dtype == torch.bfloat16
    exact = selective_attention(q.float(), k.float(), v.float(), 0.05, Selection())
    assert_close(ours.float(), exact, rtol=2e-2, atol=2e-2)


# ── learned thresholds ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_relu_threshold_has_its_own_gradient():
    q, k, v = qkv(1, 2, 6, 4, dtype=torch.float64)
    tau = torch.full((2, 1, 1), 0.05, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: selective_attention(q, k, v, t, Selection(eps=1e-3)), [tau], eps=1e-7)


def test_the_hard_threshold_is_moved_by_the_weights_near_it():
    P = torch.tensor([[[[0.05, 0.11, 0.84]]]], dtype=torch.float64)
    tau = torch.tensor([[[0.1]]], dtype=torch.float64, requires_grad=True)
    selection = Selection(mode="hard", empty_row="zero")
    w = select(P, tau, selection)
    assert torch.equal(w, select(P, 0.1, selection)), "the value is the hard gate's"
    slopes = [torch.autograd.grad(w[..., j].sum(), tau, retain_graph=True)[0].item() for j in range(3)]
    assert slopes[1] < 10 * slopes[2] < 0, "a higher threshold takes what lies just above it"
    assert slopes[1] < slopes[0] < 0
    soft = lambda x: 1 / (1 + math.exp(-(0.11 - x) / 0.025))  # noqa: E731
    assert slopes[1] == pytest.approx(0.11 * (soft(0.1001) - soft(0.0999)) / 0.0002, rel=1e-4)


@pytest.mark.parametrize("wrong", [{"mode": "soft"}, {"empty_row": "one"}, {"eps": 0.0}, {"kernel": "cuda"}])
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be"):
        Selection(**wrong)
