"""QAViT's sizes as timm models: `timm.create_model("qavit_tiny", num_classes=100)` works once qavit is imported."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from qavit.config import SIZES
from qavit.model import QAViT


def _cfg(img_size: int) -> dict[str, Any]:
    return {
        "input_size": (3, img_size, img_size), "fixed_input_size": True, "num_classes": 100, "pool_size": None,
        "crop_pct": 1.0, "interpolation": "bilinear", "mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761),
        "first_conv": "patch_embed.proj", "classifier": "head", "license": "mit",
    }  # fmt: skip


default_cfgs = generate_default_cfgs(
    {"qavit_tiny": _cfg(224), "qavit_small": _cfg(224), "qavit_micro": _cfg(32)}  # no weights were published
)


def _create(size: str, pretrained: bool, fields: dict[str, Any]) -> QAViT:
    return build_model_with_cfg(QAViT, f"qavit_{size}", pretrained, **(SIZES[size] | fields))


@register_model
def qavit_tiny(pretrained: bool = False, **fields: Any) -> QAViT:
    """QAViT-Tiny: 256 wide, 12 blocks; 13.05M parameters with 100 classes. `fields`: those of `QAViTConfig`."""
    return _create("tiny", pretrained, fields)


@register_model
def qavit_small(pretrained: bool = False, **fields: Any) -> QAViT:
    """QAViT-Small: 384 wide, 16 blocks; 38.13M parameters with 100 classes."""
    return _create("small", pretrained, fields)


@register_model
def qavit_micro(pretrained: bool = False, **fields: Any) -> QAViT:
    """QAViT-Micro, ours: 64 wide, 4 blocks, for 32 x 32 images; trains on a CPU."""
    return _create("micro", pretrained, fields)
