"""What timm expects of a model beside its forward pass; the paper is in `model.py`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from timm.models._features import feature_take_indices
from torch import Tensor, nn

from qavit.config import QAViTConfig

TIMM_NAMES = {
    "in_chans": "in_channels", "drop_rate": "dropout", "attn_drop_rate": "attn_drop", "drop_path_rate": "drop_path"
}  # fmt: skip


def own_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments under timm's names as fields of `QAViTConfig`. ValueError where both names say different things."""
    named: dict[str, Any] = {}
    for name, value in fields.items():
        own = TIMM_NAMES.get(name, name)
        if own in named and named[own] != value:
            raise ValueError(f"{own} is given twice, as {named[own]} and as {value}")
        named[own] = value
    return named


class TimmApi(nn.Module):
    """Classifier, intermediate features, and names for timm's optimisers. Base class of `QAViT`."""

    config: QAViTConfig
    blocks: nn.ModuleList
    norm: nn.Module
    head: nn.Module
    embed_dim: int
    global_pool: str
    grad_checkpointing: bool

    run_blocks: Callable[[Tensor, Sequence[int], int | None], tuple[Tensor, list[Tensor]]]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Features of the chosen blocks (all for None, the last n for an int), as timm's models give them.

        Returns a list of (B, d, H, W) grids ("NCHW") or (B, N, d) tokens ("NLC"); without `intermediates_only`, the
        pair (final tokens, that list).
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be NCHW or NLC, got {output_fmt}")
        take, last = feature_take_indices(len(self.blocks), indices)
        x, kept = self.run_blocks(x, take, last + 1 if stop_early else None)
        if norm:
            kept = [self.norm(t) for t in kept]
        if output_fmt == "NCHW":
            grid = (self.config.grid, self.config.grid)
            kept = [t.transpose(1, 2).unflatten(2, grid).contiguous() for t in kept]
        return kept if intermediates_only else (self.norm(x), kept)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what `forward_intermediates` of these indices does not need."""
        take, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return take

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head, in place: initialised as the model's other Linear layers, none for num_classes 0."""
        if global_pool is not None:
            if global_pool not in ("avg", ""):
                raise ValueError(f"global_pool must be 'avg' or '' (no pooling), got {global_pool!r}")
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.config = self.config.replace(num_classes=num_classes)
        self.head = nn.Identity()
        if num_classes:
            device = next(self.parameters()).device
            head = nn.Linear(self.embed_dim, num_classes, device=device)
            nn.init.trunc_normal_(head.weight, std=self.config.init_std)
            nn.init.zeros_(head.bias)
            self.head = head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "global_bank.global_k", "global_bank.global_v"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Depth of each parameter, for timm's layer-wise learning rates."""
        return {
            "stem": r"^pos_embed|^patch_embed|^global_bank",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }
