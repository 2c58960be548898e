"""Gradient-weighted attention relevance against the paper's formulas, written out."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.testing import assert_close

from vit_core.explain import attention_relevance, capture_attention


def vit(**fields):
    torch.manual_seed(0)
    size = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 4}
    model = VisionTransformer(**{**size, **fields}).eval()
    with torch.no_grad():  # attention that differs from uniform
        for block in model.blocks:
            block.attn.qkv.weight.mul_(20)
    return model


def naive(model, image, target):
    """One image: eq. 5 and 6 of the paper, head by head."""
    with capture_attention(model, keep_graph=True) as captured:
        logits = model(image[None])
    R = torch.eye(captured.calls[0].weights.shape[-1])
    for call in captured.calls:
        (gradient,) = torch.autograd.grad(logits[0, target], call.weights, retain_graph=True)
        A = torch.stack([(g * a).clamp(min=0) for g, a in zip(gradient[0], call.weights[0], strict=True)]).mean(0)
        R = R + A @ R
    return R.detach()


def test_it_is_the_papers_formula():
    model, images = vit(), torch.randn(3, 3, 32, 48)
    ours = attention_relevance(model, images, torch.tensor([1, 0, 3]))
    assert ours.shape == (3, 4, 6)
    for i, target in enumerate((1, 0, 3)):
        assert_close(ours[i].flatten(), naive(model, images[i], target)[0, 1:])
    predicted = model(images).argmax(1)
    assert_close(attention_relevance(model, images), attention_relevance(model, images, predicted))
    assert_close(attention_relevance(model, images, 2)[0].flatten(), naive(model, images[0], 2)[0, 1:])


def test_registers_and_no_class_token():
    images = torch.randn(1, 3, 32, 48)
    registers = vit(reg_tokens=2)
    assert_close(attention_relevance(registers, images, 0)[0].flatten(), naive(registers, images[0], 0)[0, 3:])
    patches = vit(class_token=False, global_pool="avg")
    assert_close(attention_relevance(patches, images, 0)[0].flatten(), naive(patches, images[0], 0).mean(0))


def test_average_pooled_models_with_a_class_token():
    """Nothing reads the class token: the patches' rows are what the logits come from."""
    images = torch.randn(1, 3, 32, 48)
    model = vit(global_pool="avg")
    assert_close(attention_relevance(model, images, 0)[0].flatten(), naive(model, images[0], 0)[1:, 1:].mean(0))


def test_gradient_checkpointing_changes_nothing():
    model, images = vit(), torch.randn(2, 3, 32, 48)
    plain = attention_relevance(model, images, 1)
    model.set_grad_checkpointing()
    assert_close(attention_relevance(model, images, 1), plain)
    assert model.grad_checkpointing


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "enable_grad"])
def test_the_model_is_left_as_it_was(mode):
    model, images = vit(proj_drop_rate=0.5).train(), torch.randn(2, 3, 32, 48)
    with getattr(torch, mode)():
        first = attention_relevance(model, images, 1)
        assert_close(attention_relevance(model, images.clone(), 1), first, rtol=0, atol=0)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not first.requires_grad


def test_what_cannot_be():
    with pytest.raises(ValueError, match="classes from 0 to 3"):
        attention_relevance(vit(), torch.randn(1, 3, 32, 48), 4)
    with pytest.raises(ValueError, match="no blocks"):
        attention_relevance(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)), torch.randn(1, 3, 2, 2))
