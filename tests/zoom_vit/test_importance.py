"""The six importances: each against an independent form, and whether they find a planted patch."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from vit_core.explain import (
    attention_relevance,
    attention_rollout,
    capture_attention,
    class_token_attention,
    grad_cam,
    pointing_game,
)
from zoom_vit import IMPORTANCES, Random, ZoomViT, importance_map
from zoom_vit.importance import as_map, see
from zoom_vit.zoom import crop_zoom, zoom_boxes

from .test_model import images, vit


def test_token_norm_is_the_studys():
    model, outputs = vit(), []
    handle = model.blocks[-1].attn.register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad():
        model(images())
    handle.remove()
    assert_close(importance_map(model, images()), outputs[0][:, 1:].norm(dim=-1).unflatten(1, (4, 4)))
    seen = see(model, images(), 2)
    assert_close(IMPORTANCES["token_norm"](seen), seen.tokens[:, 1:].norm(dim=-1))


@pytest.mark.parametrize("fields", [{}, {"reg_tokens": 3}, {"qk_norm": True}, {"qkv_bias": False}])
def test_attention_is_what_the_model_computes(fields):
    model = vit(**fields)
    assert_close(importance_map(model, images(), "cls_attention"), class_token_attention(model, images()))
    assert_close(importance_map(model, images(), "rollout"), attention_rollout(model, images()))
    with torch.no_grad(), capture_attention(model) as captured:
        model(images())
    seen = see(model, images(), 2)
    second = captured["blocks.1.attn"][0][:, :, 0, seen.patches].mean(1)
    assert_close(IMPORTANCES["cls_attention"](seen), second)


def test_gradient_methods_explain_the_class_asked_for():
    model, targets = vit(), torch.tensor([0, 3, 1])
    for name, core in (("grad_rollout", attention_relevance), ("gradcam", grad_cam)):
        assert_close(importance_map(model, images(), name, targets), core(model, images(), targets))
        assert_close(importance_map(model, images(), name), core(model, images()))
        assert not torch.equal(importance_map(model, images(), name), importance_map(model, images(), name, targets))


@pytest.mark.parametrize("importance", list(IMPORTANCES))
def test_under_gradient_checkpointing(importance):
    model = vit()
    plain = importance_map(model, images(), importance)
    model.set_grad_checkpointing()
    assert_close(importance_map(model, images(), importance), plain)
    assert model.grad_checkpointing


def test_pooled_patches_are_what_is_explained():
    """The class token of an average-pooled model is read by nobody."""
    model = vit(global_pool="avg", depth=1)
    assert importance_map(model, images(), "grad_rollout").any()
    assert_close(importance_map(model, images(), "rollout"), attention_rollout(model, images()))


def test_without_a_class_token():
    model = vit(class_token=False, global_pool="avg")
    assert_close(importance_map(model, images(), "rollout"), attention_rollout(model, images()))
    with pytest.raises(ValueError, match="class token"):
        importance_map(model, images(), "cls_attention")


def test_random_values_are_uniform_and_unrelated():
    model = vit(img_size=64, patch_size=4, depth=1, embed_dim=8)
    torch.manual_seed(0)
    pictures = torch.randn(200, 3, 64, 64)
    values = torch.cat([Random(5)(see(model, p, 0)) for p in pictures.split(50)])  # (200, 256)
    counts = torch.histc(values.float(), 20, 0, 1)
    assert values.min() >= 0
    assert values.max() < 1
    expected = values.numel() / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # χ² of 19 degrees of freedom at 0.1%
    correlation = torch.corrcoef(values)
    assert correlation.fill_diagonal_(0).abs().max() < 5 / 256**0.5, "between images"
    assert torch.corrcoef(values.T).fill_diagonal_(0).abs().max() < 5.5 / 200**0.5, "between places"
    changed = pictures[:1].clone()
    changed[0, 1, 7] += 1e-3
    assert abs(torch.corrcoef(torch.cat([Random(5)(see(model, changed, 0)), values[:1]]))[0, 1]) < 0.25
    swapped = pictures[:1].flip(3)
    assert abs(torch.corrcoef(torch.cat([Random(5)(see(model, swapped, 0)), values[:1]]))[0, 1]) < 0.25


# ── a planted patch ──────────────────────────────────────────────────────────────────────────────────────────────


def planted(count, seed):
    """Noise with one patch of 8 × 8 whose color is the class: images, classes, and where the patch is."""
    g = torch.Generator().manual_seed(seed)
    pictures = 0.3 * torch.randn(count, 3, 32, 32, generator=g)
    classes = torch.randint(3, (count,), generator=g)
    rows, columns = torch.randint(4, (2, count), generator=g)
    regions = torch.zeros(count, 4, 4, dtype=torch.bool)
    regions[torch.arange(count), rows, columns] = True
    regions = regions.repeat_interleave(8, 1).repeat_interleave(8, 2)
    color = F.one_hot(classes, 3).float()[:, :, None, None] * 2
    return torch.where(regions[:, None], color, pictures), classes, regions


@pytest.fixture(scope="module")
def detector():
    """A ViT that tells the color of the patch, wherever it is."""
    torch.manual_seed(0)
    model = ZoomViT(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(150):
        pictures, classes, _ = planted(64, step)
        F.cross_entropy(model(pictures), classes).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("importance", ["cls_attention", "rollout", "grad_rollout"])
def test_the_planted_patch_is_found_and_zoomed_to(detector, importance):
    pictures, classes, regions = planted(200, 999)
    with torch.no_grad():
        assert (detector(pictures).argmax(1) == classes).float().mean() > 0.95
    maps = importance_map(detector, pictures, importance)
    assert pointing_game(maps, regions).mean() > 0.9
    assert pointing_game(maps.transpose(1, 2), regions).mean() < 0.5, "rows and columns are not mixed up"
    found = pointing_game(maps, regions) == 1
    boxes = zoom_boxes(maps, 1 / 16, (32, 32), 8)[found]
    for (top, left, height, width), region in zip(boxes.tolist(), regions[found], strict=True):
        assert (height, width) == (8, 8)
        assert region[top : top + 8, left : left + 8].all()
    crops = crop_zoom(pictures, maps, 1 / 16, 8)[found]
    assert_close(crops, F.one_hot(classes[found], 3).float()[:, :, None, None].expand_as(crops) * 2)
    chance = pointing_game(importance_map(detector, pictures, "random"), regions).mean()
    assert 0 <= chance < 0.2


def test_pruning_keeps_the_planted_patch(detector):
    """One patch of 16 is enough, if it is the right one."""
    model = ZoomViT(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=3).eval()
    state = {k.replace("blocks.0.", "blocks.1."): v for k, v in detector.state_dict().items()}
    model.load_state_dict(state, strict=False)
    with torch.no_grad():
        for part in (model.blocks[0].attn.proj, model.blocks[0].mlp.fc2):  # a block that passes on what it gets
            part.weight.zero_()
            part.bias.zero_()
    pictures, classes, _ = planted(200, 999)
    maps = importance_map(detector, pictures, "grad_rollout")
    with torch.no_grad():
        assert_close(model(pictures), detector(pictures))
        acc = {
            importance: float(
                (model.forward_pruned(pictures, 1 / 16, 1, values).logits.argmax(1) == classes).float().mean()
            )
            for importance, values in (("grad_rollout", maps), ("random", "random"), ("inverted", -maps))
        }
    assert acc["grad_rollout"] > 0.9
    assert max(acc["random"], acc["inverted"]) < 0.6, "a third is right by chance"


@pytest.mark.parametrize(("importance", "layers"), [("token_norm", 1), ("cls_attention", 1), ("rollout", 12)])
def test_how_many_blocks_a_map_reads(importance, layers):
    """The tokens that a block takes are replaced by noise, one block at a time."""
    torch.manual_seed(0)
    model, images = timm.create_model("zoom_vit_tiny_patch8_32", num_classes=10).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        seen = see(model, images)
        before = as_map(seen, importance)
        read = 0
        for layer in range(12):
            states = list(seen.states)
            states[layer] = torch.randn_like(states[layer])
            read += not torch.equal(as_map(seen._replace(states=tuple(states)), importance), before)
    assert read == layers


@pytest.mark.parametrize(("importance", "knows"), [("token_norm", False), ("rollout", False), ("grad_rollout", True)])
def test_which_maps_know_the_classifier(importance, knows):
    torch.manual_seed(0)
    model, images = timm.create_model("zoom_vit_tiny_patch8_32", num_classes=10).eval(), torch.randn(2, 3, 32, 32)
    maps = []
    for _ in range(2):
        torch.nn.init.normal_(model.head.weight)
        maps.append(importance_map(model, images, importance, targets=torch.tensor([3, 3])))
    change = float((maps[0] - maps[1]).abs().max() / maps[0].abs().max())
    assert (change > 0.01) == knows
