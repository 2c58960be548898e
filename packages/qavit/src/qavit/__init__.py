"""QAViT: Quad-Attention Vision Transformer. Importing it registers its models with timm."""

from qavit.config import QAViTConfig
from qavit.model import QAViT
from qavit.registry import qavit_micro, qavit_small, qavit_tiny

__all__ = ["QAViT", "QAViTConfig", "qavit_micro", "qavit_small", "qavit_tiny"]
