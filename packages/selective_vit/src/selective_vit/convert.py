"""Converts weights of the original: one attention layer, or a whole checkpoint of its model."""

from collections.abc import Mapping
from typing import Any

from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from selective_vit.attention import Selection
from selective_vit.model import SelectiveAttention, ThresholdForm, make_selective
from vit_core.models.conversion import load_original, vit_arguments

PAPER = "SelectiveViT"


def attention_from_original(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> SelectiveAttention:
    """One attention layer, (B, N, dim) -> (B, N, dim).

    config: dim, heads, threshold and eps, as numbers or strings, and optionally mode (default "hard", the notebook's)
    and empty_row (default "zero", as published). Raises ValueError listing missing and unexpected keys.
    """
    config = dict(config)
    missing = [k for k in ("dim", "heads", "threshold", "eps") if k not in config]
    if missing:
        raise ValueError(f"config: missing {', '.join(missing)}")
    dim, heads = (_read_count(config, name) for name in ("dim", "heads"))
    if dim < 1 or heads < 1 or dim % heads:
        raise ValueError(f"config: dim must be a multiple of heads, got {dim} and {heads}")
    attn = SelectiveAttention(Attention(dim, heads, qkv_bias="qkv.bias" in state_dict), *_selection(config))
    load_original(attn, state_dict, PAPER)
    return attn.eval()


def model_from_original(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> VisionTransformer:
    """A whole checkpoint: the weights of timm's ViT under `model.`, with or without the prefix `module.`.

    config: threshold (default 0.01), eps (1e-6), mode and empty_row as for `attention_from_original`, and `heads`, the
    number of attention heads (default: width / 64). Other sizes are inferred from the weights.
    Raises ValueError listing missing and unexpected keys and wrong shapes.
    """
    config = dict(config)
    theirs, model = _vit(state_dict, config)
    form, selection = _selection({"threshold": 0.01, "eps": 1e-6, **config})
    make_selective(model, form.threshold, selection.mode, selection.empty_row, eps=selection.eps)
    load_original(model, theirs, PAPER)
    return model.eval()


def dense_from_original(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> VisionTransformer:
    """The same for the notebook's dense ViT, with timm's attention. config: only `heads`."""
    theirs, model = _vit(state_dict, dict(config))
    load_original(model, theirs, PAPER)
    return model.eval()


def _vit(state_dict: Mapping[str, Tensor], config: dict[str, Any]) -> tuple[dict[str, Tensor], VisionTransformer]:
    """Weights with timm's names, and a ViT of their sizes; removes `heads` from the config."""
    theirs = {k.removeprefix("module.").removeprefix("model."): v for k, v in state_dict.items()}
    sizes = vit_arguments(theirs, PAPER)
    if "heads" in config:
        sizes["num_heads"] = _read_count(config, "heads")
    if sizes["num_heads"] < 1 or sizes["embed_dim"] % sizes["num_heads"]:
        raise ValueError(f"config: heads must divide the width of {sizes['embed_dim']}, got {sizes['num_heads']}")
    return theirs, VisionTransformer(**sizes)


def _selection(config: dict[str, Any]) -> tuple[ThresholdForm, Selection]:
    form = ThresholdForm(threshold=_read(config, "threshold"))
    words = {"mode": "hard", "empty_row": "zero"} | {
        k: str(config.pop(k)).strip('"') for k in ("mode", "empty_row") if k in config
    }
    selection = Selection(eps=_read(config, "eps"), **words)
    if config:
        raise ValueError(f"config: unexpected {', '.join(config)}")
    return form, selection


def _read(config: dict[str, Any], name: str) -> float:
    """Remove a number from the config, where it may be a string."""
    value = config.pop(name)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"config: {name} must be a number, got {value!r}") from None


def _read_count(config: dict[str, Any], name: str) -> int:
    value = _read(config, name)
    if not value.is_integer():
        raise ValueError(f"config: {name} must be an integer, got {value:g}")
    return int(value)
