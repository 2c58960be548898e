"""HTHTA-ViT's sizes as timm models: `timm.create_model("hthta_vit_base_patch16_224")` works once it is imported.

With `pretrained=True` the backbone gets the weights of timm's `vit_base_patch16_224`, of the tag that the name ends in
(`hthta_vit_base_patch16_224.augreg_in21k`); the paper's parts stay random.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import checkpoint_filter_fn

from hthta_vit.model import HTHTAViT
from hthta_vit.notebook import HTHTANotebookViT
from vit_core.models.sizes import MICRO, MICRO_POS_EMBED_STD, unpublished_cfg
from vit_core.models.timm_weights import backbone_cfgs

_CFGS: dict[str, Any] = {
    **backbone_cfgs("hthta_vit_base_patch16_224"), **backbone_cfgs("hthta_vit_base_patch16_224_gru2"),
    **backbone_cfgs("hthta_vit_notebook"),
}  # fmt: skip
default_cfgs = generate_default_cfgs(_CFGS | {"hthta_vit_micro": unpublished_cfg(32)})


def _create(name: str, pretrained: bool, size: dict[str, Any], fields: dict[str, Any], model: Any = HTHTAViT) -> Any:
    indices = {"out_indices": fields.pop("out_indices", 3), "feature_cls": "getter"}
    return build_model_with_cfg(
        model, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, pretrained_strict=False,
        feature_cfg=indices, **{**size, **fields},
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
def hthta_vit_notebook(pretrained: bool = False, **fields: Any) -> HTHTANotebookViT:
    """The notebooks' own model: ViT-B/16, BiGRU of 256, nn.MultiheadAttention, a mean, concatenation."""
    notebook: HTHTANotebookViT = _create("hthta_vit_notebook", pretrained, {}, fields, HTHTANotebookViT)
    return notebook


@register_model
def hthta_vit_micro(pretrained: bool = False, **fields: Any) -> HTHTAViT:
    """Ours: 64 wide, 4 blocks, for 32 x 32 images; trains on a CPU."""
    size = {**MICRO, "pool_heads": 4, "pool_head_dim": 16, "pos_embed_std": MICRO_POS_EMBED_STD}
    return _create("hthta_vit_micro", pretrained, size, fields)
