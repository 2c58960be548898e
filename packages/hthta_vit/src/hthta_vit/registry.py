"""HTHTA-ViT's sizes as timm models: `timm.create_model("hthta_vit_base_patch16_224")` works once it is imported.

With `pretrained=True` the backbone gets the weights of timm's `vit_base_patch16_224`, of the tag that the name ends in
(`hthta_vit_base_patch16_224.augreg_in21k`); the paper's parts stay random.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import checkpoint_filter_fn

from hthta_vit.model import HTHTAViT
from vit_core.timm_weights import backbone_cfgs

_MICRO = {
    "input_size": (3, 32, 32), "fixed_input_size": True, "num_classes": 100, "pool_size": None, "crop_pct": 1.0,
    "interpolation": "bilinear", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
    "first_conv": "patch_embed.proj", "classifier": "head", "license": "mit",
}  # fmt: skip
_CFGS: dict[str, Any] = {
    **backbone_cfgs("hthta_vit_base_patch16_224"), **backbone_cfgs("hthta_vit_base_patch16_224_gru2")
}  # fmt: skip
default_cfgs = generate_default_cfgs(_CFGS | {"hthta_vit_micro": _MICRO})


def _create(name: str, pretrained: bool, size: dict[str, Any], fields: dict[str, Any]) -> HTHTAViT:
    return build_model_with_cfg(
        HTHTAViT, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, pretrained_strict=False,
        **{**size, **fields},
    )  # fmt: skip


@register_model
def hthta_vit_base_patch16_224(pretrained: bool = False, **fields: Any) -> HTHTAViT:
    """ViT-B/16 and one GRU layer, as the claimed 99.3M parameters say: 99.45M with 100 classes."""
    return _create("hthta_vit_base_patch16_224", pretrained, {}, fields)


@register_model
def hthta_vit_base_patch16_224_gru2(pretrained: bool = False, **fields: Any) -> HTHTAViT:
    """ViT-B/16 and two GRU layers, as the paper's text and training script say: 110.08M with 100 classes."""
    return _create("hthta_vit_base_patch16_224_gru2", pretrained, {"gru_layers": 2}, fields)


@register_model
def hthta_vit_micro(pretrained: bool = False, **fields: Any) -> HTHTAViT:
    """Ours: 64 wide, 4 blocks, for 32 x 32 images; trains on a CPU.

    Its position embeddings start large: at timm's 0.02 a ViT this narrow learns too late where a patch lies.
    """
    size = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4, "mlp_ratio": 2.0,
            "pool_heads": 4, "pool_head_dim": 16, "pos_embed_std": 0.5}  # fmt: skip
    return _create("hthta_vit_micro", pretrained, size, fields)
