"""The ZoomViT study's ViT: timm's VisionTransformer, and a forward pass that prunes all but the most important patches.

Based on "Vision Transformers Need Zoomer: Efficient ViT with Visual Intent-Guided Zoom Adapter" (anonymous, 2026). The
study tests its token-level pruning: after the 6th of 12 blocks, only the class token and the k = max(1, ⌊keep · N⌋)
most important patches are kept, and the remaining blocks attend among these.

    uv run zoom-vit-cifar-train --dataset digits                           micro model: 90% in a minute
    uv run zoom-vit-flowers-train --data-path DIR                          claimed 9.76% on Flowers-102 after 5 epochs

Shapes: B images, N patches in raster order, P prefix tokens (the class token, and registers if any), k kept patches,
D embed_dim. There are P + N tokens, the prefix first.
"""

from typing import Any, NamedTuple

import torch
from timm.models import VisionTransformer
from torch import Tensor

from zoom_vit.importance import Importance, Seen, named, see, through


class PrunedOutput(NamedTuple):
    """Output of `ZoomViT.forward_pruned`."""

    logits: Tensor  # (B, classes)
    kept: Tensor  # (B, k) raster-order indices of the kept patches, most important first
    num_kept: int  # k
    num_patches: int  # N


class Pruning(NamedTuple):
    """Which patches are kept; pruning happens after the first `layer` blocks."""

    keep_ratio: float
    layer: int
    importance: Importance | Tensor


class ZoomViT(VisionTransformer):
    """timm's VisionTransformer with the same arguments, weights and parameter names; adds `forward_pruned`."""

    def forward_features(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Images (B, 3, H, W) -> normalized tokens (B, P + N, D). Other arguments: timm's attention masks."""
        if any(a is not None and a is not False for a in (*args, *kwargs.values())):
            return super().forward_features(x, *args, **kwargs)
        return self._features(x, None)[0]

    def forward_pruned(
        self,
        images: Tensor,
        keep_ratio: float = 0.3,
        prune_layer: int | None = None,
        importance: str | Importance | Tensor = "token_norm",
    ) -> PrunedOutput:
        """Classify with only the most important patches after the first `prune_layer` blocks.

        Args:
            images: (B, 3, H, W), normalized.
            keep_ratio: share of the patches to keep, in (0, 1]; 1 is the dense model.
            prune_layer: number of blocks that process all patches. Default: half of the blocks (6 of 12, as published).
            importance: a name in `importance.IMPORTANCES`, a function like those, or precomputed values (B, N) or
                (B, rows, columns).
        Raises: ValueError for an invalid ratio or layer, or an importance with the wrong shape.
        """
        depth = len(self.blocks)
        layer = depth // 2 if prune_layer is None else prune_layer
        if not 0 < keep_ratio <= 1:
            raise ValueError(f"keep_ratio must lie in (0, 1], got {keep_ratio}")
        if not 1 <= layer < depth:  # pruning after the last block saves nothing
            raise ValueError(f"prune_layer must be at least 1 and less than the number of blocks, {depth}; got {layer}")
        if self.training and getattr(self.patch_drop, "prob", 0) > 0:
            raise ValueError(
                "cannot prune in training mode with patch_drop_rate > 0, which drops random patches; "
                "call model.eval() or set patch_drop_rate=0"
            )
        importance = named(importance) if isinstance(importance, str) else importance
        tokens, kept = self._features(images, Pruning(keep_ratio, layer, importance))
        assert kept is not None
        rows, columns = self.patch_embed.dynamic_feat_size((images.shape[2], images.shape[3]))
        return PrunedOutput(self.forward_head(tokens), kept, kept.shape[1], rows * columns)

    def _features(self, images: Tensor, pruning: Pruning | None) -> tuple[Tensor, Tensor | None]:
        """Dense and pruned forward pass: normalized tokens and, if pruned, the indices (B, k) of the kept patches."""
        layer, kept = (0 if pruning is None else pruning.layer), None
        seen = see(self, images, layer)
        x = seen.tokens
        if pruning is not None:
            x, kept = self._prune(seen, pruning)
        for block in list(self.blocks)[layer:]:
            x = through(self, block, x)
        return self.norm(x), kept

    def _prune(self, seen: Seen, pruning: Pruning) -> tuple[Tensor, Tensor]:
        """The prefix and the kept patches (B, P + k, D), most important first, and the indices of the kept patches."""
        x = seen.tokens
        B, N = len(x), x.shape[1] - self.num_prefix_tokens
        given = pruning.importance
        values = given if isinstance(given, Tensor) else given(seen)
        if values.ndim not in (2, 3) or len(values) != B or values.numel() != B * N:
            raise ValueError(
                f"importance has shape {tuple(values.shape)}: need ({B}, {N}), one value per patch of each image"
            )
        if values is given and not torch.compiler.is_compiling() and given.isnan().any():
            raise ValueError("importance contains NaN: patches cannot be ranked; check how it was computed")
        values = values.flatten(1)
        k = max(1, int(pruning.keep_ratio * N))
        kept = values.topk(k, dim=1).indices
        if k == N:  # keeps the order: reordered sums would round differently
            return x, kept
        prefix, patches = x.split((self.num_prefix_tokens, N), dim=1)
        return torch.cat([prefix, patches.gather(1, kept[:, :, None].expand(-1, -1, x.shape[2]))], 1), kept
