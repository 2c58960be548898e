"""`forward_pruned`: what it keeps, what it costs, and that without pruning it is timm's ViT."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from vit_core.bench.pair import multiply_adds
from zoom_vit import IMPORTANCES, Random, ZoomViT, importance_map
from zoom_vit.importance import see
from zoom_vit.zoom import zoom_mask

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}


def vit(**fields):
    torch.manual_seed(0)
    model = ZoomViT(**{**SMALL, **fields}).eval()
    with torch.no_grad():  # attention that differs from uniform
        for block in model.blocks:
            block.attn.qkv.weight.mul_(10)
    return model


def images(batch=3, size=32):
    torch.manual_seed(1)
    return torch.randn(batch, 3, size, size)


# ── the dense model ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"global_pool": "avg"},
        {"reg_tokens": 2},
        {"qk_norm": True},
        {"class_token": False, "global_pool": "avg"},
        {"init_values": 0.1, "pre_norm": True},
        {"no_embed_class": True},
        {"qkv_bias": False},
        {"global_pool": "map"},
    ],
)
def test_dense_is_timms_and_keep_1_is_dense_to_the_bit(fields):
    model = vit(**fields)
    theirs = timm.models.VisionTransformer(**{**SMALL, **fields}).eval()
    theirs.load_state_dict(model.state_dict())
    with torch.no_grad():
        dense = model(images())
        assert torch.equal(dense, theirs(images()))
        for layer in (1, 2):
            for importance in ("token_norm", "random"):
                assert torch.equal(model.forward_pruned(images(), 1.0, layer, importance).logits, dense)


def test_timms_masks_still_work():
    model, mask = vit(), torch.zeros(17, 17).masked_fill(torch.eye(17).bool(), -1e9)
    theirs = timm.models.VisionTransformer(**SMALL).eval()
    theirs.load_state_dict(model.state_dict())
    assert torch.equal(model.forward_features(images(), attn_mask=mask), theirs.forward_features(images(), mask))
    assert not torch.equal(model.forward_features(images(), attn_mask=mask), model.forward_features(images()))


def test_parameter_counts():
    for name, classes, count in (
        ("zoom_vit_tiny_patch16_224", 102, 5_544_102),
        ("zoom_vit_tiny_patch8_32", 10, 5_381_194),
        ("zoom_vit_micro", 10, 142_026),
    ):
        assert sum(p.numel() for p in timm.create_model(name, num_classes=classes).parameters()) == count


def test_timms_interface():
    model = timm.create_model("zoom_vit_micro", num_classes=10).eval()
    features = model.forward_features(images())
    assert features.shape == (3, 65, 64)
    assert_close(model.forward_head(features), model(images()))
    maps = model.forward_intermediates(images(), indices=2, intermediates_only=True)
    assert [tuple(m.shape) for m in maps] == [(3, 64, 8, 8)] * 2
    assert model.no_weight_decay() >= {"pos_embed", "cls_token"}
    model.reset_classifier(7)
    assert model(images()).shape == model.forward_pruned(images()).logits.shape == (3, 7)
    backbone = timm.create_model("zoom_vit_micro", features_only=True, out_indices=(1, 3))
    assert [tuple(m.shape) for m in backbone(images())] == [(3, 64, 8, 8)] * 2
    assert model.get_classifier() is model.head


def test_export_and_gradient_checkpointing():
    model = vit()
    dynamic = {"x": {0: torch.export.Dim("batch", min=2, max=64)}}
    exported = torch.export.export(model, (images(),), dynamic_shapes=dynamic).module()
    assert_close(exported(images(5)), model(images(5)))
    model.train().forward_pruned(images()).logits.sum().backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    model.set_grad_checkpointing()
    model.forward_pruned(images()).logits.sum().backward()
    assert all(p.grad.any() for n, p in model.named_parameters() if n != "norm.bias")
    for name, p in model.named_parameters():
        assert_close(p.grad, plain[name])


@pytest.mark.slow
def test_compiled():
    model = vit(depth=2)
    with torch.no_grad():
        ours = torch.compile(model.forward_pruned, fullgraph=True)(images(), 0.5, 1, "random")
        theirs = model.forward_pruned(images(), 0.5, 1, "random")
    assert torch.equal(ours.kept, theirs.kept)
    assert_close(ours.logits, theirs.logits)


# ── what is kept ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fields", [{}, {"reg_tokens": 2}, {"global_pool": "avg"}])
def test_the_other_blocks_see_the_prefix_and_the_top_k(fields):
    """An independent form: patches that were pruned are masked as keys in the later blocks instead."""
    model = vit(**fields)
    prefix, values = model.num_prefix_tokens, torch.randn(3, 16, generator=torch.Generator().manual_seed(3))
    out = model.forward_pruned(images(), 0.4, 2, values)
    assert (out.num_kept, out.num_patches) == (6, 16)
    assert torch.equal(out.kept, values.topk(6).indices)
    x = see(model, images(), 2).tokens
    for b in range(3):
        stay = [*range(prefix), *(prefix + i for i in sorted(out.kept[b].tolist()))]
        tokens = model.norm(model.blocks[2](x[b : b + 1, stay]))
        assert_close(model.forward_head(tokens)[0], out.logits[b])


@pytest.mark.parametrize("importance", list(IMPORTANCES))
def test_kept_are_the_top_k_of_the_importance_and_the_batch_does_not_matter(importance):
    model = vit()
    with torch.no_grad():
        out = model.forward_pruned(images(4), 0.3, 2, importance)
        seen = see(model, images(4), 2)
        assert torch.equal(out.kept, IMPORTANCES[importance](seen).topk(4).indices)
        order = torch.tensor([2, 0, 3, 1])
        shuffled = model.forward_pruned(images(4)[order], 0.3, 2, importance)
        assert torch.equal(shuffled.kept, out.kept[order])
        for i in range(4):
            alone = model.forward_pruned(images(4)[i : i + 1], 0.3, 2, importance)
            assert torch.equal(alone.kept[0], out.kept[i])
            assert_close(alone.logits[0], out.logits[i])


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "enable_grad"])
@pytest.mark.parametrize("importance", list(IMPORTANCES))
def test_in_every_gradient_mode_and_left_as_it_was(mode, importance):
    model = vit(drop_rate=0.5).train()
    with getattr(torch, mode)():
        model.forward_pruned(images(), 0.5, 1, importance)
        importance_map(model, images(), importance)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_random_pruning_hangs_on_the_seed_and_the_image():
    model = vit()
    first, again, other = (model.forward_pruned(images(), 0.5, 1, Random(s)).kept for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({tuple(row.tolist()) for row in first}) == 3, "one order for all images is no control"


def test_given_importance_and_functions():
    model, maps = vit(), torch.rand(3, 4, 4)
    with torch.no_grad():
        by_map = model.forward_pruned(images(), 0.5, 1, maps)
        by_function = model.forward_pruned(images(), 0.5, 1, lambda seen: maps.flatten(1))
    assert torch.equal(by_map.kept, by_function.kept)
    assert torch.equal(by_map.logits, by_function.logits)
    assert model.forward_pruned(images(), 0.01, 1).num_kept == 1
    assert model.forward_pruned(images()).num_kept == 4  # the default: 0.3, half of the blocks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep_ratio": 0.0}, "keep_ratio"),
        ({"keep_ratio": 1.1}, "keep_ratio"),
        ({"keep_ratio": math.nan}, "keep_ratio"),
        ({"prune_layer": 0}, "prune_layer"),
        ({"prune_layer": 3}, "prune_layer"),
        ({"importance": "best"}, "token_norm"),
        ({"importance": torch.rand(3, 9)}, r"need \(3, 16\)"),
        ({"importance": torch.rand(16, 3)}, r"need \(3, 16\)"),
        ({"importance": torch.rand(16)}, r"need \(3, 16\)"),
        ({"importance": torch.full((3, 16), math.nan)}, "NaN"),
    ],
)
def test_what_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        vit().forward_pruned(images(), **arguments)


def test_other_grids_and_dropped_patches():
    model = vit(dynamic_img_size=True)
    out = model.forward_pruned(images(size=48), 0.5, 1)
    assert (out.num_kept, out.num_patches) == (18, 36)
    dropping = vit(patch_drop_rate=0.5)
    assert dropping.forward_pruned(images(), 0.5, 1).num_patches == 16
    with pytest.raises(ValueError, match="patch_drop_rate"):
        dropping.train().forward_pruned(images(), 0.5, 1)


def test_multiply_adds_are_saved():
    model = timm.create_model("zoom_vit_tiny_patch16_224", num_classes=102).eval()
    image = torch.zeros(1, 3, 224, 224)
    with torch.no_grad():
        dense, pruned = (multiply_adds(work) for work in (lambda: model(image), lambda: model.forward_pruned(image)))
    assert dense == pytest.approx(1.25e9, rel=0.01)
    assert pruned / dense == pytest.approx(0.643, abs=0.001)


def test_mixed_precision():
    model = vit()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for importance in IMPORTANCES:
            assert model.forward_pruned(images(), 0.5, 1, importance).logits.isfinite().all()


def test_a_mask_shows_what_is_kept():
    """The patch with the largest value is where the mask is 1: row by row from the top left."""
    values = torch.zeros(1, 4, 4)
    values[0, 1, 2] = 1
    mask = zoom_mask(values, 1 / 16, (32, 32))
    assert mask.sum() == 64
    assert mask[0, 0, 8:16, 16:24].all()
    bright = torch.zeros(1, 3, 32, 32)
    bright[:, :, 8:16, 16:24] = 30.0
    out = vit().forward_pruned(bright, 1 / 16, 1, lambda seen: seen.states[0][:, 1:].norm(dim=-1))
    assert out.kept.tolist() == [[6]]
    assert F.interpolate(values[None], 32, mode="nearest")[0].equal(mask[0])


@pytest.mark.gpu
def test_on_a_gpu():
    model, x = vit().cuda(), images().cuda()
    for importance in IMPORTANCES:
        out = model.forward_pruned(x, 0.5, 1, importance)
        assert_close(out.logits.cpu(), vit().forward_pruned(images(), 0.5, 1, importance).logits, rtol=1e-3, atol=1e-4)
