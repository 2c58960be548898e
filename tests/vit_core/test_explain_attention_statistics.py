"""Attention distance and entropy: by hand, over batches, of models with one and two maps a layer."""

import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.testing import assert_close

from vit_core.explain import AttentionStatistics, capture_attention, draw_heads
from vit_core.explain.attention_statistics import place_distances
from vit_core.models.attention import attention


def test_distances_between_places():
    d = place_distances((2, 3), (16.0, 8.0))
    assert d.shape == (6, 6)
    assert d[0].tolist() == pytest.approx([0, 8, 16, 16, math.hypot(16, 8), math.hypot(16, 16)])
    assert_close(d, d.T)


def test_statistics_by_hand():
    """A class token and a grid of 1 × 3, 10 pixels apart; head 0 looks at itself, head 1 at all alike."""
    weights = torch.stack([torch.eye(4), torch.full((4, 4), 0.25)])[None]
    statistics = AttentionStatistics()
    distances = place_distances((1, 3), (10.0, 10.0))
    for _ in range(3):  # over batches
        statistics.add("a", weights.expand(2, -1, -1, -1), distances, prefix=1)
    layer = statistics.layers["a"]
    assert layer.images == 6
    mean = (0 + 10 + 20 + 10 + 0 + 10 + 20 + 10 + 0) / 9
    assert layer.distance.tolist() == pytest.approx([0, mean])
    assert layer.entropy.tolist() == pytest.approx([0, 1])
    with pytest.raises(ValueError, match="a: 3 heads, but 2 in earlier batches"):
        statistics.add("a", torch.rand(1, 3, 4, 4), distances, prefix=1)


def test_a_model_on_a_rectangle():
    torch.manual_seed(0)
    model = VisionTransformer(img_size=(32, 64), patch_size=16, embed_dim=24, depth=2, num_heads=3, num_classes=2)
    images = torch.randn(4, 3, 32, 64)
    whole, parts = AttentionStatistics(), AttentionStatistics()
    whole.update(model, images)
    parts.update(model, images[:1])
    parts.update(model, images[1:])
    assert list(whole.layers) == ["blocks.0.attn", "blocks.1.attn"]
    for name, layer in whole.layers.items():
        assert_close(parts.layers[name].distance, layer.distance)
        assert_close(parts.layers[name].entropy, layer.entropy)
    with capture_attention(model.eval()) as captured, torch.no_grad():
        model(images)
    between = captured["blocks.1.attn"][0][:, :, 1:, 1:]
    share = between / between.sum(-1, keepdim=True)
    expected = (share * place_distances((2, 4), (16, 16))).sum(-1).mean((0, 2))
    assert_close(whole.layers["blocks.1.attn"].distance, expected)


def test_two_maps_of_a_layer_stand_side_by_side_and_no_attention_is_an_error():
    class Twice(nn.Module):
        num_prefix_tokens = 0

        def forward(self, x):
            q = x.flatten(2).transpose(1, 2)[:, None]  # (B, 1, N, 3)
            return attention(q, q, q) - attention(10 * q, q, q)

    statistics = AttentionStatistics(grid=(2, 2))
    statistics.update(Twice(), torch.randn(1, 3, 2, 2))
    (layer,) = statistics.layers.values()
    assert layer.entropy.shape == (2,)
    assert layer.entropy[1] < layer.entropy[0]
    with pytest.raises(ValueError, match="no attention was captured in Flatten"):
        statistics.update(nn.Flatten(), torch.randn(1, 3, 2, 2))


def test_head_table(tmp_path):
    draw_heads([[0.1, 0.9], [0.5, 0.2]], tmp_path / "t.png", label="entropy", title="model", limits=(0, 1), digits=2)
    assert (tmp_path / "t.png").read_bytes()[:4] == b"\x89PNG"
