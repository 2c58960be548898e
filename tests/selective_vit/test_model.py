"""`make_selective` on timm's ViTs: nothing lost, nothing added, every form of threshold; and the registered models."""

import copy
import math
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.testing import assert_close

import selective_vit
from selective_vit import (
    SelectiveAttention,
    grow_threshold,
    make_selective,
    set_threshold,
    sparsity_penalty,
    threshold_values,
    thresholds,
)
from selective_vit.convert import attention_from_original, model_from_original
from selective_vit.model import SelectedWeights, describe_thresholds, sparse_loss
from vit_core.explain import SparsityTracker, capture_attention
from vit_core.training.config import TrainConfig
from vit_core.training.optimization import build_optimizer

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}


def vit(**fields):
    torch.manual_seed(0)
    return VisionTransformer(**{**SMALL, **fields}).eval()


def images(size=32, batch=2):
    torch.manual_seed(1)
    return torch.randn(batch, 3, size, size)


# ── in place, with the weights ───────────────────────────────────────────────────────────────────────────────────


def test_weights_are_kept_and_none_are_added():
    dense = vit()
    before = copy.deepcopy(dense.state_dict())
    selective = make_selective(dense, threshold=0.05)
    assert selective is dense
    assert list(selective.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in selective.state_dict().items())
    assert all(isinstance(b.attn, SelectiveAttention) for b in selective.blocks)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"qkv_bias": False},
        {"qk_norm": True},
        {"scale_attn_norm": True},
        {"reg_tokens": 2},
        {"global_pool": "avg", "class_token": False},
        {"init_values": 0.1},
    ],
)
def test_a_threshold_of_zero_is_the_dense_model(fields):
    dense = vit(**fields)
    expected = dense(images())
    assert_close(make_selective(dense, threshold=0.0)(images()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["eva02_tiny_patch14_224", "vit_small_patch16_rope_224", "test_vit3", "eva_giant_patch14_224"]
)
def test_other_vits_of_timm(name):
    """EVA-style attention with rotary embeddings, separate biases, fused and unfused products."""
    size = {"img_size": 56} if "patch14" in name else {"img_size": 64} if "224" in name else {}
    small = {"embed_dim": 48, "depth": 2, "num_heads": 4} if name.startswith(("eva", "vit_small")) else {}
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **size, **small).eval()
    with torch.no_grad():  # weights, and scales of layers, large enough for attention to matter
        for parameter_name, p in model.named_parameters():
            p.fill_(1) if "gamma" in parameter_name else p.mul_(4 if p.ndim > 1 else 1)
    x = images(size.get("img_size", 160))
    dense = model(x)
    names = list(model.state_dict())
    assert_close(make_selective(model, threshold=0.0)(x), dense, rtol=1e-4, atol=1e-5)
    make_selective(model, threshold=0.2, mode="hard")
    assert list(model.state_dict()) == names
    with torch.no_grad(), capture_attention(model) as captured:
        sparse = model(x)
    assert (sparse - dense).abs().max() > 1e-5
    calls = [c for c in captured.calls if c.module.startswith("blocks.")]  # test_vit3 pools by attention, too
    assert len(calls) == len(model.blocks), "one call a block: the weights after the selection"
    for call in calls:
        assert (call.weights == 0).any()
        assert_close(call.weights.sum(-1), torch.ones_like(call.weights.sum(-1)), rtol=0, atol=1e-4)


def test_only_the_blocks_that_are_named():
    model = make_selective(vit(depth=4), blocks=[0, -1])
    assert [type(b.attn) for b in model.blocks] == [SelectiveAttention, Attention, Attention, SelectiveAttention]
    assert list(thresholds(model)) == ["blocks.0.attn", "blocks.3.attn"]


def test_a_selective_model_takes_new_settings():
    model = make_selective(vit(), threshold=0.3)
    again = make_selective(model, threshold=0.02, mode="hard", empty_row="zero")
    assert_close(again(images()), make_selective(vit(), 0.02, "hard", "zero")(images()))
    set_threshold(again, 0.1)
    assert_close(again(images()), make_selective(vit(), 0.1, "hard", "zero")(images()))
    eva = timm.create_model("eva02_tiny_patch14_224", img_size=56, depth=1)
    make_selective(make_selective(eva))
    assert not isinstance(eva.blocks[0].attn.attn_drop.drop, SelectedWeights)


def test_the_originals_accident():
    """Its attention modules were built anew, so that the pretrained ones were lost; all else was kept."""
    dense = vit()
    before = copy.deepcopy(dense.state_dict())
    kept = {
        k for k, v in make_selective(dense, reinit_attention=True).state_dict().items() if torch.equal(v, before[k])
    }
    assert {k for k in before if k not in kept} == {k for k in before if ".attn." in k}


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="has no blocks: make_selective supports timm's ViTs"):
        make_selective(timm.create_model("test_convnext"))
    mixed = timm.create_model("test_vit")
    mixed.blocks[-1].attn = timm.create_model("test_vit", attn_layer="diff").blocks[0].attn
    with pytest.raises(ValueError, match=r"supports timm's Attention, .*, got a block with DiffAttention"):
        make_selective(mixed)
    assert type(mixed.blocks[0].attn) is Attention, "all blocks, or none"
    with pytest.raises(ValueError, match="has no selective attention: call make_selective first"):
        set_threshold(vit(), 0.1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"threshold": "0.01"}, "threshold must be a number, got '0.01' of type str"),
        ({"threshold": True}, "threshold must be a number, got True of type bool"),
        ({"threshold": [0.01]}, r"threshold must be a number, got \[0.01\] of type list"),
        ({"threshold": -0.1}, "threshold must be 0 or more and at most 1e6, got -0.1"),
        ({"threshold": math.nan}, "threshold must be finite, got nan"),
        ({"threshold": 1.0}, "threshold must be below 1, the maximum of an attention weight; got 1.0"),
        ({"threshold": 0.0, "learned_threshold": "head"}, "a learned threshold must start above 0"),
        ({"relative_threshold": "yes"}, "relative_threshold must be True or False, got 'yes'"),
        ({"learned_threshold": "block"}, "learned_threshold must be one of layer, head; got 'block'"),
        ({"threshold_growth": 2.0}, r"threshold_growth must lie in \[0, 1\], got 2.0"),
        ({"threshold_growth": "0.5"}, "threshold_growth must be a number, got '0.5' of type str"),
        ({"sparsity_weight": -1.0}, "sparsity_weight must be 0 or more and at most 1e6, got -1.0"),
        ({"sparsity_weight": "1"}, "sparsity_weight must be a number, got '1' of type str"),
        ({"sparsity_weight": 1.0, "threshold": 0.0}, "sparsity_weight has no effect with a threshold of 0"),
        ({"eps": "1e-6"}, "eps must be a number, got '1e-6' of type str"),
        ({"eps": 0.0}, "eps must be positive and at most 1e6, got 0.0"),
        ({"mode": "soft"}, "mode must be one of relu, hard; got 'soft'"),
        ({"blocks": 3}, r"blocks must be a list of block indices, such as \[0, 1\]; got 3"),
        ({"blocks": "01"}, "blocks must be a list of block indices"),
        ({"blocks": [0.5]}, "blocks must be integers, got 0.5"),
        ({"blocks": [7]}, "blocks: index 7 is out of range for a model with 2 blocks"),
        ({"kernel": "flex", "learned_threshold": "head"}, 'kernel="flex" does not work with learned thresholds$'),
        ({"kernel": "flex", "threshold_growth": 0.5}, 'kernel="flex" does not work with a growing threshold$'),
        ({"kernel": "flex", "sparsity_weight": 0.5}, 'kernel="flex" does not work with a sparsity term$'),
    ],
)
def test_refusals_name_the_argument_and_the_reason(wrong, message):
    with pytest.raises(ValueError, match=message):
        make_selective(vit(), **wrong)


def test_flex_is_refused_for_what_it_cannot_compute():
    with pytest.raises(ValueError, match=r'kernel="flex" does not work with attention dropout$'):
        make_selective(vit(attn_drop_rate=0.1), kernel="flex")
    eva = timm.create_model("eva02_tiny_patch14_224", img_size=56, depth=1)
    with pytest.raises(ValueError, match=r'kernel="flex" does not work with .*\(EvaAttention\)$'):
        make_selective(eva, kernel="flex")


# ── thresholds ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_relative_thresholds_follow_the_number_of_tokens():
    relative = make_selective(vit(dynamic_img_size=True), threshold=0.85, relative_threshold=True)
    for size, tokens in ((32, 17), (64, 65)):
        fixed = make_selective(vit(dynamic_img_size=True), threshold=0.85 / tokens)
        assert_close(relative(images(size)), fixed(images(size)))


@pytest.mark.parametrize("mode", ["relu", "hard"])
@pytest.mark.parametrize(("scope", "count"), [("layer", 1), ("head", 2)])
def test_learned_thresholds_start_where_they_should_and_move(scope, count, mode):
    fixed = make_selective(vit(), threshold=0.055, mode=mode)
    model = make_selective(vit(), threshold=0.055, mode=mode, learned_threshold=scope)
    assert_close(model(images()), fixed(images()), rtol=1e-4, atol=1e-5)
    added = set(model.state_dict()) - set(fixed.state_dict())
    assert added == {f"blocks.{i}.attn.threshold.raw_tau" for i in (0, 1)}
    assert all(model.state_dict()[k].shape == (count,) for k in added)
    model(images()).square().sum().backward()
    for t in thresholds(model).values():
        assert t.raw_tau.grad.isfinite().all()
        assert t.raw_tau.grad.any()
        assert (t(17) > 0).all(), "softplus keeps it positive"
    with pytest.raises(ValueError, match="learned"):
        set_threshold(model, 0.1)


@pytest.mark.parametrize("mode", ["relu", "hard"])
@pytest.mark.parametrize(
    ("name", "fields", "tokens"),
    [
        ("selective_vit_micro", {}, 65),
        ("selective_vit_base_patch16_224", {"depth": 2, "embed_dim": 96, "num_heads": 3}, 197),
        (
            "selective_vit_base_patch16_224",
            {"depth": 2, "embed_dim": 96, "num_heads": 3, "reinit_attention": True},
            197,
        ),
    ],
)
def test_learned_thresholds_start_where_every_one_gets_a_gradient(name, fields, tokens, mode):
    """At 1/N: the mean of a row, so that some of it passes and some does not. From a fixed number they may not."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, learned_threshold="head", mode=mode, **fields).train()
    x = torch.randn(4, 3, *model.patch_embed.img_size)
    start = threshold_values(model, tokens)
    assert all(value == pytest.approx(1 / tokens) for values in start.values() for value in values)
    optimizer = build_optimizer(model, TrainConfig(lr=2e-3))
    F.cross_entropy(model(x), torch.arange(4)).backward()
    for t in thresholds(model).values():
        assert (t.raw_tau.grad.abs() > 1e-6).all()
    optimizer.step()
    for layer, values in threshold_values(model, tokens).items():
        assert all(abs(v / s - 1) > 5e-4 for v, s in zip(values, start[layer], strict=True)), "Adam's first step"


@pytest.mark.parametrize(("mode", "tau"), [("relu", 2.0), ("hard", 0.1)])
def test_where_a_learned_threshold_has_no_gradient(mode, tau):
    """Why it does not start from the paper's 0.01, which is 2/N in ViT-B/16: nothing lies near the gate."""
    model = timm.create_model(
        "selective_vit_micro", threshold=tau, relative_threshold=True, learned_threshold="layer", mode=mode
    ).train()
    model(images()).square().sum().backward()
    assert all(t.raw_tau.grad.abs() < 1e-8 for t in thresholds(model).values())


def test_the_default_thresholds():
    for form, value in (
        ({}, 0.01),
        ({"relative_threshold": True}, 1 / 17),
        ({"learned_threshold": "layer"}, 1 / 17),
        ({"learned_threshold": "head", "threshold": 0.02}, 0.02),
    ):
        values = threshold_values(make_selective(vit(), **form), 17)
        assert values["blocks.0.attn"] == pytest.approx([value] * (2 if form.get("learned_threshold") == "head" else 1))


def test_the_training_log_says_where_learned_thresholds_are():
    assert describe_thresholds(make_selective(vit())) == describe_thresholds(vit()) == ""
    model = make_selective(vit(), learned_threshold="head")
    thresholds(model)["blocks.1.attn"].raw_tau.data += torch.tensor([0.0, 0.2])
    assert describe_thresholds(model) == "learned thresholds × N by block 1 1.065  lowest 1 highest 1.131"
    model = make_selective(vit(), threshold=0.02, learned_threshold="layer")
    assert describe_thresholds(model) == "learned thresholds by block 0.02 0.02  lowest 0.02 highest 0.02"


# ── the sparsity term ────────────────────────────────────────────────────────────────────────────────────────────


def share_that_passes(model):
    """Counted, in evaluation mode."""
    tracker = SparsityTracker()
    tracker.update(model, images(batch=8))
    return 1 - tracker.mean("sparsity")


@pytest.mark.parametrize("mode", ["relu", "hard"])
@pytest.mark.parametrize("learned", [None, "layer", "head"])
def test_the_sparsity_term_takes_weights_away(learned, mode):
    """By the scores under a fixed threshold, by the threshold where it is learned; without it the loss says nothing."""
    shares = []
    for weight in (0.0, 10.0):
        model = make_selective(
            vit(), threshold=0.9, relative_threshold=True, learned_threshold=learned, mode=mode, sparsity_weight=weight
        ).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(15):
            loss, _ = sparse_loss(model, images(batch=8), torch.arange(8) % 5, nn.CrossEntropyLoss())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        shares.append(share_that_passes(model))
    assert shares[1] < shares[0] - 0.1


def test_the_sparsity_term_is_the_share_that_passes():
    x = images(batch=8)
    model = make_selective(vit(), threshold=0.055, sparsity_weight=0.5, mode="hard")
    model(x)
    assert sparsity_penalty(model) == 0.0, "none in evaluation"
    model.train()(x)
    copy.deepcopy(model), pickle.dumps(model)  # what the term keeps is no part of a copy
    first_block, second_block = (t.passing.detach() for t in thresholds(model).values())
    penalty = sparsity_penalty(model)
    assert penalty.requires_grad
    with torch.no_grad(), capture_attention(dense := vit()) as captured:
        dense(x)
    P = captured.calls[0].weights  # of the first block, whose input is the same in both
    first = torch.sigmoid((P - 0.055) / (0.055 / 4)).mean().item()
    assert first_block.item() == pytest.approx(first, rel=1e-4)
    assert penalty.item() == pytest.approx(0.5 * (first_block + second_block).item() / 2)
    assert sparsity_penalty(model) == 0.0, "of one forward pass, once"
    assert sparsity_penalty(vit().train()) == 0.0
    eva = timm.create_model("eva02_tiny_patch14_224", img_size=56, depth=1, embed_dim=48, num_heads=4)
    make_selective(eva, 0.055, sparsity_weight=1.0).train()(images(56))
    sparsity_penalty(eva).backward()
    assert eva.blocks[0].attn.qkv.weight.grad.any()


@pytest.mark.parametrize("way", ["compile", "checkpointing"])
@pytest.mark.slow
def test_the_sparsity_term_compiled_and_checkpointed(way):
    grads = []
    for changed in (False, True):
        model = make_selective(vit(), learned_threshold="head", sparsity_weight=1.0).train()
        if changed and way == "checkpointing":
            model.set_grad_checkpointing()
        called = torch.compile(model) if changed and way == "compile" else model
        sparse_loss(called, images(), torch.arange(2), nn.CrossEntropyLoss())[0].backward()
        grads.append([p.grad for p in model.parameters()])
    for ours, theirs in zip(*grads, strict=True):
        assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_weight_decay_leaves_thresholds_alone():
    """Decay would pull softplus towards 0.69."""
    model = make_selective(vit(), learned_threshold="head")
    raw = {id(t.raw_tau) for t in thresholds(model).values()}
    for group in build_optimizer(model, TrainConfig(weight_decay=0.05)).param_groups:
        if group["weight_decay"]:
            assert not raw & {id(p) for p in group["params"]}


def test_large_learned_thresholds():
    model = make_selective(vit(), threshold=800.0, relative_threshold=True, learned_threshold="layer")
    assert_close(thresholds(model)["blocks.0.attn"](1000).flatten(), torch.tensor([0.8]))


def test_a_growing_threshold():
    model = make_selective(vit(), threshold=0.08, threshold_growth=0.5)
    dense, full = vit()(images()), make_selective(vit(), threshold=0.08)(images())
    assert_close(model(images()), dense, rtol=1e-4, atol=1e-5)
    grow_threshold(model, 0.25)
    assert_close(model(images()), make_selective(vit(), threshold=0.04)(images()))
    state = copy.deepcopy(model.state_dict())
    grow_threshold(model, 0.9)
    assert_close(model(images()), full)
    model.load_state_dict(state)  # what a checkpoint of the middle holds
    assert_close(model(images()), make_selective(vit(), threshold=0.04)(images()))
    other = make_selective(vit(), threshold=0.08, threshold_growth=0.5, learned_threshold="layer")
    assert_close(other(images()), dense, rtol=1e-4, atol=1e-5)


# ── the registered models ────────────────────────────────────────────────────────────────────────────────────────


def test_as_many_parameters_as_the_dense_models():
    with torch.device("meta"):
        base = timm.create_model("selective_vit_base_patch16_224", num_classes=10)
        plain = timm.create_model("vit_base_patch16_224", num_classes=10)
    assert sum(p.numel() for p in base.parameters()) == sum(p.numel() for p in plain.parameters()) == 85_806_346
    assert list(base.state_dict()) == list(plain.state_dict())
    micro, dense = (timm.create_model(f"{n}_vit_micro", num_classes=10) for n in ("selective", "dense"))
    assert list(micro.state_dict()) == list(dense.state_dict())
    with pytest.raises(ValueError, match="has plain attention and does not support threshold"):
        timm.create_model("dense_vit_micro", threshold=0.1)


def test_timms_own_use_of_a_model():
    model = timm.create_model("selective_vit_micro", num_classes=7, threshold=0.02, mode="hard").eval()
    x = images(batch=3)
    features = model.forward_features(x)
    assert features.shape == (3, 65, 64)
    assert_close(model.forward_head(features), model(x))
    final, maps = model.forward_intermediates(x, indices=2)
    assert [m.shape for m in maps] == [(3, 64, 8, 8)] * 2
    assert_close(final, features)
    assert model.get_classifier().out_features == 7
    model.reset_classifier(4)
    assert model(x).shape == (3, 4)
    assert {"pos_embed", "cls_token"} <= model.no_weight_decay()
    assert_close(model(x)[1:2], model(x[1:2]), rtol=1e-4, atol=1e-5)
    twin = pickle.loads(pickle.dumps(model))
    assert_close(twin(x), model(x))
    expected = model(x)
    model.set_grad_checkpointing()
    model.train()(x).sum().backward()
    assert model.blocks[0].attn.qkv.weight.grad.isfinite().all()
    assert_close(model.eval()(x), expected)


def test_two_images_sizes_through_timm():
    model = timm.create_model("selective_vit_micro", num_classes=3, img_size=(32, 48), relative_threshold=True).eval()
    assert model(torch.randn(1, 3, 32, 48)).shape == (1, 3)


MODELS = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__ == "selective_vit.registry"]


@pytest.mark.parametrize("name", MODELS)
def test_features_only(name):
    """timm's backbone interface: maps (B, C, H, W) of the blocks that are asked for, by default of the last three."""
    assert len(MODELS) == 3
    base = {"depth": 4, "embed_dim": 96, "num_heads": 3} if "base" in name else {}
    side, patch, width = (224, 16, 96) if base else (32, 4, 64)
    ours = {"threshold": 0.02, "mode": "hard", "blocks": [0, -1]} if name.startswith("selective") else {}
    for wanted, indices in (
        ({}, (1, 2, 3)),
        ({"out_indices": (0, 2)}, (0, 2)),
        ({"out_indices": (-2, -1)}, (2, 3)),
        ({"out_indices": 1, "in_chans": 1}, (3,)),
    ):
        torch.manual_seed(0)
        backbone = timm.create_model(name, features_only=True, **wanted, **base, **ours).eval()
        torch.manual_seed(0)
        whole = timm.create_model(name, in_chans=wanted.get("in_chans", 3), **base, **ours).eval()
        x = torch.randn(2, wanted.get("in_chans", 3), side, side)
        with torch.no_grad():
            maps, expected = backbone(x), whole.forward_intermediates(x, indices=list(indices), intermediates_only=True)
        assert [m.shape for m in maps] == [(2, width, side // patch, side // patch)] * len(indices)
        assert backbone.feature_info.channels() == [width] * len(indices)
        assert backbone.feature_info.reduction() == [patch] * len(indices)
        for found, wish in zip(maps, expected, strict=True):
            assert_close(found, wish)
        if ours:
            there = {f"model.{layer}" for layer in thresholds(whole) if int(layer.split(".")[1]) <= max(indices)}
            assert set(thresholds(backbone)) == there, "the blocks of the whole model"


def test_features_only_with_learned_thresholds_train_and_grow():
    model = timm.create_model(
        "selective_vit_micro", features_only=True, learned_threshold="head", threshold_growth=0.5, sparsity_weight=1.0
    ).train()
    grow_threshold(model, 0.5)
    (sum(m.square().mean() for m in model(images())) + sparsity_penalty(model)).backward()
    assert all(t.raw_tau.grad.any() for t in thresholds(model).values())
    assert describe_thresholds(model).startswith("learned thresholds")


@pytest.mark.slow
def test_compiled_and_exported():
    model = timm.create_model("selective_vit_micro", num_classes=3, threshold=0.02, depth=1).eval()
    x = images()
    assert_close(torch.compile(model, fullgraph=True)(x), model(x), rtol=1e-4, atol=1e-5)
    assert_close(torch.export.export(model, (x,)).module()(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_whole_checkpoint_of_the_original():
    torch.manual_seed(0)
    theirs = VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1, num_classes=10)
    state = {f"model.{k}": v for k, v in theirs.state_dict().items()}
    ours = model_from_original(state, {"threshold": 0.05})
    expected = make_selective(theirs.eval(), 0.05, "hard", "zero")
    assert torch.equal(ours(images()), expected(images()))
    state["model.more"] = state.pop("model.norm.bias")
    with pytest.raises(ValueError, match=r"missing norm.bias; unexpected more"):
        model_from_original(state, {})
    with pytest.raises(ValueError, match=r"missing patch_embed.proj.weight"):
        model_from_original({}, {})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "config: missing dim, heads, threshold, eps"),
        ({"dim": "wide"}, "config: dim must be a number, got 'wide'"),
        ({"heads": 3}, "config: dim must be a multiple of heads, got 8 and 3"),
        ({"heads": 2.5}, "config: heads must be an integer, got 2.5"),
        ({"heads": 0}, "config: dim must be a multiple of heads, got 8 and 0"),
        ({"threshold": "low"}, "config: threshold must be a number, got 'low'"),
        ({"threshold": None}, "config: threshold must be a number, got None"),
        ({"threshold": "1.5"}, "threshold must be below 1"),
        ({"depth": 2}, "config: unexpected depth"),
    ],
)
def test_configs_of_the_original_that_cannot_be(config, message):
    state = {
        "qkv.weight": torch.zeros(24, 8),
        "qkv.bias": torch.zeros(24),
        "proj.weight": torch.zeros(8, 8),
        "proj.bias": torch.zeros(8),
    }
    good = {"dim": 8, "heads": 2, "threshold": "0.01", "eps": 1e-6}
    assert attention_from_original(state, good)(torch.zeros(1, 3, 8)).shape == (1, 3, 8)
    with pytest.raises(ValueError, match=message):
        attention_from_original(state, {**good, **config} if config else {})
    if config.get("heads") in (0, 3):
        with pytest.raises(ValueError, match="config: heads must divide the width of 32, got"):
            model_from_original({f"model.{k}": v for k, v in vit().state_dict().items()}, config)


def test_the_package_names_what_it_has():
    assert all(hasattr(selective_vit, name) for name in selective_vit.__all__)
