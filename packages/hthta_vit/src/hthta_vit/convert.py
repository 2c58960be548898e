"""Load the original's weights: whole checkpoints, or only the three added modules."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hthta_vit.model import GuidedTokenAttention, HTHTAViT
from vit_core.models.conversion import load_original, not_of, timm_name

PAPER = "HTHTA-ViT"
_HEAD_FIELDS = ("dim", "heads", "head_dim", "gru_layers")
_PARTS = ("bigru.", "attention_pooling.", "cls_fusion.")


def head_from_original(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> GuidedTokenAttention:
    """The three added modules: patch tokens (B, N, d), class token (B, d) -> fused (B, d), α (B, H, N).

    config: dim, heads, head_dim, gru_layers, as numbers or strings. Raises ValueError that lists invalid keys.
    """
    fields: dict[str, Any] = _head_fields(config)
    head = GuidedTokenAttention(**fields)
    load_original(head, _merge_heads(state_dict, head), PAPER)
    return head.eval()


def model_from_original(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> HTHTAViT:
    """An `HTHTAViT` with the weights of a whole checkpoint: torchvision's ViT, the three modules, the classifier.

    state_dict: `vit.*` (its own `vit.heads.*` is ignored), `bigru.*`, `attention_pooling.*`, `cls_fusion.*` and
    `classifier.*`, with or without a `module.` prefix; the ViT's sizes are read from its weights.
    config: as for `head_from_original`, and `vit_heads`, the ViT's number of attention heads (default: dim / 64).
    Raises ValueError that lists missing, unexpected and mismatched keys.
    """
    config = dict(config)
    vit_heads = config.pop("vit_heads", None)
    fields = _head_fields(config)
    theirs = {k.removeprefix("module."): v for k, v in state_dict.items()}
    needed = ("vit.conv_proj.weight", "vit.encoder.pos_embedding")
    missing = [k for k in needed if k not in theirs]
    if missing:
        raise not_of(PAPER, [f"missing {k}" for k in missing])
    dim, _, patch_size, _ = theirs[needed[0]].shape
    depth = len({m[1] for k in theirs if (m := re.match(r"vit\.encoder\.layers\.encoder_layer_(\d+)\.", k))})
    mlp = next((v.shape[0] for k, v in theirs.items() if re.search(r"_0\.mlp\.(0|linear_1)\.bias$", k)), 4 * dim)
    classifier = next((v.shape[0] for k, v in theirs.items() if re.fullmatch(r"classifier\.(\d+\.)?bias", k)), 0)
    model = HTHTAViT(
        img_size=math.isqrt(theirs[needed[1]].shape[1] - 1) * patch_size,
        patch_size=patch_size,
        num_classes=classifier,
        embed_dim=dim,
        depth=depth,
        num_heads=int(vit_heads or max(dim // 64, 1)),
        mlp_ratio=mlp / dim,
        gru_layers=fields["gru_layers"],
        pool_heads=fields["heads"],
        pool_head_dim=fields["head_dim"],
    )
    head = {k: v for k, v in theirs.items() if k.startswith(_PARTS)}
    renamed = {f"guided.{k}": v for k, v in _merge_heads(head, model.guided).items()}
    renamed |= {_timm_name(k): v for k, v in theirs.items() if k not in head and not k.startswith("vit.heads.")}
    load_original(model, renamed, PAPER)
    return model.eval()


def head_sizes(state_dict: Mapping[str, Tensor]) -> dict[str, int]:
    """Read heads, head_dim, gru_layers and dim (the config of `model_from_original`) from a checkpoint.

    Raises ValueError that lists missing or mismatched keys.
    """
    theirs = {k.removeprefix("module."): v for k, v in state_dict.items()}
    first = "attention_pooling.attention_heads.0.0.weight"
    layers = sum(bool(re.fullmatch(r"bigru\.bigru\.weight_ih_l\d+", k)) for k in theirs)
    needed = {first: first in theirs, "bigru.bigru.weight_ih_l0": layers}
    wrong = [f"missing {k}" for k, is_there in needed.items() if not is_there]
    if wrong or theirs[first].ndim != 2:
        raise not_of(PAPER, wrong or [f"{first} has shape {tuple(theirs[first].shape)}, expected two dimensions"])
    numbers = {m[1] for k in theirs if (m := re.match(r"attention_pooling\.attention_heads\.(\d+)\.", k))}
    head_dim, dim = theirs[first].shape
    return {"dim": dim, "heads": len(numbers), "head_dim": head_dim, "gru_layers": layers}


def _head_fields(config: Mapping[str, Any]) -> dict[str, int]:
    wrong = [f"missing {k}" for k in _HEAD_FIELDS if k not in config]
    wrong += [f"unexpected {k}" for k in config if k not in _HEAD_FIELDS]
    if wrong:
        raise ValueError("config: " + "; ".join(wrong))
    return {k: int(config[k]) for k in _HEAD_FIELDS}


def _merge_heads(state_dict: Mapping[str, Tensor], head: GuidedTokenAttention) -> dict[str, Tensor]:
    """The original has two layers per pooling head, attention_heads.{j}.{0,2}; ours merges those of all heads."""
    theirs = {k.removeprefix("module."): v for k, v in state_dict.items()}
    pooling = head.attention_pooling
    assert pooling is not None
    prefix = "attention_pooling.attention_heads.{}."
    parts = ("0.weight", "0.bias", "2.weight", "2.bias")
    names = [[prefix.format(j) + part for j in range(pooling.heads)] for part in parts]
    missing = [k for part in names for k in part if k not in theirs]
    c, d = pooling.score.shape[1], pooling.proj.in_features
    shapes = ((c, d), (c,), (1, c), (1,))
    wrong = [
        f"{k} has shape {tuple(theirs[k].shape)}, expected {shape}"
        for part, shape in zip(names, shapes, strict=True)
        for k in part
        if k in theirs and theirs[k].shape != shape
    ]
    if missing or wrong:
        raise not_of(PAPER, [f"missing {k}" for k in missing] + wrong)
    w, b, v, v_bias = ([theirs.pop(k) for k in part] for part in names)
    merged = {
        "proj.weight": torch.cat(w),
        "proj.bias": torch.cat(b),
        "score": torch.cat(v),
        "score_bias": torch.cat(v_bias),
    }
    return theirs | {f"attention_pooling.{k}": t for k, t in merged.items()}


def _timm_name(key: str) -> str:
    """Map torchvision's `vit.*` and the original's `classifier.*` to timm's names; other keys stay, to be reported."""
    if key.startswith("vit."):
        renamed = timm_name(key.removeprefix("vit."))
        return key if renamed == key.removeprefix("vit.") else renamed
    return re.sub(r"^classifier\.(\d+\.)?", "head.", key)
