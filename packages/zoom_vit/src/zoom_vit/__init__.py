"""The ZoomViT study: a ViT, importance maps, zoom and token pruning. Importing it registers its models with timm."""

from zoom_vit.importance import IMPORTANCES, Importance, Random, Seen, importance_map
from zoom_vit.model import PrunedOutput, ZoomViT
from zoom_vit.registry import zoom_vit_micro, zoom_vit_tiny_patch8_32, zoom_vit_tiny_patch16_224

__all__ = [
    "IMPORTANCES",
    "Importance",
    "PrunedOutput",
    "Random",
    "Seen",
    "ZoomViT",
    "importance_map",
    "zoom_vit_micro",
    "zoom_vit_tiny_patch8_32",
    "zoom_vit_tiny_patch16_224",
]
