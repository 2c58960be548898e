"""Weights of the original: one attention layer, or a whole checkpoint of its model."""

import math
import re
from collections.abc import Mapping
from typing import Any

from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from selective_vit.attention import Selection
from selective_vit.model import SelectiveAttention, ThresholdForm, make_selective
from vit_core.conversion import load_original, not_of

PAPER = "SelectiveViT"


def attention_from_original(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> SelectiveAttention:
    """One attention layer, (B, N, dim) -> (B, N, dim).

    config: dim, heads, threshold, eps, as numbers or as text, and optionally mode ("hard", the notebook's, where it is
    not given) and empty_row ("zero", as published). Raises ValueError that lists wrong keys.
    """
    config = dict(config)
    missing = [k for k in ("dim", "heads", "threshold", "eps") if k not in config]
    if missing:
        raise ValueError(f"config: missing {', '.join(missing)}")
    plain = Attention(int(config.pop("dim")), int(config.pop("heads")), qkv_bias="qkv.bias" in state_dict)
    attn = SelectiveAttention(plain, *_selection(config))
    load_original(attn, state_dict, PAPER)
    return attn.eval()


def model_from_original(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> VisionTransformer:
    """A whole checkpoint: the weights of timm's ViT under `model.`, with or without `module.` in front.

    config: threshold, eps, mode and empty_row as for `attention_from_original`, none of them required (0.01, 1e-6), and
    `heads`, the attention heads (64 wide each where not given). Sizes are read off the weights.
    Raises ValueError that lists missing, unexpected and wrongly shaped keys.
    """
    config = dict(config)
    theirs = {k.removeprefix("module.").removeprefix("model."): v for k, v in state_dict.items()}
    needed = ("patch_embed.proj.weight", "pos_embed", "head.weight", "blocks.0.mlp.fc1.weight")
    missing = [k for k in needed if k not in theirs]
    if missing:
        raise not_of(PAPER, [f"missing model.{k}" for k in missing])
    dim, _, patch_size, _ = theirs[needed[0]].shape
    model = VisionTransformer(
        img_size=math.isqrt(theirs["pos_embed"].shape[1] - 1) * patch_size, patch_size=patch_size, embed_dim=dim,
        depth=len({m[1] for k in theirs if (m := re.match(r"blocks\.(\d+)\.", k))}),
        num_heads=int(config.pop("heads", 0) or max(dim // 64, 1)), num_classes=len(theirs["head.weight"]),
        mlp_ratio=len(theirs["blocks.0.mlp.fc1.weight"]) / dim, qkv_bias="blocks.0.attn.qkv.bias" in theirs,
    )  # fmt: skip
    form, selection = _selection({"threshold": 0.01, "eps": 1e-6, **config})
    make_selective(model, form.threshold, selection.mode, selection.empty_row, eps=selection.eps)
    load_original(model, theirs, PAPER)
    return model.eval()


def _selection(config: dict[str, Any]) -> tuple[ThresholdForm, Selection]:
    form = ThresholdForm(threshold=float(config.pop("threshold")))
    words = {"mode": "hard", "empty_row": "zero"} | {
        k: str(config.pop(k)).strip('"') for k in ("mode", "empty_row") if k in config
    }
    selection = Selection(eps=float(config.pop("eps")), **words)
    if config:
        raise ValueError(f"config: unexpected {', '.join(config)}")
    return form, selection
