"""HTHTA-ViT's models in timm: `timm.create_model("hthta_vit_base_patch16_224")` works after `import hthta_vit`.

With `pretrained=True`, the backbone loads the weights of timm's `vit_base_patch16_224`; a suffix of the name selects
the tag (`hthta_vit_base_patch16_224.augreg_in21k`). The paper's modules keep their random initialization.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import checkpoint_filter_fn

from hthta_vit.model import HTHTAViT
from hthta_vit.notebook import HTHTANotebookViT
from vit_core.models.sizes import MICRO, MICRO_POS_EMBED_STD, unpublished_cfg
from vit_core.models.timm_weights import backbone_cfgs

_CFGS: dict[str, Any] = {
    **backbone_cfgs("hthta_vit_base_patch16_224"),
    **backbone_cfgs("hthta_vit_base_patch16_224_gru2"),
    **backbone_cfgs("hthta_vit_notebook"),
}
default_cfgs = generate_default_cfgs(_CFGS | {"hthta_vit_micro": unpublished_cfg(32)})


def _create(name: str, pretrained: bool, size: dict[str, Any], fields: dict[str, Any], model: Any = HTHTAViT) -> Any:
    indices = {"out_indices": fields.pop("out_indices", 3), "feature_cls": "getter"}
    return build_model_with_cfg(
        model,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        pretrained_strict=False,
        feature_cfg=indices,
        **{**size, **fields},
    )


@register_model
def hthta_vit_base_patch16_224(pretrained: bool = False, **fields: Any) -> HTHTAViT:
    """ViT-B/16 with one GRU layer, which matches the claimed 99.3M parameters: 99.45M with 100 classes."""
    return _create("hthta_vit_base_patch16_224", pretrained, {}, fields)


@register_model
def hthta_vit_base_patch16_224_gru2(pretrained: bool = False, **fields: Any) -> HTHTAViT:
    """ViT-B/16 with two GRU layers, as in the paper's text and training script: 110.08M with 100 classes."""
    return _create("hthta_vit_base_patch16_224_gru2", pretrained, {"gru_layers": 2}, fields)


@register_model
def hthta_vit_notebook(pretrained: bool = False, **fields: Any) -> HTHTANotebookViT:
    """The notebooks' model: ViT-B/16, BiGRU with 256 units, nn.MultiheadAttention, mean pooling, concatenation."""
    notebook: HTHTANotebookViT = _create("hthta_vit_notebook", pretrained, {}, fields, HTHTANotebookViT)
    return notebook


@register_model
def hthta_vit_micro(pretrained: bool = False, **fields: Any) -> HTHTAViT:
    """Ours: width 64, 4 blocks, for 32 x 32 images; trains on a CPU."""
    size = {**MICRO, "pool_heads": 4, "pool_head_dim": 16, "pos_embed_std": MICRO_POS_EMBED_STD}
    return _create("hthta_vit_micro", pretrained, size, fields)
