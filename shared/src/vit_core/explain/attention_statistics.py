"""Mean attention distance and entropy of each head of every block.

Distance (Dosovitskiy et al., 2021, figure 7): from a patch to the patches that it attends to, weighted by the attention
between patches, in pixels. Entropy: −Σ w log w over all keys, averaged over rows and divided by log M; 1 is uniform.

Shapes: B images, h heads, N queries, M keys. If a layer computes two attention maps per pass, as differential attention
does, the heads of the second map follow those of the first.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vit_core.data import BatchLoader
from vit_core.explain.attention_capture import capture_attention
from vit_core.explain.evaluation_mode import evaluation_mode
from vit_core.explain.grids import Grid, token_grid


@dataclass
class LayerAttention:
    """Sums over the images so far for one attention layer; tensors have one value per head."""

    distances: Tensor
    entropies: Tensor
    images: int = 0

    @property
    def distance(self) -> Tensor:
        """(h,) mean distance in pixels."""
        return self.distances / self.images

    @property
    def entropy(self) -> Tensor:
        """(h,) mean entropy, from 0 to 1."""
        return self.entropies / self.images


@dataclass
class AttentionStatistics:
    """Means over batches: `update(model, images)`, then `layers["blocks.0.attn"].distance`. For ViTs with one grid."""

    grid: Grid | None = None  # rows and columns of patches, if the model does not define them
    layers: dict[str, LayerAttention] = field(default_factory=dict)

    def update(self, model: nn.Module, images: Tensor) -> None:
        """Run the model in evaluation mode on images (B, 3, H, W). ValueError if no attention is captured."""
        with torch.no_grad(), evaluation_mode(model), capture_attention(model) as captured:
            model(images)
        if not captured.calls:
            raise ValueError(f"no attention was captured in {type(model).__name__}")
        prefix = int(getattr(model, "num_prefix_tokens", 0))
        for name, calls in captured.by_module.items():
            weights = torch.cat(calls, 1)  # (B, h, N, M)
            grid = token_grid(model, weights.shape[-1] - prefix, self.grid, tuple(images.shape[-2:]))
            spacing = (images.shape[-2] / grid[0], images.shape[-1] / grid[1])
            self.add(name, weights, place_distances(grid, spacing, images.device), prefix)

    def add(self, layer: str, weights: Tensor, distances: Tensor, prefix: int) -> None:
        """Add a layer's weights (B, h, N, M) over `prefix` tokens and n patches with pairwise distances (n, n)."""
        between = weights[:, :, prefix:, prefix:]
        share = between / between.sum(-1, keepdim=True).clamp_min(1e-12)
        distance = (share * distances).sum(-1).mean(-1).sum(0).cpu()  # (h,)
        entropy = (torch.special.entr(weights).sum(-1) / math.log(weights.shape[-1])).mean(-1).sum(0).cpu()
        known = self.layers.setdefault(layer, LayerAttention(torch.zeros_like(distance), torch.zeros_like(entropy)))
        if known.distances.shape != distance.shape:
            raise ValueError(f"{layer}: {len(distance)} heads, but {len(known.distances)} in earlier batches")
        known.distances += distance
        known.entropies += entropy
        known.images += len(weights)


def place_distances(grid: Grid, spacing: tuple[float, float], device: torch.device | None = None) -> Tensor:
    """(n, n) distances between the n patch centers of a grid in raster order, with the given (row, column) spacing."""
    rows = torch.arange(grid[0], device=device) * spacing[0]
    columns = torch.arange(grid[1], device=device) * spacing[1]
    places = torch.cartesian_prod(rows.float(), columns.float())
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")


def measure_attention(model: nn.Module, loader: BatchLoader, grid: Grid | None = None) -> AttentionStatistics:
    """Attention statistics over all images of the loader."""
    statistics = AttentionStatistics(grid)
    for images, _ in loader.epoch():
        statistics.update(model, images)
    return statistics
