"""Each kernel is its formula, forward and backward, and is chosen where nobody looks on."""

import pytest
import timm
import torch
from torch.testing import assert_close

import clear_vit  # noqa: F401 -- registers the models
from clear_vit import kernels
from clear_vit.attention import suppressed_attention
from clear_vit.kernels import cpu, cuda
from clear_vit.rope import Rope, rotate
from model_properties import takes_its_kernel_only_unwatched


def double(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def formulas(monkeypatch):
    """Without any kernel."""
    monkeypatch.setattr(kernels, "CPU", {})
    monkeypatch.setattr(kernels, "CUDA", {})


def value_and_gradients(function, *inputs):
    inputs = [t.clone().requires_grad_() for t in inputs]
    out = function(*inputs)
    return out, *torch.autograd.grad(
        (out * torch.arange(out.numel(), device=out.device).sin().view_as(out)).sum(), inputs
    )


def same(kernel, formula, *inputs, **tolerance):
    for ours, theirs in zip(value_and_gradients(kernel, *inputs), value_and_gradients(formula, *inputs), strict=True):
        assert_close(ours, theirs, **tolerance)


# ── suppression ──────────────────────────────────────────────────────────────────────────────────────────────────


def suppression_inputs(B=3, h=2, N=17, d=8):
    return *(double(B, h, N, d, seed=s) for s in range(3)), double(h, 3, 3, seed=5)


@pytest.mark.parametrize("heads_a_chunk", [1, 4, 6])  # of 6
def test_suppression_on_a_cpu_is_the_formula(formulas, monkeypatch, heads_a_chunk):
    monkeypatch.setattr(cpu, "_CHUNK_SCORES", heads_a_chunk * 18**2)
    same(cpu.suppressed_attention, suppressed_attention, *suppression_inputs())


def test_suppression_by_wide_heads_is_the_formula(formulas):
    """What a GPU computes, here on a CPU."""
    same(cuda.suppressed_attention, suppressed_attention, *suppression_inputs())


def test_gradients_of_suppression_by_finite_differences(monkeypatch):
    monkeypatch.setattr(cpu, "_CHUNK_SCORES", 2 * 6**2)
    inputs = [t.requires_grad_() for t in suppression_inputs(2, 2, 5, 4)]
    assert torch.autograd.gradcheck(cpu.suppressed_attention, inputs)


def test_large_scores_do_not_leak_over_the_border(formulas):
    """A row and a column of zeros lie around the scores in memory; what is next to them must not show."""
    q, k, v, kernel = suppression_inputs(4, 3, 9, 4)
    out = cpu.suppressed_attention(1e3 * q, 1e3 * k, 1e3 * v, kernel)
    assert out.isfinite().all()
    assert_close(out, suppressed_attention(1e3 * q, 1e3 * k, 1e3 * v, kernel))


@pytest.mark.gpu
def test_suppression_on_a_gpu_is_the_formula(formulas):
    inputs = [t.float().cuda() for t in suppression_inputs(2, 3, 257, 64)]
    same(cuda.suppressed_attention, suppressed_attention, *inputs, rtol=2e-3, atol=2e-3)


# ── rotation ─────────────────────────────────────────────────────────────────────────────────────────────────────


def table(kind="mixed", grid=(4, 4)):
    torch.manual_seed(0)
    return Rope(kind, 2, 2, 8).double()(grid)[0].detach()


@pytest.mark.parametrize("kind", ["mixed", "axial"])
def test_rotation_on_a_cpu_is_the_formula(formulas, kind):
    qk = double(2, 17, 3, 2, 8)[:, :, :2]  # a view, as the model's
    same(lambda qk, t: cpu.rotate(qk, *t), rotate, qk, table(kind))


def test_gradients_of_rotation_by_finite_differences():
    qk = double(2, 17, 3, 2, 8)[:, :, :2].requires_grad_()
    assert torch.autograd.gradcheck(lambda qk, t: cpu.rotate(qk, *t), (qk, table().requires_grad_()))


def test_rotation_where_no_view_as_complex_numbers_is_possible_and_in_place(formulas):
    odd, cos_sin = double(2 * 17 * 2 * 2 * 8 + 1)[1:].view(2, 17, 2, 2, 8), table()
    expected = rotate(odd, cos_sin)
    assert_close(cpu.rotate(odd, *cos_sin), expected)
    assert_close(cpu.rotate(odd.clone(), *cos_sin, overwrite=True), expected)
    fresh = odd.clone()
    assert cpu.rotate(fresh, *cos_sin, overwrite=True).data_ptr() == fresh.data_ptr()


# ── the choice ───────────────────────────────────────────────────────────────────────────────────────────────────


class Seen:
    """Stands for a kernel; counts its calls."""

    def __init__(self, kernel):
        self.kernel, self.calls = kernel, 0

    def __call__(self, *args):
        self.calls += 1
        return self.kernel(*args)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("variant", "formula"), [("rope", "rotate"), ("suppression", "suppressed_attention")])
def test_a_model_takes_its_kernel_where_nobody_looks_on(variant, formula, monkeypatch):
    seen = Seen(kernels.CPU[formula])
    monkeypatch.setitem(kernels.CPU, formula, seen)
    model, x = timm.create_model(f"clear_vit_micro_{variant}", num_classes=5, depth=2).eval(), torch.randn(2, 3, 32, 32)
    torch.nn.init.normal_(model.head.weight)
    remove = lambda: monkeypatch.setattr(kernels, "CPU", {})  # noqa: E731
    takes_its_kernel_only_unwatched(model, x, lambda: seen.calls, 2, remove)


def test_attention_dropout_takes_the_formula(monkeypatch):
    seen = Seen(kernels.CPU["suppressed_attention"])
    monkeypatch.setitem(kernels.CPU, "suppressed_attention", seen)
    model = timm.create_model("clear_vit_micro_suppression", num_classes=5, depth=1, attn_drop_rate=0.2).train()
    model(torch.randn(2, 3, 32, 32))
    assert not seen.calls
