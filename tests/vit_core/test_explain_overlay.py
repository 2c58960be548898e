"""Pictures show each cell over its patch: from a bright patch in the image to the hottest pixel of the overlay."""

import pytest
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close

from vit_core.explain import (
    class_token_attention,
    default_layer,
    denormalize,
    figure_of_maps,
    grad_cam,
    measure_focus,
    overlay,
)
from vit_core.models.attention import attention

PATCH, ROWS, COLUMNS = 8, 4, 6


class Embed(nn.Module):
    """Channel 0 of a token is the patch's brightness, channel 1 is 1."""

    grid_size, patch_size = (ROWS, COLUMNS), (PATCH, PATCH)

    def forward(self, x):
        brightness = nn.functional.avg_pool2d(x.mean(1, keepdim=True), PATCH).flatten(2).transpose(1, 2)
        return torch.cat([brightness, torch.ones_like(brightness)], 2)


class Block(nn.Module):
    """The class token asks for brightness."""

    def __init__(self):
        super().__init__()
        self.norm1, self.attn = nn.Identity(), nn.Identity()

    def forward(self, x):
        t = self.norm1(x)[:, None]
        return x + attention(t.flip(3), t * 5, t)[:, 0]


class BrightnessViT(nn.Module):
    num_prefix_tokens, global_pool = 1, "token"

    def __init__(self):
        super().__init__()
        self.patch_embed, self.blocks = Embed(), nn.Sequential(Block())
        self.cls_token, self.head = nn.Parameter(torch.tensor([[[0.0, 1.0]]])), nn.Linear(2, 2, bias=False)
        self.head.weight.data = torch.tensor([[1.0, 0.0], [0.0, 0.0]])  # logit 0: how bright is what it saw

    def forward(self, x):
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], 1)
        return self.head(self.blocks(x)[:, 0])


def planted(row, column):
    image = torch.full((3, ROWS * PATCH, COLUMNS * PATCH), 0.1)
    image[:, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = 0.9
    return image


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 5), (3, 0), (3, 5), (1, 4), (2, 1)])
def test_a_bright_patch_is_hottest_in_the_maps_and_in_the_overlay(row, column):
    model, image = BrightnessViT(), planted(row, column)
    assert default_layer(model) is model.blocks[-1].norm1
    attended, cam = class_token_attention(model, image[None])[0], grad_cam(model, image[None], 0)[0]
    for heat in (attended, cam):
        assert heat.shape == (ROWS, COLUMNS)
        assert divmod(heat.argmax().item(), COLUMNS) == (row, column)
        y, x = divmod(overlay(image, heat, alpha=1.0).sum(0).argmax().item(), COLUMNS * PATCH)
        assert (y // PATCH, x // PATCH) == (row, column)
    summary = measure_focus(model, [(image[None], torch.zeros(1).long())], share=1 / 24)
    assert summary.fap == 100.0


def test_the_middle_of_a_patch_has_the_color_of_its_cell():
    heat = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    shown = overlay(torch.zeros(3, 9 * 3, 9 * 5), heat, alpha=1.0)  # nine pixels a cell: one is its center
    from matplotlib import colormaps

    scaled = (heat - heat.min()) / (heat.max() - heat.min())
    expected = torch.from_numpy(colormaps["inferno"](scaled.numpy())[..., :3]).float().permute(2, 0, 1)
    assert_close(shown[:, 4::9, 4::9], expected, rtol=0, atol=0.02)


def test_overlay_of_bytes_and_floats_and_without_heat():
    image = (planted(1, 1) * 255).to(torch.uint8)
    heat = torch.zeros(4, 6)  # no largest value: no division by zero
    a, b = overlay(image, heat), overlay(image / 255, heat)
    assert torch.equal(a, b)
    assert a.isfinite().all()
    assert_close(overlay(image, heat, alpha=0.0), image / 255)
    with pytest.raises(ValueError, match="denormalize"):
        overlay(image.float(), heat)
    with pytest.raises(ValueError, match="an image"):
        overlay(image[:1], heat)


def test_denormalize_undoes_the_normalization():
    image, mean, std = planted(0, 0), [0.4, 0.5, 0.6], [0.2, 0.3, 0.1]
    normal = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert_close(denormalize(normal[None], mean, std)[0], image)


@pytest.mark.parametrize("shared_scale", [True, False])
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_figures_are_written_without_pyplot(tmp_path, shared_scale, suffix):
    maps = {f"head {i}": torch.rand(4, 6) for i in range(5)}
    path = figure_of_maps(
        planted(2, 3), maps, tmp_path / "new" / f"maps.{suffix}", shared_scale=shared_scale, title="A"
    )
    if suffix == "svg":
        assert "<svg" in path.read_text()[:2000]
        return
    with Image.open(path) as picture:
        picture.load()
        pixels = torch.tensor(list(picture.convert("L").tobytes())).view(picture.height, picture.width)
    edges = torch.cat([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (edges == 255).all()  # a white border: no label is cut
