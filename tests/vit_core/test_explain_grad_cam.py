"""Grad-CAM against the library grad-cam and against the definition; the layers that it chooses; what it leaves."""

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from vit_core.explain import default_layer, grad_cam


def create(name, **options):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **options).eval()
    for p in model.parameters():  # timm's heads start near zero
        p.data += 0.05 * torch.randn_like(p)
    return model


def images(B=3, height=64, width=64):
    return torch.randn(B, 3, height, width, generator=torch.Generator().manual_seed(0))


def vit(**options):
    return create("test_vit", img_size=64, patch_size=8, **options)


def swin():
    return create(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=4, depths=(1, 1), embed_dim=12, num_heads=(2, 2)
    )


def library(model, batch, targets, layer, reshape=None):
    """grad-cam's maps before it scales and resizes them."""
    oracle = pytest.importorskip("pytorch_grad_cam", reason="grad-cam, a development dependency, is not installed")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with oracle.GradCAM(model, [layer], reshape_transform=reshape) as cam:
        wanted = None if targets is None else [ClassifierOutputTarget(int(t)) for t in targets]
        cam(batch, wanted)
        A, dA = cam.activations_and_grads.activations[0].numpy(), cam.activations_and_grads.gradients[0].numpy()
        maps = cam.get_cam_image(batch, layer, wanted, A, dA)
    return torch.from_numpy(np.maximum(maps, 0))


def tokens(prefix, H, W):
    return lambda t: t[:, prefix:].reshape(len(t), H, W, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("targets", [None, torch.tensor([1, 0, 6])], ids=["predicted", "given"])
@pytest.mark.parametrize(
    ("build", "layer", "reshape"),
    [
        (vit, "blocks.5.norm1", tokens(1, 8, 8)),
        (lambda: vit(class_token=False, global_pool="avg"), "blocks.5", tokens(0, 8, 8)),
        (lambda: vit(reg_tokens=3, global_pool="avg"), "blocks.5", tokens(4, 8, 8)),
        (lambda: create("test_resnet"), "layer4", None),
        (lambda: create("test_convnext"), "stages.3", None),
        (swin, "layers.1", lambda t: t.permute(0, 3, 1, 2)),
    ],
    ids=["vit-token", "vit-avg", "vit-registers", "resnet", "convnext", "swin"],
)
def test_maps_of_the_default_layer_are_those_of_the_library(build, layer, reshape, targets):
    model = build()
    assert default_layer(model) is model.get_submodule(layer)
    expected = library(model, images(), targets, model.get_submodule(layer), reshape)
    maps = grad_cam(model, images(), targets)
    assert (maps.amax((1, 2)) > 0).any()
    assert_close(maps, expected)
    assert_close(grad_cam(model, images(), targets, layer, relu=False).relu(), maps)


def test_each_image_of_a_batch_has_its_own_map():
    model = vit()
    alone = torch.cat([grad_cam(model, x[None], 2) for x in images()])
    assert_close(grad_cam(model, images(), 2), alone)


def test_no_gradient_at_the_patches_is_an_error_with_advice():
    model = vit()
    with pytest.raises(ValueError, match=r"is zero at all positions.*blocks\[-1\]\.norm1"):
        grad_cam(model, images(), layer=model.blocks[-1])


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_grad_mode_does_not_matter(caller):
    model = vit()
    expected = grad_cam(model, images(), 1)
    with caller():
        maps = grad_cam(model, images() + 0, torch.ones(3, dtype=torch.int64))
    assert torch.equal(maps, expected)
    assert not maps.requires_grad


def test_the_model_is_left_as_it_was():
    model = vit(proj_drop_rate=0.5).train()
    model.blocks[0].eval()
    model.norm.weight.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    needs = [p.requires_grad for p in model.parameters()]
    hooks = [len(m._forward_hooks) for m in model.modules()]
    first = grad_cam(model, images())
    assert torch.equal(grad_cam(model, images()), first)  # evaluation mode: no dropout
    with pytest.raises(ValueError, match="targets must be classes from 0 to 6"):
        grad_cam(model, images(), 7)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == needs
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert all(p.grad is None for p in model.parameters())


def test_a_frozen_and_a_checkpointed_model():
    model = vit()
    expected = grad_cam(model, images(), 0, model.blocks[2])
    model.set_grad_checkpointing()
    assert_close(grad_cam(model, images(), 0, model.blocks[2]), expected)
    assert_close(grad_cam(model, images(), 0, model.blocks[2].norm1).shape, expected.shape)
    model.set_grad_checkpointing(False)
    assert_close(grad_cam(model.requires_grad_(False), images(), 0, model.blocks[2]), expected)


class Pair(nn.Module):
    """A block that gives a tuple, a logit that is read from the middle of the grid, two outputs."""

    def __init__(self, nhwc=False):
        super().__init__()
        self.conv, self.act, self.head, self.nhwc = nn.Conv2d(3, 4, 2, 2), nn.ReLU(inplace=True), nn.Linear(4, 2), nhwc
        self.grad_cam_layer = nn.Identity()
        self.output_fmt = "NHWC" if nhwc else "NCHW"  # tells where 4 × 4 places have 4 channels

    def forward(self, x):
        x = self.conv(x)
        (x,) = self.grad_cam_layer((x.permute(0, 2, 3, 1) if self.nhwc else x,))
        x = x.permute(0, 3, 1, 2) if self.nhwc else x
        return self.head(self.act(x).mean((2, 3))), x


@pytest.mark.parametrize("nhwc", [True, False])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 12), (12, 6), (2, 16)])
def test_definition_on_maps_with_channels_first_or_last(nhwc, height, width):
    torch.manual_seed(0)
    model, x = Pair(nhwc), images(2, height, width)
    maps = grad_cam(model, x, 1, forward=lambda batch: model(batch)[0], relu=False)
    A = model.conv(x)
    dA = model.head.weight[1][:, None, None] * (A > 0) / (height * width / 4)  # ∂ of the mean over the places
    assert_close(maps, (dA.mean((2, 3), keepdim=True) * A).sum(1))
    with pytest.raises(ValueError, match="pass forward="):
        grad_cam(model, x)


def test_advice_where_the_grid_or_the_layer_is_not_known():
    model = vit()
    with pytest.raises(ValueError, match=r"64 patch tokens do not form a grid of 5 × 5"):
        grad_cam(model, images(), grid=(5, 5))
    assert grad_cam(model, images(), grid=(4, 16)).shape == (3, 4, 16)
    with pytest.raises(ValueError, match="not called"):
        grad_cam(model, images(), layer=nn.Identity())
    with pytest.raises(ValueError, match="needs a layer that outputs tokens or a feature map"):
        grad_cam(model, images(), layer="head")
    with pytest.raises(ValueError, match="no default Grad-CAM layer is known for Linear"):
        default_layer(nn.Linear(1, 1))


def test_a_grid_that_is_not_square_and_one_that_follows_the_image():
    assert grad_cam(vit(), images(), 0).shape == (3, 8, 8)
    model = create("test_vit", img_size=(32, 64), patch_size=8)
    assert grad_cam(model, images(2, 32, 64), 0).shape == (2, 4, 8)
    model = create("test_vit", img_size=32, patch_size=8, dynamic_img_size=True)
    assert grad_cam(model, images(2, 48, 16), 0).shape == (2, 6, 2)
