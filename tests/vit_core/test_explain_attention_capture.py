"""Captured attention weights: those that the model used, from every kind of attention, with nothing left behind."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import set_fused_attn
from torch import nn
from torch.testing import assert_close

from vit_core.explain import capture_attention
from vit_core.models.attention import attention, choose_backend, observed


def images(B=2, size=32):
    return torch.randn(B, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def fused(request):
    """Whether timm builds models with fused attention, Swin too, which calls it experimental."""
    set_fused_attn(request.param, experimental=request.param)
    yield request.param
    set_fused_attn(True)


def vit(**options):
    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=32, patch_size=8, num_classes=5, **options).eval()


def swin():
    torch.manual_seed(0)
    return timm.models.swin_transformer.SwinTransformer(
        img_size=32, patch_size=2, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4), num_classes=5
    ).eval()


def hooks(model):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def by_hand(block, x):
    """Softmax weights of timm's attention in `block` for its normalized input."""
    B, N, _ = x.shape
    attn = block.attn
    q, k, _ = attn.qkv(x).view(B, N, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    return (q @ k.transpose(-2, -1) * attn.scale).softmax(-1)


@pytest.mark.parametrize("fused", [True, False], indirect=True)
def test_a_vit_fused_or_not(fused):
    model, inputs = vit(), []
    assert all(b.attn.fused_attn == fused for b in model.blocks)
    plain = model(images())
    for b in model.blocks:
        b.norm1.register_forward_hook(lambda m, a, out: inputs.append(out))
    with capture_attention(model) as captured:
        out = model(images())
    assert torch.equal(out, plain)
    assert [c.module for c in captured.calls] == [f"blocks.{i}.attn" for i in range(len(model.blocks))]
    expected = [by_hand(b, x) for b, x in zip(model.blocks, inputs, strict=True)]
    for call, weights in zip(captured.calls, expected, strict=True):
        assert call.weights.shape == (2, 2, 17, 17)
        assert not call.weights.requires_grad
        assert_close(call.weights, weights)


@pytest.mark.parametrize("fused", [True, False], indirect=True)
def test_swins_windows_with_bias_and_shift_mask(fused):
    model = swin()
    plain = model(images())
    with capture_attention(model) as captured:
        assert torch.equal(model(images()), plain)
    shapes = [tuple(c.weights.shape) for c in captured.calls]
    assert shapes == [(2 * 16, 2, 16, 16)] * 2 + [(2 * 4, 4, 16, 16)] * 2
    for call in captured.calls:
        assert_close(call.weights.sum(-1), torch.ones(call.weights.shape[:-1]))
    assert (captured["layers.0.blocks.1.attn"][0] < 1e-30).any()  # shifted windows mask, with -100


def test_swin_fused_equals_swin_unfused():
    weights = []
    for fused in (True, False):
        set_fused_attn(fused, experimental=fused)
        model = swin()
        assert model.layers[0].blocks[0].attn.fused_attn == fused
        with capture_attention(model) as captured:
            model(images())
        weights.append([c.weights for c in captured.calls])
    set_fused_attn(True)
    for a, b in zip(*weights, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": torch.randn(2, 1, 5, 7)},
        {"attn_mask": torch.arange(35).view(5, 7) % 3 > 0},
        {"attn_mask": torch.arange(35).view(5, 7) > 10},  # the first query sees no key
        {"enable_gqa": True},
    ],
    ids=("plain", "scale", "causal", "float-mask", "mask", "mask-of-all-keys", "grouped"),
)
@pytest.mark.parametrize("keep_graph", [False, True])
def test_arguments_of_sdpa_are_respected(options, keep_graph):
    class Layer(nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, **options)

    torch.manual_seed(0)
    shared = 2 if options.get("enable_gqa") else 4
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, shared, 7, 8), torch.randn(2, shared, 7, 6)
    layer = Layer()
    with capture_attention(layer, keep_graph=keep_graph) as captured:
        out = layer(q, k, v)
    assert_close(out, layer(q, k, v))
    mask = options.get("attn_mask")
    if mask is not None and mask.dtype == torch.bool:
        options = options | {"attn_mask": torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)}
    _, expected = torch._scaled_dot_product_attention_math(q, k, v, **options)
    assert_close(captured.calls[0].weights, expected)


class Own(nn.Module):
    """Two calls of the core's attention and one softmax of its own."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.dropout = dropout

    def forward(self, x):  # (B, h, N, d)
        x = attention(x, x, x, self.dropout if self.training else 0.0)
        x = attention(x, x, x)
        return observed((x @ x.transpose(-2, -1)).softmax(-1)) @ x


@pytest.mark.parametrize("d", [4, 32])  # the chunked and the SDPA backend
def test_the_cores_attention_whatever_its_backend(d):
    assert choose_backend("cpu", torch.float32, d) == ("chunked" if d == 4 else "SDPA")
    model, x = nn.Sequential(Own(), Own()), torch.randn(2, 3, 7, d)
    plain = model(x)
    with capture_attention(model) as captured:
        assert torch.equal(model(x), plain)
    assert {name: len(w) for name, w in captured.by_module.items()} == {"0": 3, "1": 3}  # once each, SDPA not twice
    assert_close(captured["0"][0], (x @ x.transpose(-2, -1) * d**-0.5).softmax(-1))
    with capture_attention(model, keep_graph=True) as captured:
        out = model(x.requires_grad_())
    assert_close(out, plain)
    assert all(g.any() for g in torch.autograd.grad(out[..., 0].sum(), [c.weights for c in captured.calls]))


def test_the_cores_attention_compiles_as_before():
    q = torch.randn(1, 2, 5, 32)
    assert_close(torch.compile(attention, backend="eager", fullgraph=True)(q, q, q), attention(q, q, q))


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("keep_graph", [True, False])
def test_torchs_multi_head_attention(need_weights, keep_graph):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(16, 4, dropout=0.5, batch_first=True)

        def forward(self, x):
            return self.attn(x, x, x, need_weights=need_weights)

    torch.manual_seed(0)
    layer, x = Layer().eval(), torch.randn(2, 5, 16)
    plain, _ = layer(x)
    _, expected = layer.attn(x, x, x, average_attn_weights=False)
    with capture_attention(layer, keep_graph=keep_graph) as captured:
        out, weights = layer(x)
    assert_close(out, plain)
    assert (weights is not None) == need_weights
    assert [c.module for c in captured.calls] == ["attn"]
    assert_close(captured.calls[0].weights, expected)
    layer.train()
    with capture_attention(layer, keep_graph=keep_graph) as captured:
        layer(x)
    assert_close(captured.calls[0].weights, expected)  # before dropout


@pytest.mark.parametrize("fused", [True, False], indirect=True)
@pytest.mark.parametrize("keep_graph", [True, False])
def test_in_training_the_weights_are_those_before_dropout(fused, keep_graph):
    model = vit(attn_drop_rate=0.5, depth=1).train()
    torch.manual_seed(1)
    plain = model(images())
    torch.manual_seed(1)
    with capture_attention(model, keep_graph=keep_graph) as captured:
        out = model(images())
    assert_close(captured.calls[0].weights.sum(-1), torch.ones(2, 2, 17))
    if not keep_graph:
        assert torch.equal(out, plain)  # no random number was drawn
    own, x = Own(0.5).train(), torch.randn(1, 2, 5, 8)
    with capture_attention(own) as captured:
        own(x)
    assert_close(captured.calls[0].weights, (x @ x.transpose(-2, -1) * 8**-0.5).softmax(-1))


@pytest.mark.parametrize("fused", [True, False], indirect=True)
def test_keep_graph_gives_gradients_that_do_not_depend_on_fusion(fused):
    model = vit()
    with capture_attention(model, keep_graph=True) as captured:
        out = model(images())
    assert_close(out, model(images()))
    gradients = torch.autograd.grad(out[:, 0].sum(), [c.weights for c in captured.calls])
    # Oracle: move one weight of the first block, and see what the logit does.
    at, step = (0, 1, 3, 5), 1e-2
    with torch.no_grad(), capture_attention(model, ["blocks.0.attn"]) as seen:
        model(images())

    def moved(sign):
        class Nudge(torch.overrides.TorchFunctionMode):
            calls = 0

            def __torch_function__(self, func, types, args=(), kwargs=None):
                if func is F.scaled_dot_product_attention:
                    Nudge.calls += 1
                    if Nudge.calls == 1:
                        weights = seen["blocks.0.attn"][0].clone()
                        weights[at] += sign * step
                        return weights @ args[2]
                return func(*args, **(kwargs or {}))

        set_fused_attn(True)
        same = vit()
        same.load_state_dict(model.state_dict())
        with torch.no_grad(), Nudge():
            return same(images())[:, 0].sum()

    assert_close(gradients[0][at], (moved(1) - moved(-1)) / (2 * step), rtol=2e-2, atol=1e-5)


def test_where_takes_names_or_a_predicate():
    model = vit()
    for where in (["blocks.1.attn"], lambda name: name.endswith("1.attn")):
        with capture_attention(model, where) as captured:
            model(images())
            model(images())
        assert list(captured.by_module) == ["blocks.1.attn"]
        assert len(captured["blocks.1.attn"]) == len(captured) == 2
    captured.clear()
    assert len(captured) == 0
    with pytest.raises(ValueError, match=r"no such module: blocks\.99"), capture_attention(model, ["blocks.99"]):
        pass


def test_nothing_is_left_behind_not_even_by_an_exception():
    model = vit()
    before = hooks(model)
    handle = model.blocks[1].register_forward_pre_hook(lambda m, a: 1 / 0)
    with pytest.raises(ZeroDivisionError), capture_attention(model):
        model(images())
    handle.remove()
    assert hooks(model) == before
    with capture_attention(model) as captured:
        handle = model.blocks[1].mlp.register_forward_pre_hook(lambda m, a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(images())
        handle.remove()
        captured.clear()
        model(images())  # names are right after a failed call within the context
        F.scaled_dot_product_attention(*[torch.randn(1, 1, 3, 4)] * 3)  # not the model's
    assert [c.module for c in captured.calls] == [f"blocks.{i}.attn" for i in range(len(model.blocks))]
    assert hooks(model) == before
    model(images())
    assert len(captured) == len(model.blocks)


def test_under_autocast_the_output_is_what_it_is_without():
    model = vit()
    for keep_graph in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            plain = model(images())
            with capture_attention(model, keep_graph=keep_graph) as captured:
                out = model(images())
        assert out.dtype == plain.dtype
        assert_close(out, plain, rtol=3e-2, atol=3e-2)
        assert captured.calls[0].weights.dtype == torch.float32
