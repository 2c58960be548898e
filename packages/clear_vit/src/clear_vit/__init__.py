"""clear-vit: seven attention and position variants of one ViT. Importing it registers its models with timm."""

from clear_vit import registry  # noqa: F401 -- registers the models
from clear_vit.model import VARIANTS, ClearViT

__all__ = ["VARIANTS", "ClearViT"]
