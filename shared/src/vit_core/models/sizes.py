"""What the papers' sizes of a ViT have in common: the micro size, and the configuration of models without weights."""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

# 64 wide, 4 blocks, for 32 x 32 images (65 tokens); trains on a CPU. Arguments of timm's VisionTransformer.
MICRO: dict[str, Any] = {
    "img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4, "mlp_ratio": 2.0
}  # fmt: skip
# Deviation of the initial position embedding of every paper's micro model; published sizes keep their 0.02. Of 0.02 to
# 2.0, tried on the digits and on CIFAR-10, it is the value at which no row falls far behind its best. At 0.02 a ViT
# this narrow learns too late where a patch lies, with plain attention at 0.5 still (results/README.md, "Initial scale
# of the micro models' position embedding").
MICRO_POS_EMBED_STD = 1.0


def spread_pos_embed(model: nn.Module, std: float = MICRO_POS_EMBED_STD) -> None:
    """Draw the position embedding of a new ViT anew, with this deviation; also of one made with features_only."""
    vit: Any = getattr(model, "model", model)
    if vit.pos_embed is not None:
        nn.init.trunc_normal_(vit.pos_embed, std=std, a=-2 * std, b=2 * std)


def unpublished_cfg(img_size: int, *, fixed_input_size: bool = True) -> dict[str, Any]:
    """timm's default_cfg of a ViT that nobody published weights of, for 100 classes."""
    return {
        "input_size": (3, img_size, img_size), "fixed_input_size": fixed_input_size, "num_classes": 100,
        "pool_size": None, "crop_pct": 1.0, "interpolation": "bilinear", "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD, "first_conv": "patch_embed.proj", "classifier": "head", "license": "mit",
    }  # fmt: skip
