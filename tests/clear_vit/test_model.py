"""The eight models: counts, timm's contract, other grids, torch.compile, what each variant is."""

import copy
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay
from torch.testing import assert_close

from clear_vit import VARIANTS, ClearViT
from clear_vit.entropy import pixel_entropy, token_entropy, with_class_token
from clear_vit.model import ATTENTIONS
from vit_core.explain import attention_rollout, capture_attention, grad_cam

COUNTS = {
    "pos_dropout": 5_555_044, "diff_similarity": 5_555_044, "baseline": 5_555_044, "suppression": 5_555_368,
    "rope": 5_508_196, "diff_entropy": 5_555_812, "rope_mixed_ape": 5_557_348, "rope_axial": 5_505_892,
}  # fmt: skip


def micro(name, **fields):
    torch.manual_seed(0)
    model = timm.create_model(f"clear_vit_micro_{name}", **{"num_classes": 5, "depth": 2, **fields}).eval()
    torch.nn.init.normal_(model.head.weight, std=0.1)  # the original's head starts at zero, and so does every logit
    return model


def images(height=32, width=32, count=2):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


def test_parameter_counts(variant):
    with torch.device("meta"):
        model = timm.create_model(f"clear_vit_tiny_{variant}")
    assert sum(p.numel() for p in model.parameters()) == COUNTS[variant]
    assert (len(model.blocks), model.embed_dim, model.blocks[0].attn.num_heads) == (12, 192, 3)
    assert model.patch_embed.grid_size == (16, 16)


def test_timms_contract(variant):
    model, x = micro(variant), images()
    tokens = model.forward_features(x)
    assert tokens.shape == (2, 65, 64)
    assert torch.equal(model(x), model.forward_head(tokens))
    assert_close(model.get_classifier()(model.forward_head(tokens, pre_logits=True)), model(x))
    assert model.no_weight_decay() >= {"pos_embed", "cls_token"}
    named = dict(model.named_parameters())
    assert {n for n in named if n.startswith("rope.")} <= model.no_weight_decay()
    groups = param_groups_layer_decay(model, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5)
    grouped = [p for g in groups for p in g["params"]]
    assert len(grouped) == len(named)
    if "rope.freqs" in named:
        (scale,) = {g["lr_scale"] for g in groups if any(p is named["rope.freqs"] for p in g["params"])}
        assert scale == min(g["lr_scale"] for g in groups), "frequencies of the first layers belong to the stem"
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    model.reset_classifier(0)
    assert model(x).shape == (2, 64)


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (32, 56)])
def test_forward_intermediates_at_any_size(variant, size):
    model, x = micro(variant, depth=3), images(*size)
    grid = (size[0] // 4, size[1] // 4)
    final, maps = model.forward_intermediates(x)
    assert [m.shape for m in maps] == [(2, 64, *grid)] * 3
    assert torch.equal(final, model.forward_features(x))
    assert torch.equal(model.norm(maps[-1].flatten(2).transpose(1, 2)), final[:, 1:])
    (last,) = model.forward_intermediates(x, 1, norm=True, output_fmt="NLC", intermediates_only=True)
    assert torch.equal(last, final[:, 1:])
    model.blocks[1].register_forward_hook(lambda *_: pytest.fail("stop_early runs no block that is not needed"))
    ((first, token),) = model.forward_intermediates(
        x, [0], return_prefix_tokens=True, stop_early=True, intermediates_only=True
    )
    assert torch.equal(first, maps[0])
    assert token.shape == (2, 1, 64)
    assert model.prune_intermediate_layers([0]) == [0]
    assert torch.equal(model.forward_intermediates(x, [0], intermediates_only=True)[0], maps[0])
    with pytest.raises(ValueError, match="multiple of the patch size 4 × 4; got 32 × 30"):
        model(images(32, 30))


@pytest.mark.parametrize("variant", ["rope", "rope_mixed_ape", "rope_axial", "baseline"])
def test_trained_at_224_and_tested_at_384(variant):
    model = timm.create_model(f"clear_vit_tiny_{variant}", img_size=224, num_classes=3, depth=2).eval()
    with torch.no_grad():
        maps = model.forward_intermediates(torch.randn(1, 3, 384, 384), intermediates_only=True)
        assert maps[-1].shape == (1, 192, 24, 24)
        assert model(torch.randn(1, 3, 224, 352)).shape == (1, 3)


def test_a_larger_grid_continues_the_smaller_one():
    """RoPE's places are integers: the tables of a small grid lie in those of a larger one."""
    rope = micro("rope").rope
    for small, large in zip(rope((4, 6)), rope((5, 9)), strict=True):
        part = large[:, 1:].unflatten(1, (5, 9))[:, :4, :6].flatten(1, 2)
        assert_close(small[:, 1:], part)


def test_the_position_embedding_is_interpolated():
    model = micro("baseline")
    with torch.no_grad():
        ramp = torch.linspace(0, 1, 8).view(8, 1, 1).expand(8, 8, 64)
        model.pos_embed.copy_(ramp.reshape(1, 64, 64))
        model.cls_token.zero_()
        larger = model._pos_embed(torch.zeros(1, 16, 8, 64))[0, 1:].view(16, 8, 64)
    assert (larger.diff(dim=0) > 0).all()
    assert larger.std(dim=1).max() < 1e-5
    assert larger.mean().item() == pytest.approx(0.5, abs=0.01)


def test_gradients_reach_every_parameter_and_checkpointing_changes_nothing(variant):
    model, x = micro(variant, attn_drop_rate=0.0).train(), images()
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(0)  # pos_dropout's mask
        model(x).square().sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
    for name, grad in grads[0].items():
        assert grad is not None, name
        assert grad.abs().max() > 0, name
        assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_compiled_in_one_graph(variant):
    pixels = {"entropy_source": "pixels"} if variant == "diff_entropy" else {}
    model, x = micro(variant, depth=1, **pixels), images()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    if variant == "pos_dropout":
        return  # in training a compiled mask is another mask
    model.train()
    grads = []
    for call in (model, compiled):
        model.zero_grad()
        call(x).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for ours, theirs in zip(*grads, strict=True):
        assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_copies_states_and_double_precision(variant):
    model, x = micro(variant), images()
    logits = model(x)
    assert torch.equal(copy.deepcopy(model)(x), logits)
    other = micro(variant)
    for p in other.parameters():
        torch.nn.init.normal_(p)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), logits)
    precise = copy.deepcopy(model).double()(x.double())
    assert precise.dtype == torch.double
    assert_close(precise.float(), logits, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(model(x).float(), logits, rtol=0.1, atol=0.1)


def test_attention_is_seen(variant):
    """The captured maps are what the model applies: rows sum to one, and they give the output again."""
    model, x = micro(variant), images()
    calls = 2 if variant == "diff_entropy" else 1
    with capture_attention(model) as captured, torch.no_grad():
        seen = model(x)
    assert_close(seen, model(x), rtol=1e-4, atol=1e-5)
    assert list(captured.by_module) == ["blocks.0.attn", "blocks.1.attn"]
    for weights in captured.by_module.values():
        assert [w.shape for w in weights] == [(2, 4, 65, 65)] * calls
        assert_close(weights[0].sum(-1), torch.ones(2, 4, 65))
    attn = model.blocks[0].attn
    tokens = model.blocks[0].norm1(model._pos_embed(model.patch_embed(x)))
    table = None if model.rope is None else model.rope((8, 8))[0]
    q, k, v = attn.project(tokens, table)
    if variant == "suppression":
        scores = q @ k.transpose(-2, -1) / 4
        scores = scores - F.conv2d(scores, attn.kernel[:, None], padding=1, groups=4)
        assert_close(captured["blocks.0.attn"][0], scores.softmax(-1), rtol=1e-4, atol=1e-6)
    if variant == "diff_entropy":
        first, second = captured["blocks.0.attn"]
        lam = with_class_token(token_entropy(tokens[:, 1:]))[:, None, :, None]
        given = F.rms_norm((first - lam * second) @ v, (16,), attn.head_norm.weight, 1e-5) * (1 - attn.lambda_init)
    else:
        given = captured["blocks.0.attn"][0] @ v
    assert_close(given, attn.attend(q, k, v, tokens, None), rtol=1e-4, atol=1e-5)


def test_explanations_work(variant):
    model, x = micro(variant), images()
    assert grad_cam(model, x, 1).shape == (2, 8, 8)
    if variant != "diff_entropy":  # two maps a layer: rollout has no rule for them
        assert attention_rollout(model, x).shape == (2, 8, 8)


def test_entropy_of_pixels_instead_of_tokens():
    tokens, pixels = (micro("diff_entropy", entropy_source=s) for s in ("tokens", "pixels"))
    assert tokens.state_dict().keys() == pixels.state_dict().keys()
    x = images()
    assert not torch.allclose(tokens(x), pixels(x))
    seen = []
    for block in pixels.blocks:
        block.attn.register_forward_hook(lambda _, inputs, out: seen.append(inputs[2]))
    pixels(x)
    for entropy in seen:  # in every block, each patch its own
        assert_close(entropy, with_class_token(pixel_entropy(x, (4, 4))))
    assert len(seen) == 2
    seen.clear()
    pixels(torch.ones(1, 3, 32, 32))
    assert torch.equal(seen[0], torch.zeros(1, 65)), "flat: of the second map nothing is left"
    coarse = micro("diff_entropy", entropy_source="pixels", entropy_bins=4)
    assert not torch.allclose(coarse(x), pixels(x))


def test_lambda_init_rises_with_the_block():
    found = [block.attn.lambda_init for block in micro("diff_entropy", depth=4).blocks]
    assert found == pytest.approx(
        [0.2, 0.8 - 0.6 * math.exp(-0.3), 0.8 - 0.6 * math.exp(-0.6), 0.8 - 0.6 * math.exp(-0.9)]
    )


def test_dropout_of_tokens_and_the_spread_of_positions_are_timms_and_ours():
    for std in (0.02, 0.3):
        assert micro("baseline", pos_embed_std=std).pos_embed.std().item() == pytest.approx(std, rel=0.05)
    model = micro("baseline", pos_drop_rate=0.5).train()
    dropped = (model._pos_embed(torch.ones(8, 8, 8, 64)) == 0).float().mean()
    assert 0.4 < dropped < 0.6


def test_features_only_for_detectors(variant):
    model = timm.create_model(f"clear_vit_micro_{variant}", features_only=True, out_indices=(0, 2)).eval()
    assert [f.shape for f in model(images(48, 32))] == [(2, 64, 12, 8)] * 2
    assert model.feature_info.channels() == [64, 64]


@pytest.mark.slow
def test_exported_for_any_batch(variant):
    model, batch = micro(variant, depth=1), torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(model, (images(count=3),), dynamic_shapes=({0: batch},)).module()
    x = images(count=5)
    assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)


def test_an_empty_batch(variant):
    model = micro(variant)
    logits = model(torch.empty(0, 3, 32, 32))
    assert logits.shape == (0, 5)
    logits.sum().backward()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_attention_goes_with_every_position(attention):
    x = images()
    outputs = []
    for rope in (None, "mixed", "axial"):
        for pos_embed in ("learn", "none"):
            torch.manual_seed(0)
            model = ClearViT(
                img_size=32,
                patch_size=8,
                embed_dim=32,
                depth=1,
                num_heads=2,
                num_classes=3,
                attention=attention,
                rope=rope,
                pos_embed=pos_embed,
            ).eval()
            outputs.append(model.forward_features(x))
    assert all(not torch.allclose(a, b) for i, a in enumerate(outputs) for b in outputs[:i])


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_attention_dropout_is_unbiased(attention):
    torch.manual_seed(0)
    model = ClearViT(
        img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, attention=attention, attn_drop_rate=0.3
    )
    attn, x = model.blocks[0].attn, torch.randn(2, 17, 32)
    attn.eval()
    expected = attn(x)
    attn.train()
    mean = torch.stack([attn(x) for _ in range(600)]).mean(0)
    if attention != "diff_entropy":  # a norm comes after it
        assert_close(mean, expected, atol=0.12, rtol=0)
    assert not torch.allclose(attn(x), expected)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"attention": "other"}, "attention must be one of plain, diff_similarity, suppression, diff_entropy"),
        ({"rope": "other"}, "rope must be mixed or axial"),
        ({"rope": "mixed", "embed_dim": 36, "num_heads": 6}, "multiple of 4, got 6"),
        ({"attention": "diff_entropy", "embed_dim": 30, "num_heads": 6}, "head_dim must be even, got 5"),
        (
            {"embed_dim": 100},
            "multiple of num_heads, and all sizes at least 1; got embed_dim=100, num_heads=3, depth=12",
        ),
        ({"num_heads": 0}, "got embed_dim=192, num_heads=0, depth=12"),
        ({"depth": 0}, "got embed_dim=192, num_heads=3, depth=0"),
        ({"img_size": 250}, "img_size must be a multiple of patch_size, got 250 and 16"),
        ({"patch_size": 0}, "img_size must be a multiple of patch_size"),
        ({"pos_embed": "sincos"}, "pos_embed must be learn or none"),
        ({"pos_embed_std": -1.0}, "pos_embed_std must be 0 or more"),
        ({"rope": "mixed", "rope_theta": 0.0}, "rope_theta must be finite and greater than 0"),
        ({"rope_theta": 10.0}, "rope_theta has no effect on this variant"),
        ({"first_difference": "keep"}, "first_difference has no effect on this variant"),
        ({"entropy_source": "pixels"}, "entropy_source has no effect on this variant"),
        ({"attention": "diff_entropy", "entropy_bins": 8}, "entropy_bins has no effect on this variant"),
        ({"pos_embed": "none", "pos_dropout": 0.1}, "pos_dropout has no effect on this variant"),
        ({"proj_bias": False}, "proj_bias is True"),
        ({"pre_norm": True}, "pre_norm is False"),
        ({"scale_attn_norm": True}, "scale_attn_norm is False"),
        ({"attention": "diff_similarity", "first_difference": "other"}, "first_difference must be keep or zero"),
        ({"attention": "diff_entropy", "entropy_source": "other"}, "entropy_source must be tokens or pixels"),
        ({"attention": "diff_entropy", "entropy_source": "pixels", "entropy_bins": 1}, "needs at least 2 bins"),
        (
            {"attention": "diff_entropy", "entropy_source": "pixels", "patch_size": 1, "img_size": 8},
            "2 pixels per patch; got 32 bins and 1 × 1 pixels",
        ),
        ({"pos_dropout": 1.0}, "pos_dropout must lie in"),
        ({"reg_tokens": 2}, "reg_tokens is 0 in clear-vit's backbone"),
        ({"patch_drop_rate": 0.1}, "patch_drop_rate is 0.0"),
    ],
)
def test_impossible_arguments_name_the_rule(fields, rule):
    with pytest.raises(ValueError, match=rule):
        ClearViT(**fields)


def test_masks_are_refused():
    with pytest.raises(ValueError, match="do not support attn_mask"):
        micro("baseline")(images(), attn_mask=torch.ones(65, 65, dtype=torch.bool))
    with pytest.raises(ValueError, match="not supported: attn_mask"):
        micro("baseline").forward_intermediates(images(), attn_mask=torch.ones(65, 65))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_on_a_gpu(variant, kind):
    model, x = micro(variant), images()
    expected = model(x)
    model, x = model.cuda(), x.cuda()
    with torch.autocast("cuda", kind):
        assert_close(model(x).float().cpu(), expected, rtol=0.1, atol=0.05)
