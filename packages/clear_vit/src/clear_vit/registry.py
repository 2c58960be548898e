"""Registers each of `VARIANTS` with timm as `clear_vit_tiny_<variant>` and `clear_vit_micro_<variant>`.

tiny is the original's size: 12 blocks, width 192, 3 heads, patch size 16, 256 × 256 images. micro is ours, for 32 × 32.
Both take the arguments of `ClearViT` and of timm's VisionTransformer.
"""

from collections.abc import Callable
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from clear_vit.model import VARIANTS, ClearViT
from vit_core.models.sizes import MICRO, MICRO_POS_EMBED_STD, unpublished_cfg

SIZES: dict[str, dict[str, Any]] = {"tiny": {"img_size": 256}, "micro": {**MICRO, "pos_embed_std": MICRO_POS_EMBED_STD}}
default_cfgs = generate_default_cfgs(
    {
        f"clear_vit_{size}_{variant}": unpublished_cfg(fields["img_size"], fixed_input_size=False)
        for size, fields in SIZES.items()
        for variant in VARIANTS
    }
)


def _entry_point(name: str, fields: dict[str, Any]) -> Callable[..., ClearViT]:
    def create(pretrained: bool = False, **given: Any) -> ClearViT:
        indices = given.pop("out_indices", 3)
        return build_model_with_cfg(
            ClearViT,
            name,
            pretrained,
            feature_cfg={"out_indices": indices, "feature_cls": "getter"},
            **{**fields, **given},
        )

    create.__name__ = name
    return create


for _size, _fields in SIZES.items():
    for _variant, _difference in VARIANTS.items():
        register_model(_entry_point(f"clear_vit_{_size}_{_variant}", {**_fields, **_difference}))
