"""Weights of the original: one attention layer, or a whole checkpoint of its model."""

from collections.abc import Mapping
from typing import Any

from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from selective_vit.attention import Selection
from selective_vit.model import SelectiveAttention, ThresholdForm, make_selective
from vit_core.conversion import load_original, vit_arguments

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
    sizes = vit_arguments(theirs, PAPER)
    model = VisionTransformer(**sizes | {"num_heads": int(config.pop("heads", 0) or sizes["num_heads"])})
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
