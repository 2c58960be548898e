"""Each kernel is the formula, forward and backward, and is chosen where nobody looks on."""

import math

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.testing import assert_close

import selective_vit  # noqa: F401 -- registers the models
from model_properties import takes_its_kernel_only_unwatched
from selective_vit import kernels
from selective_vit.attention import EMPTY_ROWS, MODES, Selection, select, selective_attention
from selective_vit.kernels import cpu
from selective_vit.kernels.flex import flex_selective_attention
from selective_vit.model import make_selective
from vit_core.explain import SparsityTracker
from vit_core.models.dropout import fill_keep_mask, keep_probability

FORMS = [(mode, empty) for mode in MODES for empty in EMPTY_ROWS]


def qkv(B=2, h=3, N=17, d=8, sharp=2.0, dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, B, h, N, d, dtype=dtype).unbind(0)
    return sharp * q, k, v


# ── chunks on a CPU ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("mode", "empty"), FORMS)
@pytest.mark.parametrize(
    ("shape", "tau"), [((5, 3, 17, 8), 0.05), ((2, 4, 40, 8), 0.05), ((4, 3, 17, 8), 0.2), ((4, 2, 17, 8), 0.6)]
)
def test_chunks_are_the_formula_in_value_and_gradient(shape, tau, mode, empty, monkeypatch):
    """Several images a chunk, one, and parts of one; no row empty, some, most; not contiguous, as timm makes them."""
    B, h, N, d = shape
    torch.manual_seed(0)
    x = torch.randn(B, N, 3, h, d, dtype=torch.float64).mul_(1.5).requires_grad_()
    up = torch.randn(B, h, N, d, dtype=torch.float64)
    results = []
    for kernel, size in (
        ("weights", 0),
        ("auto", 2 * h * N * N + 5),
        ("auto", h * N * N),
        ("auto", 2 * N * N),
        ("auto", 1),
    ):
        monkeypatch.setattr(cpu, "_CHUNK_WEIGHTS", size)
        out = selective_attention(
            *x.permute(2, 0, 3, 1, 4).unbind(0), tau, Selection(mode=mode, empty_row=empty, kernel=kernel)
        )
        (grad,) = torch.autograd.grad((out * up).sum(), x)
        results.append((out, grad))
    for out, grad in results[1:]:
        assert_close(out, results[0][0])
        assert_close(grad, results[0][1])


@pytest.mark.parametrize(("mode", "empty"), FORMS)
def test_dropout_acts_on_the_normalized_weights(mode, empty, monkeypatch):
    """The mask of the chunks, applied by hand to the weights; forward and backward draw the same one."""
    q, k, v = (t.requires_grad_() for t in qkv(dtype=torch.float64))
    masks = []

    def remembered(mask, p, generator=None):
        masks.append(fill_keep_mask(mask, p, generator).clone())
        return mask

    monkeypatch.setattr(cpu, "fill_keep_mask", remembered)
    selection = Selection(mode=mode, empty_row=empty)
    out = selective_attention(q, k, v, 0.05, selection, dropout_p=0.25)
    up = torch.randn_like(out)
    grads = torch.autograd.grad(out, (q, k, v), up)
    assert len(masks) == 2
    assert torch.equal(masks[0], masks[1])
    assert 0.6 < masks[0].mean() < 0.9
    w = select((q @ k.transpose(-2, -1) / math.sqrt(8)).softmax(-1), 0.05, selection)
    weights = w / (w.sum(-1, keepdim=True) + 1e-6) * masks[0].view_as(w) / keep_probability(0.25)
    assert_close(out, weights @ v)
    for ours, theirs in zip(grads, torch.autograd.grad(weights @ v, (q, k, v), up), strict=True):
        assert_close(ours, theirs)


# ── FlexAttention ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("tau", [0.0, 0.05, 0.3])
@pytest.mark.parametrize(("mode", "empty"), FORMS)
def test_flex_attention_gives_the_same_on_a_cpu(mode, empty, tau):
    """Torch's uncompiled form of it, forward only: the scores that we hand over."""
    q, k, v = qkv()
    ours = flex_selective_attention(q, k, v, tau, mode, empty, 1e-6)
    assert_close(
        ours,
        selective_attention(q, k, v, tau, Selection(mode=mode, empty_row=empty, kernel="weights")),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("tau", [0.01, 0.3])
@pytest.mark.parametrize(("mode", "empty"), FORMS)
def test_flex_attention_on_a_gpu(mode, empty, tau):
    results = []
    for kernel in ("flex", "weights"):
        q, k, v = (t.cuda().requires_grad_() for t in qkv(2, 4, 197, 64, sharp=1.0))
        out = selective_attention(q, k, v, tau, Selection(mode=mode, empty_row=empty, kernel=kernel))
        grads = torch.autograd.grad(out, (q, k, v), torch.sin(torch.arange(out.numel()).cuda()).view_as(out))
        results.append((out, *grads))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs, rtol=2e-3, atol=2e-3)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("mode", "empty"), FORMS)
def test_flex_attention_where_weights_lie_at_the_threshold(mode, empty):
    """Roundings differ there: a weight may pass or not, but the row stays finite."""
    torch.manual_seed(0)
    N = 500  # scores within a few roundings of log τ + L
    q, k, v = torch.ones(1, 1, 8, 4), 1e-7 * torch.randn(1, 1, N, 4), torch.randn(1, 1, N, 4)
    assert flex_selective_attention(q, k, v, 1 / N, mode, empty, 1e-6).isfinite().all()


@pytest.mark.parametrize("kernel", ["flex", "auto"])
def test_on_a_cpu_flex_is_auto_and_can_be_watched(kernel):
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5).eval()
    make_selective(vit, 0.05, kernel=kernel)
    tracker = SparsityTracker()
    tracker.update(vit, torch.randn(2, 3, 32, 32))
    assert len(tracker.layers) == 2
    assert vit.train()(torch.randn(2, 3, 32, 32)).requires_grad


# ── the choice ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.filterwarnings("ignore:`torch.jit.trace", "ignore::torch.jit.TracerWarning")
def test_a_model_takes_its_kernel_where_nobody_looks_on(monkeypatch):
    calls = []
    chunked = kernels.chunked_selective_attention
    monkeypatch.setattr(kernels, "chunked_selective_attention", lambda *args: calls.append(args) or chunked(*args))
    model, x = timm.create_model("selective_vit_micro", num_classes=5, depth=2).eval(), torch.randn(2, 3, 32, 32)
    remove = lambda: monkeypatch.setattr("selective_vit.attention.choose", lambda *_, **__: None)  # noqa: E731
    takes_its_kernel_only_unwatched(model, x, lambda: len(calls), 2, remove)
