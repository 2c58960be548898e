"""SelectiveViT's sizes as timm models: `timm.create_model("selective_vit_base_patch16_224")` after the import.

All take `make_selective`'s arguments beside timm's own. With `pretrained=True` the base model gets the weights of
timm's `vit_base_patch16_224`, of the tag that the name ends in (`selective_vit_base_patch16_224.augreg_in21k`).
"""

import inspect
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from selective_vit.model import make_selective
from vit_core.timm_weights import backbone_cfgs

_MICRO_CFG = {
    "input_size": (3, 32, 32), "fixed_input_size": True, "num_classes": 100, "pool_size": None, "crop_pct": 1.0,
    "interpolation": "bilinear", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
    "first_conv": "patch_embed.proj", "classifier": "head", "license": "mit",
}  # fmt: skip
_MICRO = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4, "mlp_ratio": 2.0}
default_cfgs = generate_default_cfgs(
    backbone_cfgs("selective_vit_base_patch16_224") | {"selective_vit_micro": _MICRO_CFG, "dense_vit_micro": _MICRO_CFG}
)
_SELECTIVE = set(inspect.signature(make_selective).parameters) - {"vit"}


def _create(name: str, pretrained: bool, fields: dict[str, Any]) -> VisionTransformer:
    """The ViT with its weights first, then selective where `fields` say so: none of the weights are lost."""
    selective = {k: fields.pop(k) for k in _SELECTIVE & fields.keys()}
    vit = build_model_with_cfg(
        VisionTransformer, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **fields
    )  # fmt: skip
    if name.startswith("selective_"):
        make_selective(vit, **selective)
    elif selective:
        raise ValueError(f"{name} has plain attention: it takes no {', '.join(sorted(selective))}")
    return vit


def _create_micro(name: str, pretrained: bool, fields: dict[str, Any]) -> VisionTransformer:
    vit = _create(name, pretrained, {**_MICRO, **fields})
    if vit.pos_embed is not None and not pretrained:
        # At timm's 0.02 a ViT this narrow learns too late where a patch lies.
        nn.init.trunc_normal_(vit.pos_embed, std=0.5, a=-1.0, b=1.0)
    return vit


@register_model
def selective_vit_base_patch16_224(pretrained: bool = False, **fields: Any) -> VisionTransformer:
    """ViT-B/16, with as many parameters as the dense model: 85.81M with 10 classes."""
    return _create("selective_vit_base_patch16_224", pretrained, fields)


@register_model
def selective_vit_micro(pretrained: bool = False, **fields: Any) -> VisionTransformer:
    """Ours: 64 wide, 4 blocks, for 32 x 32 images (65 tokens); trains on a CPU."""
    return _create_micro("selective_vit_micro", pretrained, fields)


@register_model
def dense_vit_micro(pretrained: bool = False, **fields: Any) -> VisionTransformer:
    """The micro model with plain attention, to compare with."""
    return _create_micro("dense_vit_micro", pretrained, fields)
