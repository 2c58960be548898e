"""The chunked CPU attention and the cheap dropout, against torch's own and against numerical gradients."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from vit_core.models import attention as module
from vit_core.models.attention import _ChunkedAttention, attention, choose_backend
from vit_core.models.dropout import Dropout, dropout, fill_keep_mask, keep_probability


def qkv(B=2, h=3, N=7, M=11, d=4, dtype=torch.float32):
    torch.manual_seed(0)
    shapes = [(B, h, N, d), (B, h, M, d), (B, h, M, d)]
    return [torch.randn(s, dtype=dtype, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("chunk", [1, 160, 340_000])  # scores a chunk: one head, two heads (with a rest), all
def test_chunked_attention_and_its_gradients_are_torchs(chunk, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_SCORES", chunk)
    ours, theirs = qkv(), qkv()
    a, b = attention(*ours), F.scaled_dot_product_attention(*theirs)
    assert choose_backend("cpu", torch.float32, 4) == "chunked"
    assert_close(a, b)
    weight = torch.randn_like(a)
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    for x, y in zip(ours, theirs, strict=True):
        assert_close(x.grad, y.grad)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_gradients_are_those_of_finite_differences(p):
    q, k, v = (t.flatten(0, 1).detach().requires_grad_() for t in qkv(1, 2, 3, 4, 2, torch.float64))

    def seeded(*tensors):
        torch.manual_seed(5)  # the same mask each time
        return _ChunkedAttention.apply(*tensors, p)

    assert torch.autograd.gradcheck(seeded, (q, k, v))


def test_dropout_drops_independent_weights_and_keeps_the_mean():
    N, M, p = 64, 50, 0.2
    q = torch.zeros(1, 4, N, 8)  # uniform weights 1/M
    v = torch.eye(M).expand(1, 4, M, M)  # the output row is the row of weights
    k = torch.zeros(1, 4, M, 8)
    weights = _ChunkedAttention.apply(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), p)
    kept = weights > 0
    assert_close(weights[kept], torch.full_like(weights[kept], 1 / M / keep_probability(p)))
    n = kept.numel()
    assert abs(kept.double().mean().item() - keep_probability(p)) < 4 * (p * (1 - p) / n) ** 0.5
    correlation = torch.corrcoef(kept.double().reshape(-1, M).T)
    assert correlation.fill_diagonal_(0).abs().max() < 0.35  # 256 rows: 5 standard deviations


def test_dropout_depends_on_torchs_generator_alone():
    q, k, v = qkv()
    torch.manual_seed(1)
    first, second = attention(q, k, v, 0.5), attention(q, k, v, 0.5)
    torch.manual_seed(1)
    assert torch.equal(attention(q, k, v, 0.5), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "p", "flash", "expected"),
    [
        ("cuda", torch.float16, 64, 0.0, True, "flash-attn"),
        ("cuda", torch.bfloat16, 64, 0.1, True, "flash-attn"),
        ("cuda", torch.float32, 64, 0.0, True, "SDPA"),  # flash-attn takes no float32
        ("cuda", torch.float16, 4, 0.0, True, "SDPA"),  # nor a head_dim that 8 does not divide
        ("cuda", torch.float16, 64, 0.0, False, "SDPA"),
        ("cpu", torch.float32, 64, 0.0, True, "SDPA"),
        ("cpu", torch.float32, 64, 0.1, True, "chunked"),
        ("cpu", torch.float32, 4, 0.0, True, "chunked"),
        ("cpu", torch.bfloat16, 4, 0.0, True, "SDPA"),
    ],
)
def test_choice_of_backend(monkeypatch, device, dtype, head_dim, p, flash, expected):
    monkeypatch.setattr(module, "flash_attn_installed", lambda: flash)
    assert choose_backend(device, dtype, head_dim, p) == expected


def test_one_log_line_a_choice_not_one_a_step(caplog):
    module._logged.clear()
    with caplog.at_level("INFO"):
        for _ in range(3):
            attention(*qkv())
    assert [r.message for r in caplog.records] == ["attention on cpu: chunked"]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_mask_keeps_its_share(p):
    mask = fill_keep_mask(torch.empty(1001, 301), p, torch.Generator().manual_seed(0))
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    share, n = mask.double().mean().item(), mask.numel()
    assert abs(share - keep_probability(p)) < 4 * (p * (1 - p) / n) ** 0.5
    assert abs(keep_probability(p) - (1 - p)) < 1 / 65536


def test_dropout_module_behaves_as_torchs():
    x = torch.ones(1000, requires_grad=True)
    layer = Dropout(0.25)
    y = layer(x)
    y.sum().backward()
    assert y.detach().unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(x.grad, y.detach())
    assert layer.eval()(x) is x
    assert torch.equal(dropout(x, 1.0), torch.zeros(1000))
    with pytest.raises(ValueError, match="must lie in"):
        dropout(x, 1.5)


def test_flash_attn_gets_its_layout_and_one_type(monkeypatch):
    """Under autocast a float32 bank makes float32 keys beside half queries; flash-attn wants (B, N, h, d), one type."""
    seen = []

    def flash_attn_func(q, k, v, dropout_p):
        seen.extend((q.dtype, k.dtype, v.dtype))
        assert all(t.is_contiguous() for t in (q, k, v))
        q, k, v = (t.transpose(1, 2).float() for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p).transpose(1, 2).half()

    fake = types.ModuleType("flash_attn")
    fake.flash_attn_func = flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn", fake)
    monkeypatch.setattr(module, "choose_backend", lambda *_: "flash-attn")
    q, k, v = (t.detach() for t in qkv(d=64))
    found = attention(q.half(), k, v)
    assert seen == [torch.float16] * 3
    assert_close(found.float(), F.scaled_dot_product_attention(q, k, v), rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
def test_flash_attn_agrees_with_sdpa():
    if not module.flash_attn_installed():
        pytest.skip("flash-attn is not installed")
    q, k, v = (t.detach().cuda().half() for t in qkv(d=64))
    assert_close(attention(q, k, v), F.scaled_dot_product_attention(q, k, v), rtol=1e-2, atol=1e-2)
