"""Shared by the papers' model definitions: the micro ViT size, and the timm config of models without weights."""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

# embed_dim 64, 4 blocks, 32 x 32 images (65 tokens); trains on a CPU. Arguments of timm's VisionTransformer.
MICRO: dict[str, Any] = {
    "img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4, "mlp_ratio": 2.0
}  # fmt: skip
# Std of the initial position embedding of every paper's micro model; published sizes keep 0.02. Among the values from
# 0.02 to 2.0 tried on the digits and CIFAR-10, no row falls far behind its best at this one. At 0.02 a ViT this narrow
# learns patch positions too late, with plain attention even at 0.5 (results/README.md, "Initial scale of the micro
# models' position embedding").
MICRO_POS_EMBED_STD = 1.0


def spread_pos_embed(model: nn.Module, std: float = MICRO_POS_EMBED_STD) -> None:
    """Re-initialize the position embedding of a new ViT with this std; also works for models with features_only."""
    vit: Any = getattr(model, "model", model)
    if vit.pos_embed is not None:
        nn.init.trunc_normal_(vit.pos_embed, std=std, a=-2 * std, b=2 * std)


def unpublished_cfg(img_size: int, *, fixed_input_size: bool = True) -> dict[str, Any]:
    """timm default_cfg of a ViT without published weights, for 100 classes."""
    return {
        "input_size": (3, img_size, img_size),
        "fixed_input_size": fixed_input_size,
        "num_classes": 100,
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "mit",
    }
