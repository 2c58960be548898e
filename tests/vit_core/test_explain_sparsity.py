"""The sparsity tracker: counts by hand, over batches, of dense models and of models that remove weights."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.testing import assert_close

from vit_core.data import BatchLoader, EvalTransform, load_dataset
from vit_core.explain import SparsityTracker, capture_attention, measure_sparsity

WEIGHTS = torch.tensor(
    [
        [
            [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]],
            [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]],
        ]
    ]
)  # fmt: skip -- one image, two heads, three queries, four keys


def test_counts_by_hand():
    tracker = SparsityTracker()
    tracker.add("a", WEIGHTS)
    layer = tracker.layers["a"]
    assert_close(layer.active_tokens, torch.tensor([6 / 3, 4 / 3]))
    assert_close(layer.sparsity, torch.tensor([6 / 12, 8 / 12]))
    assert_close(layer.empty_rows, torch.tensor([1 / 3, 0.0]))
    assert_close(layer.single_rows, torch.tensor([1 / 3, 2 / 3]))
    assert tracker.mean("sparsity") == pytest.approx((6 / 12 + 8 / 12) / 2)


def test_a_threshold_asks_what_would_be_lost():
    tracker = SparsityTracker(threshold=0.3)
    tracker.add("a", WEIGHTS)
    assert_close(tracker.layers["a"].active_tokens, torch.tensor([3 / 3, 4 / 3]))  # 0.3 itself does not pass


def test_batches_add_up():
    parts, whole = SparsityTracker(), SparsityTracker()
    other = torch.rand(2, 2, 3, 4).relu() - 0.5
    for weights in (WEIGHTS, other):
        parts.add("a", weights)
    whole.add("a", torch.cat([WEIGHTS, other]))
    for name in ("active_tokens", "sparsity", "empty_rows", "single_rows"):
        assert_close(getattr(parts.layers["a"], name), getattr(whole.layers["a"], name))
    with pytest.raises(ValueError, match="a: 2 heads and 5 keys, but 2 and 4 in earlier batches"):
        parts.add("a", torch.rand(1, 2, 3, 5))


def test_a_dense_model_over_a_dataset():
    digits = load_dataset("digits", img_size=32)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=10)
    loader = BatchLoader(
        digits.val, batch_size=16, transform=EvalTransform(32, digits.mean, digits.std), train=False, limit=40
    )
    tracker = measure_sparsity(model, loader)
    assert list(tracker.layers) == ["blocks.0.attn", "blocks.1.attn"]
    assert tracker.mean("sparsity") == 0
    assert tracker.layers["blocks.0.attn"].rows == 40 * 17
    assert measure_sparsity(model, loader, threshold=0.99).mean("empty_rows") == 1
    assert model.training, "left as it was"
    kept = SparsityTracker(0.05)
    images = torch.cat([images for images, _ in loader.epoch()])
    kept.update(model, images)
    with torch.no_grad(), capture_attention(model.eval()) as captured:
        model(images)
    expected = torch.stack([(w > 0.05).float().mean((0, 2, 3)) for _, w in captured.calls])
    assert_close(torch.stack([1 - layer.sparsity for layer in kept.layers.values()]), expected)


def test_a_model_without_attention_is_refused():
    with pytest.raises(ValueError, match="no attention was captured in Conv2d"):
        SparsityTracker().update(torch.nn.Conv2d(3, 3, 1), torch.randn(1, 3, 8, 8))
