"""Attention rollout: the paper's product, its invariants, and the place it shows."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.testing import assert_close

from vit_core.explain import attention_rollout, capture_attention

SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 4}


def vit(img_size=(32, 48), **fields):
    torch.manual_seed(0)
    model = VisionTransformer(img_size=img_size, **{**SMALL, **fields}).eval()
    with torch.no_grad():  # attention that differs from uniform
        for block in model.blocks:
            block.attn.qkv.weight.mul_(20)
    return model


def naive(model, images, fusion, discard, residual):
    """Image by image, as the paper writes it."""
    with torch.no_grad(), capture_attention(model) as captured:
        model(images)
    maps = []
    for b in range(len(images)):
        rolled = torch.eye(captured.calls[0].weights.shape[-1])
        for call in captured.calls:
            heads = call.weights[b]
            A = {"mean": heads.mean(0), "max": heads.max(0).values, "min": heads.min(0).values}[fusion]
            if discard:
                kth = A.flatten().sort().values[int(A.numel() * discard)]
                A = torch.where(kth > A, 0.0, A)
            A = (1 - residual) * A + residual * torch.eye(len(A))
            rolled = A / A.sum(1, keepdim=True) @ rolled
        maps.append(rolled)
    return torch.stack(maps)


@pytest.mark.parametrize(("fusion", "discard", "residual"), [("mean", 0, 0.5), ("max", 0.9, 0.5), ("min", 0, 0.3)])
def test_it_is_the_papers_product(fusion, discard, residual):
    model, images = vit(), torch.randn(2, 3, 32, 48)
    ours = attention_rollout(model, images, fusion=fusion, discard=discard, residual=residual)
    assert ours.shape == (2, 4, 6)
    assert_close(ours.flatten(1), naive(model, images, fusion, discard, residual)[:, 0, 1:])


def test_parts_of_all_tokens_sum_to_one():
    model, images = vit(), torch.randn(2, 3, 32, 48)
    patches = attention_rollout(model, images).sum((1, 2))
    assert_close(patches + naive(model, images, "mean", 0, 0.5)[:, 0, 0], torch.ones(2))


def test_without_a_class_token_the_patches_are_the_rows():
    model, images = vit(class_token=False, global_pool="avg"), torch.randn(2, 3, 32, 48)
    assert_close(attention_rollout(model, images).flatten(1), naive(model, images, "mean", 0, 0.5).mean(1))
    registers = vit(reg_tokens=4)
    assert_close(attention_rollout(registers, images).flatten(1), naive(registers, images, "mean", 0, 0.5)[:, 0, 5:])


@pytest.mark.parametrize(("size", "row", "column"), [((32, 48), 1, 4), ((48, 32), 5, 2), ((32, 32), 0, 3)])
def test_a_planted_patch_is_found_where_it_lies(size, row, column):
    """Keys are a patch's brightness and queries are all the same: everything attends to the bright patch."""
    model = vit(size, depth=2)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.patch_embed.proj.weight[0] = 1 / (3 * 8 * 8)
        for block in model.blocks:
            block.norm1 = torch.nn.Identity()
            block.attn.qkv.bias[:24] = 3.0
            block.attn.qkv.weight[24::8, 0][:3] = 2.0
    images = torch.zeros(2, 3, *size)
    images[1, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 3.0
    even, bright = attention_rollout(model, images)
    assert bright.flatten().argmax() == row * (size[1] // 8) + column
    assert_close(even, even.mean().expand_as(even))


def test_the_model_is_left_as_it_was():
    model = vit().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    attention_rollout(model, torch.randn(1, 3, 32, 48))
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_what_cannot_be_is_refused():
    import timm

    with pytest.raises(ValueError, match="fusion must be one of mean, max, min"):
        attention_rollout(vit(), torch.randn(1, 3, 32, 48), fusion="median")
    with pytest.raises(ValueError, match="has no blocks"):
        attention_rollout(timm.create_model("test_convnext"), torch.randn(1, 3, 32, 32))
