"""Attention sparsity: active tokens per head, fraction of zero weights, empty rows.

A weight, as applied by the model, is active if it is greater than `threshold`. Use 0 for models that remove weights
themselves; a larger threshold shows what a dense model would lose.

Shapes: B images, h heads, N queries, M keys.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vit_core.data import BatchLoader
from vit_core.explain.attention_capture import capture_attention
from vit_core.explain.evaluation_mode import evaluation_mode


@dataclass
class LayerSparsity:
    """Counts over the images so far for one attention layer; tensors have one value per head."""

    keys: int
    active: Tensor  # number of active tokens, summed over rows
    empty: Tensor  # number of rows without active tokens
    single: Tensor  # number of rows with at most one
    rows: int = 0

    @property
    def active_tokens(self) -> Tensor:
        """(h,) number of keys that a query attends to, mean over images and queries."""
        return self.active / self.rows

    @property
    def sparsity(self) -> Tensor:
        """(h,) fraction of inactive weights, from 0 to 1."""
        return 1 - self.active_tokens / self.keys

    @property
    def empty_rows(self) -> Tensor:
        """(h,) fraction of queries that attend to no token."""
        return self.empty / self.rows

    @property
    def single_rows(self) -> Tensor:
        """(h,) fraction of queries that attend to at most one token."""
        return self.single / self.rows


@dataclass
class SparsityTracker:
    """Counts over batches: `update(model, images)`, then `layers["blocks.0.attn"]`, or `mean` over all layers."""

    threshold: float = 0.0
    layers: dict[str, LayerSparsity] = field(default_factory=dict)

    def update(self, model: nn.Module, images: Tensor) -> None:
        """Run the model in evaluation mode on images (B, 3, H, W) and count. ValueError if no attention is captured."""
        with torch.no_grad(), evaluation_mode(model), capture_attention(model) as captured:
            model(images)
        if not captured.calls:
            raise ValueError(f"no attention was captured in {type(model).__name__}")
        for name, weights in captured.calls:
            self.add(name, weights)

    def add(self, layer: str, weights: Tensor) -> None:
        """Count the weights (B, h, N, M) of one call. ValueError if the layer had other heads or keys before."""
        active = (weights > self.threshold).sum(-1)  # (B, h, N)
        heads, keys = weights.shape[1], weights.shape[3]
        known = self.layers.get(layer)
        if known is None:
            known = self.layers[layer] = LayerSparsity(keys, torch.zeros(heads), torch.zeros(heads), torch.zeros(heads))
        if (len(known.active), known.keys) != (heads, keys):
            raise ValueError(
                f"{layer}: {heads} heads and {keys} keys, but {len(known.active)} and {known.keys} in earlier batches"
            )
        known.active += active.sum((0, 2)).cpu()
        known.empty += (active == 0).sum((0, 2)).cpu()
        known.single += (active <= 1).sum((0, 2)).cpu()
        known.rows += active.shape[0] * active.shape[2]

    def mean(self, name: str) -> float:
        """Mean over layers and heads of a property of `LayerSparsity`: "sparsity", "active_tokens", …"""
        return float(torch.stack([getattr(layer, name).mean() for layer in self.layers.values()]).mean())


def measure_sparsity(model: nn.Module, loader: BatchLoader, threshold: float = 0.0) -> SparsityTracker:
    """Sparsity over all images of the loader."""
    tracker = SparsityTracker(threshold)
    for images, _ in loader.epoch():
        tracker.update(model, images)
    return tracker
