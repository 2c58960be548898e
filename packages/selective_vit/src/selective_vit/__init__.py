"""SelectiveViT: thresholded attention in timm's ViTs. Importing it registers its models with timm."""

from selective_vit.attention import Selection, selective_attention
from selective_vit.model import (
    SelectiveAttention,
    grow_threshold,
    make_selective,
    set_threshold,
    sparsity_penalty,
    threshold_values,
    thresholds,
)
from selective_vit.registry import dense_vit_micro, selective_vit_base_patch16_224, selective_vit_micro

__all__ = [
    "Selection",
    "SelectiveAttention",
    "dense_vit_micro",
    "grow_threshold",
    "make_selective",
    "selective_attention",
    "selective_vit_base_patch16_224",
    "selective_vit_micro",
    "set_threshold",
    "sparsity_penalty",
    "threshold_values",
    "thresholds",
]
