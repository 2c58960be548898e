"""The model of the original's notebooks, which produced all logged results; it differs from the model of train.py.

    ViT ─ norm ┬ patches ─ BiGRU, 256 each way ─ x ─ LN(x + attention of 4 heads) ─ mean ─ Linear, ReLU ┐
               └ class token ─ Linear ──────────────────────────────────────────────────────── concat ─┴ Linear

    uv run hthta-vit-train --preset notebook --dataset intel --data-path DIR

Source: class HTHTAViTPlus of HTHA_VIT.ipynb and of "HTHA VIT" (ydnaincy/HTHTA-ViT-, commit 2468cd3). Shapes: B batch, N
patches, d embed_dim, s GRU units per direction.
"""

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class NotebookHead(nn.Module):
    """(patch tokens (B, N, d), class token (B, d)) -> (B, 2s)."""

    def __init__(self, dim: int, states: int = 256, heads: int = 4, dropout: float = 0.3) -> None:
        super().__init__()
        self.gru = nn.GRU(dim, states, batch_first=True, bidirectional=True)
        self.attn = nn.MultiheadAttention(2 * states, heads, batch_first=True)
        self.norm = nn.LayerNorm(2 * states)
        self.cls_proj = nn.Linear(dim, states)
        self.bottleneck = nn.Sequential(nn.Linear(2 * states, states), nn.ReLU(), nn.Dropout(dropout))

    def forward(self, patch_tokens: Tensor, cls_token: Tensor) -> Tensor:
        x = self.gru(patch_tokens)[0]  # (B, N, 2s)
        x = self.norm(x + self.attn(x, x, x, need_weights=False)[0])
        return torch.cat([self.cls_proj(cls_token), self.bottleneck(x.mean(dim=1))], dim=1)


class HTHTANotebookViT(VisionTransformer):
    """timm's VisionTransformer with the notebooks' head; images (B, C, H, W) -> logits (B, num_classes).

    states: GRU units per direction. heads: heads of the attention over the GRU's outputs. frozen_blocks: number of
    first blocks that are frozen, together with the embeddings (1 in the notebook's training on Intel). Other arguments
    are timm's. Raises ValueError with the rule that invalid arguments break.
    """

    def __init__(self, *args: Any, states: int = 256, heads: int = 4, frozen_blocks: int = 0, **fields: Any) -> None:
        if states < 1 or heads < 1 or 2 * states % heads:
            raise ValueError(f"2 x states must be a multiple of heads, both at least 1; got {states} and {heads}")
        super().__init__(*args, **fields)
        if not self.has_class_token or self.num_prefix_tokens != 1:
            raise ValueError(
                "the head needs a class token and no other prefix tokens: use class_token=True, reg_tokens=0"
            )
        if not 0 <= frozen_blocks <= len(self.blocks):
            raise ValueError(f"frozen_blocks must lie in [0, {len(self.blocks)}], got {frozen_blocks}")
        self.guided = NotebookHead(self.embed_dim, states, heads)
        self.head_hidden_size = 2 * states
        self.reset_classifier(self.num_classes)
        if frozen_blocks:
            for module in (self.patch_embed, self.norm_pre, *self.blocks[:frozen_blocks]):
                module.requires_grad_(False)
            for p in (self.cls_token, self.pos_embed):
                if p is not None:
                    p.requires_grad_(False)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one with PyTorch's default initialization, as in the notebooks; 0: no head."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool  # type: ignore[assignment]
        device = self.cls_token.device if self.cls_token is not None else None
        self.head = nn.Linear(self.head_hidden_size, num_classes, device=device) if num_classes else nn.Identity()

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        if (pool_type or self.global_pool) != "token":
            return super().pool(x, pool_type)
        pooled: Tensor = self.guided(x[:, 1:], x[:, 0])
        return pooled

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's groups; the notebooks' head is in the last group, with the final norm."""
        groups = super().group_matcher(coarse)
        return {**groups, "blocks": [*groups["blocks"], (r"^guided", (99999,))]}
