"""The study's models in timm: `timm.create_model("zoom_vit_tiny_patch16_224")` works after `import zoom_vit`.

With `pretrained=True`, the 224-pixel model loads the weights of timm's `vit_tiny_patch16_224`; a suffix of the name
selects the tag (`zoom_vit_tiny_patch16_224.augreg_in21k`).
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import checkpoint_filter_fn

from vit_core.models.sizes import MICRO, spread_pos_embed, unpublished_cfg
from vit_core.models.timm_weights import backbone_cfgs
from zoom_vit.model import ZoomViT

BACKBONE = "vit_tiny_patch16_224"
TAGS = ("augreg_in21k_ft_in1k", "augreg_in21k")
default_cfgs = generate_default_cfgs(
    backbone_cfgs("zoom_vit_tiny_patch16_224", BACKBONE, TAGS)
    | {"zoom_vit_tiny_patch8_32": unpublished_cfg(32), "zoom_vit_micro": unpublished_cfg(32)}
)
TINY: dict[str, Any] = {"embed_dim": 192, "depth": 12, "num_heads": 3}


def _create(name: str, pretrained: bool, fields: dict[str, Any]) -> ZoomViT:
    indices = fields.pop("out_indices", 3)
    model: ZoomViT = build_model_with_cfg(
        ZoomViT,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": indices, "feature_cls": "getter"},
        **fields,
    )
    return model


@register_model
def zoom_vit_tiny_patch16_224(pretrained: bool = False, **fields: Any) -> ZoomViT:
    """timm's vit_tiny_patch16_224: 196 patches. The study's model for Flowers-102."""
    return _create("zoom_vit_tiny_patch16_224", pretrained, {"img_size": 224, "patch_size": 16, **TINY, **fields})


@register_model
def zoom_vit_tiny_patch8_32(pretrained: bool = False, **fields: Any) -> ZoomViT:
    """ViT-Tiny for 32 × 32 images with 16 patches: the study's model for CIFAR-10."""
    return _create("zoom_vit_tiny_patch8_32", pretrained, {"img_size": 32, "patch_size": 8, **TINY, **fields})


@register_model
def zoom_vit_micro(pretrained: bool = False, **fields: Any) -> ZoomViT:
    """Ours: width 64, 4 blocks, for 32 × 32 images with 64 patches; trains on a CPU."""
    model = _create("zoom_vit_micro", pretrained, {**MICRO, **fields})
    if not pretrained:
        spread_pos_embed(model)
    return model
