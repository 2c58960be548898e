"""HTHTA-ViT's invariants: counts, the parts against their formulas, the ablation, timm's contract."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from hthta_vit import (
    COMPONENTS,
    HTHTAViT,
    hthta_vit_base_patch16_224,
    hthta_vit_base_patch16_224_gru2,
    hthta_vit_micro,
)
from hthta_vit.model import AttentionPooling, ClassTokenFusion, SequenceModel


def micro(**fields):
    torch.manual_seed(0)
    return hthta_vit_micro(**{"num_classes": 10, "depth": 2, **fields})


def images(count=3):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


# ── size ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("build", "count", "gru"),
    [(hthta_vit_base_patch16_224, 99_453_806, 7_087_104), (hthta_vit_base_patch16_224_gru2, 110_079_854, 17_713_152)],
)
def test_parameter_counts(build, count, gru):
    """One GRU layer gives the seed's 99.3M; either way GRU and pooling are over the "under 1M" of its text."""
    with torch.device("meta"):
        model = build(num_classes=100)
    counts = {name: sum(p.numel() for p in m.parameters()) for name, m in model.named_modules()}
    assert counts["guided.bigru.bigru"] == gru
    assert counts["guided.bigru.projection"] == 1_180_416
    assert counts["guided.attention_pooling"] == 591_368
    assert counts["guided.cls_fusion.projection"] == 4_719_360
    assert counts[""] - counts["guided"] - counts["head"] == 85_798_656
    assert counts[""] == count


def gmacs(model, size):
    """Attention included: the plain kernel is made of products that torch's counter knows."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() / 2e9


def test_multiply_adds():
    """Everything beside the ViT adds to its 17.56: the claimed 15.3 cannot be."""
    counts = {}
    with torch.device("meta"):
        for layers in (1, 2):
            for components in COMPONENTS:
                model = hthta_vit_base_patch16_224(gru_layers=layers, components=components, num_classes=100)
                counts[layers, components] = gmacs(model.eval(), 224)
    vit = counts[1, "none"]
    projection, pooling, w_p = 0.2312, 0.1156 + 0.0012, 0.0047
    assert vit == pytest.approx(17.56, abs=0.01)
    assert counts[1, "bigru"] - vit == pytest.approx(1.387 + projection, abs=1e-3)
    assert counts[2, "bigru"] - vit == pytest.approx(3.468 + projection, abs=1e-3)
    assert counts[1, "bigru+pooling"] - counts[1, "bigru"] == pytest.approx(pooling + w_p, abs=1e-3)
    assert counts[1, "bigru+pooling+fusion"] == pytest.approx(19.30, abs=0.01)
    assert counts[2, "bigru+pooling+fusion"] == pytest.approx(21.38, abs=0.01)


@pytest.mark.slow
def test_the_reading_nearest_to_the_claimed_multiply_adds():
    """torchvision's ViT in eval mode runs its attention as one operator that the counter does not know.

    What is left of ViT-B/16, 11.27, is 15.09 with all parts and two GRU layers, 13.01 with one. Counted in full they
    are 21.38 and 19.30. Of these four 15.09 is the nearest to the seed's 15.3, and none is it: 15.3 is 17.6 less the
    claimed 13%. The number of classes adds 0.0008 at most (1,000), the number of heads nothing (their width is fixed).
    """
    from torchvision.models import vit_b_16

    vit = vit_b_16().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        vit(torch.randn(1, 3, 224, 224))
    attention_hidden = counter.get_total_flops() / 2e9
    assert attention_hidden == pytest.approx(11.27, abs=0.01)
    with torch.device("meta"):
        plain = gmacs(hthta_vit_base_patch16_224(components="none"), 224)
        for layers, total in ((1, 13.01), (2, 15.09)):
            added = gmacs(hthta_vit_base_patch16_224(gru_layers=layers), 224) - plain
            assert attention_hidden + added == pytest.approx(total, abs=0.01)


# ── the parts, against the formulas written out ──────────────────────────────────────────────────────────────────


def test_the_gru_is_the_formula_step_by_step_in_both_directions():
    torch.manual_seed(0)
    model = SequenceModel(6, layers=1).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    directions = []
    for suffix, order in (("", range(5)), ("_reverse", range(4, -1, -1))):
        w_ih, w_hh, b_ih, b_hh = (
            getattr(model.bigru, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        state, states = torch.zeros(2, 6, dtype=torch.float64), {}
        for i in order:
            (r, z, n), (hr, hz, hn) = (x[:, i] @ w_ih.T + b_ih).chunk(3, -1), (state @ w_hh.T + b_hh).chunk(3, -1)
            r, z = (r + hr).sigmoid(), (z + hz).sigmoid()
            state = states[i] = (1 - z) * (n + r * hn).tanh() + z * state
        directions.append(torch.stack([states[i] for i in range(5)], 1))
    expected = torch.cat(directions, -1) @ model.projection.weight.T + model.projection.bias
    assert_close(model(x), expected)


def test_pooling_is_the_formula_head_by_head():
    torch.manual_seed(0)
    pooling, h = AttentionPooling(12, 3, 5).double(), torch.randn(2, 7, 12, dtype=torch.float64)
    contexts, alpha = pooling(h)
    for j in range(3):
        w, b = pooling.proj.weight[5 * j : 5 * j + 5], pooling.proj.bias[5 * j : 5 * j + 5]
        for image in range(2):
            e = torch.stack([pooling.score[j] @ torch.tanh(w @ h_i + b) for h_i in h[image]])
            a = e.exp() / e.exp().sum()  # without v's bias: the softmax cancels it
            assert_close(alpha[image, j], a)
            assert_close(contexts[image, 12 * j : 12 * j + 12], sum(a[i] * h[image, i] for i in range(7)))
    assert_close(alpha.sum(-1), torch.ones(2, 3, dtype=torch.float64))


def test_fusion_is_the_formula():
    fusion = ClassTokenFusion(6, 2, 0.3, 0.2, fusion=True)
    cls, contexts = torch.randn(4, 6), torch.randn(4, 12)
    p = fusion.projection(contexts)
    assert_close(fusion(cls, contexts), 0.3 * cls + 0.7 * p + 0.2 * cls * p)
    fusion(cls, contexts).sum().backward()
    assert fusion.gamma.grad is not None
    assert fusion.beta.grad is not None


def test_none_is_a_plain_vit():
    model = micro(components="none").eval()
    plain = timm.models.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=64, depth=2, num_heads=4, mlp_ratio=2.0, num_classes=10
    ).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(images()), plain(images()))


@pytest.mark.parametrize("components", COMPONENTS)
def test_every_row_of_the_ablation_learns_in_all_its_parts(components):
    model = micro(components=components)
    logits, alpha = model(images(), return_attention=True)
    assert logits.shape == (3, 10)
    assert (alpha is None) == ("pooling" not in components)
    assert (model.attention_map(images()) is None) == (alpha is None)
    assert torch.equal(logits, model(images()))
    logits.square().sum().backward()
    silent = {n for n, p in model.named_parameters() if p.grad is None}
    assert silent == set()


def test_components_as_a_tuple_and_as_nonsense():
    assert micro(components=("bigru", "pooling")).guided.cls_fusion.fusion is False
    assert micro(components=()).guided.bigru is None
    for wrong in ("pooling", ("fusion",), "gru"):
        with pytest.raises(ValueError, match="components must be one of none, bigru"):
            micro(components=wrong)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"pool_heads": 0}, "heads must be at least 1"),
        ({"gru_layers": 0}, "gru_layers must be at least 1"),
        ({"frozen_blocks": 3}, r"frozen_blocks must lie in \[0, 2\]"),
        ({"reg_tokens": 1}, "a class token and no other prefix tokens"),
    ],
)
def test_impossible_arguments_name_the_rule(fields, rule):
    with pytest.raises(ValueError, match=rule):
        micro(**fields)


def test_attention_map_follows_the_grid():
    model = micro().eval()
    alpha = model(images(), return_attention=True)[1]
    grid = model.attention_map(images())
    assert grid.shape == (3, 8, 8)
    assert_close(grid.flatten(1), alpha.mean(1))
    assert_close(grid.sum((1, 2)), torch.ones(3))


def test_frozen_blocks_do_not_learn():
    model = micro(frozen_blocks=1)
    model(images()).sum().backward()
    frozen = {n for n, p in model.named_parameters() if p.grad is None}
    expected = ("patch_embed.", "cls_token", "pos_embed", "blocks.0.")
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith(expected)}


# ── timm's contract ──────────────────────────────────────────────────────────────────────────────────────────────


def test_timm_creates_every_size_with_every_field():
    assert {"hthta_vit_base_patch16_224", "hthta_vit_micro"} <= set(timm.list_models("hthta_vit*"))
    assert "hthta_vit_base_patch16_224.augreg_in21k" in timm.list_models("hthta_vit*", pretrained=True)
    with torch.device("meta"):
        model = timm.create_model("hthta_vit_base_patch16_224", depth=2, num_classes=7, gru_layers=2, beta=0.2)
    assert isinstance(model, HTHTAViT)
    assert (len(model.blocks), model.num_classes, model.guided.bigru.bigru.num_layers) == (2, 7, 2)
    assert model.pretrained_cfg["input_size"] == (3, 224, 224)
    assert model.pretrained_cfg["hf_hub_id"].startswith("timm/vit_base_patch16_224")


def test_head_can_be_replaced_and_removed():
    model = micro().eval()
    with torch.no_grad():
        features = model.forward_features(images())
        pooled = model.forward_head(features, pre_logits=True)
        assert_close(pooled, model.read(features)[0])
        assert_close(model.head(pooled), model(images()))
        model.reset_classifier(0)
        assert_close(model(images()), pooled)
        model.reset_classifier(0, "")
        assert model(images()).shape == (3, 65, 64)
        model.reset_classifier(5, "token")
        assert model(images()).shape == (3, 5)
    assert isinstance(model.get_classifier(), nn.Linear)


def test_forward_intermediates_and_grad_checkpointing():
    model = micro()
    with torch.no_grad():
        final, grids = model.forward_intermediates(images())
        assert_close(final, model.forward_features(images()))
        assert [g.shape for g in grids] == [(3, 64, 8, 8)] * 2
    model(images()).sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    model.set_grad_checkpointing()
    model(images()).sum().backward()
    for n, p in model.named_parameters():
        assert_close(p.grad, expected[n], msg=n)


def test_layer_decay_puts_the_parts_last():
    model = micro()
    assert model.no_weight_decay() <= {n for n, _ in model.named_parameters()} | {"reg_token", "dist_token"}
    scales = {id(p): g["lr_scale"] for g in param_groups_layer_decay(model, layer_decay=0.5) for p in g["params"]}
    by_name = {n: scales[id(p)] for n, p in model.named_parameters()}
    assert by_name["pos_embed"] < by_name["blocks.0.attn.qkv.weight"] < by_name["blocks.1.attn.qkv.weight"]
    parts = {s for n, s in by_name.items() if n.startswith(("guided", "norm"))}
    assert parts == {by_name["norm.weight"]}


def test_autocast():
    model = micro()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(images()).float().square().sum()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
def test_torch_compile_gives_the_same_logits():
    model = micro().eval()
    with torch.no_grad():
        assert_close(torch.compile(model, backend="aot_eager")(images()), model(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gpu_agrees_with_the_cpu(dtype):
    model = micro().eval()
    with torch.no_grad():
        expected = model(images())
        with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            found = model.cuda()(images().cuda())
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    assert_close(found.float().cpu(), expected, rtol=tolerance, atol=tolerance)
