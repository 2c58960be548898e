"""Shared by the papers' `convert` modules: mapping torchvision's ViT keys to timm's, and error messages."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from timm.models import VisionTransformer
from torch import Tensor, nn

from vit_core.training.checkpoint import mismatches

# torchvision's encoder-layer keys -> timm's block keys; mlp.linear_1 and mlp.linear_2 are from older versions.
_LAYER = {
    "ln_1": "norm1",
    "self_attention.in_proj_": "attn.qkv.",
    "self_attention.out_proj": "attn.proj",
    "ln_2": "norm2",
    "mlp.0": "mlp.fc1",
    "mlp.3": "mlp.fc2",
    "mlp.linear_1": "mlp.fc1",
    "mlp.linear_2": "mlp.fc2",
}


def timm_name(key: str) -> str:
    """A key of torchvision's `VisionTransformer` (except its heads) -> timm's key; other keys are unchanged."""
    match = re.fullmatch(r"encoder\.layers\.encoder_layer_(\d+)\.(.+)", key)
    if match:
        for theirs, ours in _LAYER.items():
            if match[2].startswith(theirs):
                return f"blocks.{match[1]}.{ours}{match[2].removeprefix(theirs)}"
        return key
    key = re.sub(r"^conv_proj\.", "patch_embed.proj.", key)
    key = re.sub(r"^encoder\.ln\.", "norm.", key)
    return {"class_token": "cls_token", "encoder.pos_embedding": "pos_embed"}.get(key, key)


def vit_arguments(state_dict: Mapping[str, Tensor], paper: str) -> dict[str, Any]:
    """Arguments of timm's VisionTransformer, inferred from weights with timm's keys; assumes head_dim 64.

    ValueError if a weight needed for this is missing or has the wrong number of dimensions.
    """
    needed = {"patch_embed.proj.weight": 4, "pos_embed": 3, "head.weight": 2, "blocks.0.mlp.fc1.weight": 2}
    wrong = [f"missing {k}" for k, ndim in needed.items() if k not in state_dict or state_dict[k].ndim != ndim]
    if wrong:
        raise not_of(paper, wrong)
    dim, _, patch_size, _ = state_dict["patch_embed.proj.weight"].shape
    return {
        "img_size": math.isqrt(state_dict["pos_embed"].shape[1] - 1) * patch_size,
        "patch_size": patch_size,
        "embed_dim": dim,
        "depth": len({m[1] for k in state_dict if (m := re.match(r"blocks\.(\d+)\.", k))}),
        "num_heads": max(dim // 64, 1),
        "mlp_ratio": len(state_dict["blocks.0.mlp.fc1.weight"]) / dim,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state_dict,
        "num_classes": len(state_dict["head.weight"]),
    }


def sizes_of(vit: VisionTransformer) -> dict[str, Any]:
    """Arguments of timm's `create_model`, besides image size and classes, for a ViT of the same size."""
    block: Any = vit.blocks[0]
    return {
        "patch_size": vit.patch_embed.patch_size[0],
        "embed_dim": vit.embed_dim,
        "depth": len(vit.blocks),
        "num_heads": block.attn.num_heads,
        "qkv_bias": block.attn.qkv.bias is not None,
        "mlp_ratio": block.mlp.fc1.out_features / vit.embed_dim,
    }


def load_original(model: nn.Module, state_dict: Mapping[str, Tensor], paper: str) -> None:
    """Load converted weights strictly. ValueError that lists missing and unexpected keys and wrong shapes."""
    problems = mismatches(model, state_dict)
    if problems:
        raise not_of(paper, problems)
    model.load_state_dict(state_dict)


def not_of(paper: str, problems: Sequence[str]) -> ValueError:
    return ValueError(f"not a checkpoint of this {paper}: " + "; ".join(problems))
