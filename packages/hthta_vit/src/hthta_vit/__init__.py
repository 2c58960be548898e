"""HTHTA-ViT++: ViT with GRU-guided token attention. Importing it registers its models with timm."""

from hthta_vit.model import COMPONENTS, GuidedTokenAttention, HTHTAViT
from hthta_vit.notebook import HTHTANotebookViT
from hthta_vit.registry import (
    hthta_vit_base_patch16_224,
    hthta_vit_base_patch16_224_gru2,
    hthta_vit_micro,
    hthta_vit_notebook,
)

__all__ = [
    "COMPONENTS",
    "GuidedTokenAttention",
    "HTHTANotebookViT",
    "HTHTAViT",
    "hthta_vit_base_patch16_224",
    "hthta_vit_base_patch16_224_gru2",
    "hthta_vit_micro",
    "hthta_vit_notebook",
]
