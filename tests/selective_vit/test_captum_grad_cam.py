"""Captum's LayerGradCam on tokens: over channels when left to itself, our Grad-CAM through the adapter."""

import pytest
import torch
from captum.attr import LayerGradCam
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.testing import assert_close

from selective_vit.captum_grad_cam import captum_grad_cam
from vit_core.explain import default_layer, grad_cam

IMAGES = torch.randn(3, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def vit(**fields):
    torch.manual_seed(0)
    small = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 4}
    return VisionTransformer(**{**small, **fields}).eval()


@pytest.mark.parametrize("fields", [{}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}])
def test_the_adapter_gives_our_grad_cam(fields):
    """Two implementations of one formula, on a rectangle, so that rows and columns cannot change places."""
    model, targets = vit(**fields), torch.tensor([0, 3, 1])
    theirs = captum_grad_cam(model, IMAGES, targets, relu=False)
    assert theirs.shape == (3, 4, 6)
    assert_close(theirs, grad_cam(model, IMAGES, targets, relu=False), rtol=1e-4, atol=1e-8)
    assert_close(captum_grad_cam(model, IMAGES, relu=False), grad_cam(model, IMAGES, relu=False), rtol=1e-4, atol=1e-8)


def test_left_to_itself_captum_shows_channels():
    model = vit()
    layer = default_layer(model)
    raw = LayerGradCam(model, layer).attribute(IMAGES, target=1)
    assert raw.shape == (3, 1, 24), "24 channels; there are 24 patches too, and one would take it for a map of them"
    tokens, gradient = [], []
    handles = [
        layer.register_forward_hook(lambda m, a, out: tokens.append(out)),
        layer.register_full_backward_hook(lambda m, gi, go: gradient.append(go[0])),
    ]
    model(IMAGES)[:, 1].sum().backward()
    for handle in handles:
        handle.remove()
    # α is the mean over channels, of each token; the sum runs over the tokens.
    assert_close(raw[:, 0], (gradient[0].mean(2, keepdim=True) * tokens[0]).sum(1), rtol=1e-4, atol=1e-8)


def test_maps_pass_as_they_are():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4)
    ).eval()
    assert_close(captum_grad_cam(net, IMAGES, 2, net[1]), grad_cam(net, IMAGES, 2, net[1]), rtol=1e-4, atol=1e-8)


def test_no_gradient_is_an_error_with_advice_and_the_model_is_left_as_it_was():
    model = vit().train()
    with pytest.raises(ValueError, match=r"zero everywhere: .*give a layer= before the last attention"):
        captum_grad_cam(model, IMAGES, 0, "blocks.1")
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
