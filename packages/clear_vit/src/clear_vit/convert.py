"""Converts weights of the original's four published models: baseline, suppression, RoPE-mixed, RoPE-mixed + APE."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clear_vit.model import VARIANTS, ClearViT
from vit_core.models.conversion import load_original, not_of, timm_name

PAPER = "clear-vit"
FIELDS = ("image_size", "patch_size", "num_layers", "num_heads", "hidden_dim", "mlp_dim", "num_classes", "rope_theta")
_OPTIONAL = ("rope_theta",)  # not in models without RoPE


def variant_of(state_dict: Mapping[str, Tensor]) -> str:
    """The variant that the keys belong to: "baseline", "suppression", "rope" or "rope_mixed_ape"."""
    if any(k.endswith("suppression_conv.weight") for k in state_dict):
        return "suppression"
    names = {k.removeprefix("module.") for k in state_dict}
    if "freqs" not in names:
        return "baseline"
    return "rope_mixed_ape" if "pos_embedding" in names else "rope"


def model_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The original's constructor arguments, numbers or strings -> those of `ClearViT`, except the variant's.

    Raises ValueError listing missing and unexpected arguments.
    """
    wrong = [f"missing {k}" for k in FIELDS if k not in config and k not in _OPTIONAL]
    wrong += [f"unexpected {k}" for k in config if k not in FIELDS]
    if wrong:
        raise ValueError("config: " + "; ".join(wrong))
    value = {k: int(config[k]) for k in FIELDS if k not in _OPTIONAL}
    return {
        "img_size": value["image_size"],
        "patch_size": value["patch_size"],
        "depth": value["num_layers"],
        "num_heads": value["num_heads"],
        "embed_dim": value["hidden_dim"],
        "mlp_ratio": value["mlp_dim"] / value["hidden_dim"],
        "num_classes": value["num_classes"],
        "rope_theta": float(config["rope_theta"]) if "rope_theta" in config else None,
    }


def config_of(state_dict: Mapping[str, Tensor], num_heads: int = 3, image_size: int | None = None) -> dict[str, int]:
    """The original's constructor arguments, inferred from the shapes of its weights; num_heads cannot be inferred.

    image_size: needed for RoPE weights with neither a position embedding nor a stored grid.
    Raises ValueError for weights that do not belong to this model.
    """
    theirs = {k.removeprefix("module."): v for k, v in state_dict.items() if isinstance(v, Tensor)}
    layers = {m[1] for k in theirs if (m := re.match(r"encoder\.layers\.encoder_layer_(\d+)\.", k))}
    mlp = next((v for k, v in theirs.items() if re.search(r"mlp\.(linear_1|0)\.bias$", k) and v.ndim == 1), None)
    needed = {"conv_proj.weight": 4, "heads.head.weight": 2}
    shapes = {k: theirs[k].shape for k in needed if k in theirs and theirs[k].numel()}
    problems = [f"missing {k}" for k, ndim in needed.items() if len(shapes.get(k, ())) != ndim]
    if mlp is None:
        problems.append("missing encoder.layers.encoder_layer_0.mlp.linear_1.bias")
    positions = theirs["freqs_t_x"].numel() if "freqs_t_x" in theirs else None
    if "pos_embedding" in theirs and theirs["pos_embedding"].ndim == 3:
        positions = theirs["pos_embedding"].shape[1]
    if positions is None and image_size is None:
        problems.append("missing pos_embedding or freqs_t_x to infer the image size from; give the image size")
    if problems or mlp is None:
        raise not_of(PAPER, problems)
    dim, _, patch_size, _ = theirs["conv_proj.weight"].shape
    side = math.isqrt(positions or 0) * patch_size
    return {
        "image_size": side if image_size is None else image_size,
        "patch_size": patch_size,
        "num_layers": len(layers),
        "num_heads": num_heads,
        "hidden_dim": dim,
        "mlp_dim": len(mlp),
        "num_classes": len(theirs["heads.head.weight"]),
    }


def model_from_original(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> ClearViT:
    """The model of a checkpoint, in evaluation mode.

    state_dict: keys with or without the prefix `module.`; they determine the variant. config: see `model_arguments`.
    Raises ValueError listing missing and unexpected keys and wrong shapes.
    """
    variant = VARIANTS[variant_of(state_dict)]
    fields = model_arguments(config)
    if "rope" not in variant:
        fields.pop("rope_theta")
    model = ClearViT(**fields, **variant)
    load_original(model, converted(state_dict, model), PAPER)
    return model.eval()


def converted(state_dict: Mapping[str, Tensor], model: ClearViT) -> dict[str, Tensor]:
    """The original's weights with our names and layout; unknown keys are kept, so that loading can report them.

    Raises ValueError for an attention with a missing part or a wrong shape.
    """
    theirs = {k.removeprefix("module."): v for k, v in state_dict.items()}
    dim = model.embed_dim
    if "freqs" in theirs:
        for name in ("freqs_t_x", "freqs_t_y"):  # the position grid, which we compute
            theirs.pop(name, None)
    ours, problems = {}, []
    for layer in range(len(model.blocks)):
        prefix = f"encoder.layers.encoder_layer_{layer}.self_attention."
        for part, shape in (("weight", (dim, dim)), ("bias", (dim,))):
            names = [f"{prefix}w_{projection}.{part}" for projection in "qkv"]
            if not any(n in theirs for n in names):
                continue
            found = [n for n in names if n in theirs]
            problems += [f"missing {n}" for n in names if n not in theirs]
            problems += [
                f"{n} has shape {tuple(theirs[n].shape)}, expected {shape}" for n in found if theirs[n].shape != shape
            ]
            rows = [theirs.pop(n) for n in found]
            if not problems:
                ours[f"blocks.{layer}.attn.qkv.{part}"] = torch.cat(rows)
    if problems:
        raise not_of(PAPER, problems)
    for key, value in theirs.items():
        ours[_our_name(key)] = value
    for key, value in ours.items():
        if key.endswith("attn.kernel") and value.ndim == 4 and value.shape[1] == 1:
            ours[key] = value.squeeze(1)  # a depthwise convolution's weight
        if key == "rope.freqs" and model.rope is not None and value.ndim == 3:  # (2, depth, h · d/2)
            axes, depth, heads, pairs = model.rope.freqs.shape
            ours[key] = value.view(axes, depth, heads, pairs) if value.shape == (axes, depth, heads * pairs) else value
    return ours


def _our_name(key: str) -> str:
    key = timm_name(key)
    match = re.fullmatch(
        r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.(w_o\.|suppression_conv\.weight)(\w*)", key
    )
    if match:
        layer, module, part = match.groups()
        return f"blocks.{layer}.attn.proj.{part}" if module == "w_o." else f"blocks.{layer}.attn.kernel"
    key = re.sub(r"^heads\.head\.", "head.", key)
    return {"pos_embedding": "pos_embed", "freqs": "rope.freqs"}.get(key, key)
