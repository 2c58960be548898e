"""SelectiveViT's sizes as timm models: `timm.create_model("selective_vit_base_patch16_224")` after the import.

All take `make_selective`'s arguments and timm's. With `pretrained=True` the base model gets the weights of timm's
`vit_base_patch16_224`, with the tag at the end of the name (`selective_vit_base_patch16_224.augreg_in21k`).
"""

import inspect
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from selective_vit.model import block_indices, make_selective
from vit_core.models.sizes import MICRO, spread_pos_embed, unpublished_cfg
from vit_core.models.timm_weights import backbone_cfgs

default_cfgs = generate_default_cfgs(
    backbone_cfgs("selective_vit_base_patch16_224")
    | {"selective_vit_micro": unpublished_cfg(32), "dense_vit_micro": unpublished_cfg(32)}
)
_SELECTIVE = set(inspect.signature(make_selective).parameters) - {"vit"}


def _create(name: str, pretrained: bool, fields: dict[str, Any]) -> VisionTransformer:
    """Create the ViT with its weights, then make it selective if `name` is, so that no weights are lost."""
    selective = {k: fields.pop(k) for k in _SELECTIVE & fields.keys()}
    built = build_model_with_cfg(
        VisionTransformer,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": fields.pop("out_indices", 3), "feature_cls": "getter"},
        **fields,
    )
    if name.startswith("selective_"):
        vit = getattr(built, "model", built)  # features_only wraps it and drops later blocks
        if selective.get("blocks") is not None:
            chosen = block_indices(selective["blocks"], fields.get("depth", 12))
            selective["blocks"] = [block for block in chosen if block < len(vit.blocks)]
        make_selective(vit, **selective)
    elif selective:
        unsupported = ", ".join(sorted(selective))
        raise ValueError(f"{name} has plain attention and does not support {unsupported}; use a selective model")
    return built


def _create_micro(name: str, pretrained: bool, fields: dict[str, Any]) -> VisionTransformer:
    vit = _create(name, pretrained, {**MICRO, **fields})
    if not pretrained:
        spread_pos_embed(vit)
    return vit


@register_model
def selective_vit_base_patch16_224(pretrained: bool = False, **fields: Any) -> VisionTransformer:
    """ViT-B/16 with as many parameters as the dense model: 85.81M with 10 classes."""
    return _create("selective_vit_base_patch16_224", pretrained, fields)


@register_model
def selective_vit_micro(pretrained: bool = False, **fields: Any) -> VisionTransformer:
    """Our micro size: width 64, 4 blocks, for 32 × 32 images (65 tokens); trains on a CPU."""
    return _create_micro("selective_vit_micro", pretrained, fields)


@register_model
def dense_vit_micro(pretrained: bool = False, **fields: Any) -> VisionTransformer:
    """The micro model with plain attention, for comparison."""
    return _create_micro("dense_vit_micro", pretrained, fields)
