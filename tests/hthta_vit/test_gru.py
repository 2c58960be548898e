"""The GRU beside torch's: outputs, gradients, modes."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from hthta_vit import gru
from hthta_vit.gru import BiGRU


def pair(d=6, h=5, layers=1, dtype=torch.float64):
    torch.manual_seed(0)
    theirs = nn.GRU(d, h, layers, batch_first=True, bidirectional=True).to(dtype)
    ours = BiGRU(d, h, layers).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def test_names_order_and_initial_values_are_torchs():
    torch.manual_seed(3)
    theirs = nn.GRU(6, 5, 2, batch_first=True, bidirectional=True).state_dict()
    torch.manual_seed(3)
    ours = BiGRU(6, 5, 2).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("B", "N", "d", "h"), [(1, 1, 3, 1), (3, 7, 6, 5), (2, 16, 8, 8), (5, 2, 1, 13)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_output_and_gradients_are_torchs(layers, B, N, d, h, dtype):
    ours, theirs = pair(d, h, layers, dtype)
    x = torch.randn(B, N, d, dtype=dtype)
    weight = torch.randn(B, N, 2 * h, dtype=dtype)
    found = []
    for run in (ours, lambda t: theirs(t)[0]):
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        (y * weight).sum().backward()
        found.append((y, leaf.grad))
    tolerance = {"rtol": 1e-9, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    assert_close(found[0], found[1], **tolerance)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_close(p.grad, q.grad, msg=name, **tolerance)


def test_gradients_by_finite_differences():
    ours, _ = pair(3, 2, 2)
    assert torch.autograd.gradcheck(ours, torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True))


def test_both_products_give_the_same(monkeypatch):
    monkeypatch.setattr(gru, "MIN_PACKED", 0)
    ours, _ = pair(16, 24, 2, torch.float32)
    x = torch.randn(3, 9, 16, requires_grad=True)
    results = []
    for packed in (True, False):
        if not packed:
            monkeypatch.setattr(gru, "_onednn_packs", lambda: False)
        y = ours(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, *ours.parameters()])))
    assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_a_gradient_of_the_input_alone_and_of_the_weights_alone():
    ours, theirs = pair()
    x = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(theirs(x)[0].square().sum(), x)
    (found,) = torch.autograd.grad(ours.requires_grad_(False)(x).square().sum(), x)  # as Grad-CAM asks
    assert_close(found, expected)
    ours.requires_grad_(True)(x.detach()).square().sum().backward()
    theirs(x.detach())[0].square().sum().backward()
    assert_close(ours.weight_ih_l0.grad, theirs.weight_ih_l0.grad)


def test_a_frozen_bias_gets_no_gradient():
    ours, _ = pair()
    ours.bias_hh_l0.requires_grad_(False)
    ours(torch.randn(2, 7, 6, dtype=torch.float64)).sum().backward()
    assert ours.bias_hh_l0.grad is None
    assert ours.bias_ih_l0.grad is not None


def test_a_gradient_of_a_gradient_is_refused():
    ours, _ = pair()
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(ours(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="bigru_backward"):
        grad.sum().backward()


def test_without_gradients():
    ours, theirs = pair(dtype=torch.float32)
    x = torch.randn(2, 7, 6)
    with torch.inference_mode():
        assert_close(ours(x), theirs(x)[0])
    with torch.no_grad():
        assert_close(ours(x), theirs(x)[0])


def test_autocast_runs_it_in_float32():
    ours, theirs = pair(dtype=torch.float32)
    x = torch.randn(2, 7, 6).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ours(x)
    assert y.dtype == torch.float32
    assert_close(y, theirs(x.float())[0])
    y.sum().backward()


def test_half_precision_weights_take_torchs_kernel():
    ours, theirs = pair(dtype=torch.bfloat16)
    x = torch.randn(2, 7, 6, dtype=torch.bfloat16)
    assert_close(ours(x), theirs(x)[0])


def test_multiply_adds_are_counted():
    ours, _ = pair(6, 5, 2, torch.float32)
    x = torch.randn(2, 7, 6, requires_grad=True)
    forward = 2 * 2 * 7 * 2 * 15 * ((6 + 5) + (10 + 5))  # 2 × B × N × directions × 3h × (d + h)
    with FlopCounterMode(display=False) as counter:
        y = ours(x)
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * forward


@pytest.mark.slow
def test_torch_compile_gives_the_same():
    ours, theirs = pair(dtype=torch.float32)
    x = torch.randn(2, 7, 6, requires_grad=True)
    compiled = torch.compile(ours, backend="aot_eager")
    y = compiled(x)
    assert_close(y, theirs(x)[0])
    assert_close(torch.autograd.grad(y.sum(), x), torch.autograd.grad(theirs(x)[0].sum(), x), rtol=1e-4, atol=1e-5)


def test_operators_meet_torchs_rules():
    ours, _ = pair(3, 2)
    weights = [w.detach() for direction in ours.all_weights for w in direction]
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    torch.library.opcheck(torch.ops.hthta_vit.bigru, (x, weights), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.gpu
def test_on_a_gpu_torchs_kernel_runs():
    ours, theirs = pair(dtype=torch.float32)
    x = torch.randn(2, 7, 6)
    assert_close(ours.cuda()(x.cuda()).cpu(), theirs(x)[0], rtol=1e-3, atol=1e-4)
