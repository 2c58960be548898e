"""QAViT's sizes as timm models: `timm.create_model("qavit_tiny", num_classes=100)` works once qavit is imported."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from qavit.config import SIZES, TIMM_NAMES, own_names
from qavit.model import QAViT
from vit_core.models.sizes import spread_pos_embed

NAMES_OF_TIMM = {own: theirs for theirs, own in TIMM_NAMES.items()}


def _cfg(img_size: int, num_classes: int = 1000) -> dict[str, Any]:
    return {
        "input_size": (3, img_size, img_size),
        "fixed_input_size": True,
        "num_classes": num_classes,
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.5071, 0.4867, 0.4408),
        "std": (0.2675, 0.2565, 0.2761),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "mit",
    }


default_cfgs = generate_default_cfgs(
    {"qavit_tiny": _cfg(224), "qavit_small": _cfg(224), "qavit_micro": _cfg(32, 100)}  # no weights were published
)


def _create(size: str, pretrained: bool, fields: dict[str, Any]) -> QAViT:
    """Create a model; timm's defaults (such as three channels) apply to arguments given under neither name."""
    given = {NAMES_OF_TIMM.get(name, name): value for name, value in own_names(fields).items()}
    size_fields = {NAMES_OF_TIMM.get(name, name): value for name, value in SIZES[size].items()}
    indices = {"out_indices": given.pop("out_indices", 3), "feature_cls": "getter"}
    return build_model_with_cfg(QAViT, f"qavit_{size}", pretrained, feature_cfg=indices, **(size_fields | given))


@register_model
def qavit_tiny(pretrained: bool = False, **fields: Any) -> QAViT:
    """QAViT-Tiny: width 256, 12 blocks; 13.05M parameters with 100 classes. `fields`: fields of `QAViTConfig`."""
    return _create("tiny", pretrained, fields)


@register_model
def qavit_small(pretrained: bool = False, **fields: Any) -> QAViT:
    """QAViT-Small: width 384, 16 blocks; 38.13M parameters with 100 classes."""
    return _create("small", pretrained, fields)


@register_model
def qavit_micro(pretrained: bool = False, **fields: Any) -> QAViT:
    """QAViT-Micro, ours: width 64, 4 blocks, for 32 x 32 images; trains on a CPU."""
    model = _create("micro", pretrained, fields)
    if not pretrained:
        spread_pos_embed(model)
    return model
