"""The ZoomViT study's ViT: timm's, and a forward pass that goes on with the most important patches alone.

After "Vision Transformers Need Zoomer: Efficient ViT with Visual Intent-Guided Zoom Adapter" (anonymous, 2026). The
study tries its token-level pruning: after the 6th of 12 blocks the class token and the k = max(1, ⌊keep · N⌋) patches
of the largest importance stay, and the other blocks attend among these.

    uv run zoom-vit-cifar-train --dataset digits                           a micro model: 90% in a minute
    uv run zoom-vit-flowers-train --data-path DIR                          claimed 9.76% on Flowers-102 after 5 epochs

Shapes: B images, N patches in raster order, P prefix tokens (the class token; registers where there are any), k kept
patches, D embed_dim. Tokens are P + N, the prefix first.
"""

from typing import Any, NamedTuple

import torch
from timm.models import VisionTransformer
from torch import Tensor

from zoom_vit.importance import Importance, Seen, named, see, through


class PrunedOutput(NamedTuple):
    """What `ZoomViT.forward_pruned` gives."""

    logits: Tensor  # (B, classes)
    kept: Tensor  # (B, k) numbers of the kept patches in the grid's raster order, the most important first
    num_kept: int  # k
    num_patches: int  # N


class Pruning(NamedTuple):
    """Which patches stay, and from where on: after the first `layer` blocks."""

    keep_ratio: float
    layer: int
    importance: Importance | Tensor


class ZoomViT(VisionTransformer):
    """timm's VisionTransformer with its arguments, weights and names; `forward_pruned` is what it has more."""

    def forward_features(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Images (B, 3, H, W) -> normalised tokens (B, P + N, D). Further arguments: timm's masks of attention."""
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
        """Classify by the most important patches alone, from `prune_layer` on. keep_ratio 1 is the dense model.

        Args:
            images: (B, 3, H, W), normalised.
            keep_ratio: of the patches, in (0, 1].
            prune_layer: how many blocks see all of them. Default: half of the blocks, of 12 the 6 of the study.
            importance: a name in `importance.IMPORTANCES`, a function like those, or values (B, N) or (B, rows,
                columns) that were computed before.
        Raises: ValueError for ratios and layers that cannot be, and for importances of another shape.
        """
        depth = len(self.blocks)
        layer = depth // 2 if prune_layer is None else prune_layer
        if not 0 < keep_ratio <= 1:
            raise ValueError(f"keep_ratio must lie in (0, 1], got {keep_ratio}")
        if not 1 <= layer < depth:  # behind the last block there is nothing to save
            raise ValueError(f"prune_layer must be at least 1 and below the {depth} blocks, got {layer}")
        if self.training and getattr(self.patch_drop, "prob", 0) > 0:
            raise ValueError("patch_drop_rate drops patches by chance in training: they cannot be pruned by importance")
        importance = named(importance) if isinstance(importance, str) else importance
        tokens, kept = self._features(images, Pruning(keep_ratio, layer, importance))
        assert kept is not None
        rows, columns = self.patch_embed.dynamic_feat_size((images.shape[2], images.shape[3]))
        return PrunedOutput(self.forward_head(tokens), kept, kept.shape[1], rows * columns)

    def _features(self, images: Tensor, pruning: Pruning | None) -> tuple[Tensor, Tensor | None]:
        """The one path of both: normalised tokens, and where some were pruned (B, k) those that stayed."""
        layer, kept = (0 if pruning is None else pruning.layer), None
        seen = see(self, images, layer)
        x = seen.tokens
        if pruning is not None:
            x, kept = self._prune(seen, pruning)
        for block in list(self.blocks)[layer:]:
            x = through(self, block, x)
        return self.norm(x), kept

    def _prune(self, seen: Seen, pruning: Pruning) -> tuple[Tensor, Tensor]:
        """The prefix and the kept patches (B, P + k, D), in the order of their importance; and which they are."""
        x = seen.tokens
        B, N = len(x), x.shape[1] - self.num_prefix_tokens
        given = pruning.importance
        values = given if isinstance(given, Tensor) else given(seen)
        if values.ndim not in (2, 3) or len(values) != B or values.numel() != B * N:
            raise ValueError(f"importance {tuple(values.shape)}: need ({B}, {N}), a value for each patch of each image")
        if values is given and not torch.compiler.is_compiling() and given.isnan().any():
            raise ValueError("the importance holds NaN")
        values = values.flatten(1)
        k = max(1, int(pruning.keep_ratio * N))
        kept = values.topk(k, dim=1).indices
        if k == N:  # in another order the sums would round differently
            return x, kept
        prefix, patches = x.split((self.num_prefix_tokens, N), dim=1)
        return torch.cat([prefix, patches.gather(1, kept[:, :, None].expand(-1, -1, x.shape[2]))], 1), kept
