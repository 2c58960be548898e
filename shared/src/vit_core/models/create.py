"""timm models from a name and arguments, which may come from a user or an untrusted checkpoint."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import nn

from vit_core.errors import UserError
from vit_core.flags import is_out_of_memory
from vit_core.plain_yaml import read_yaml

# These make timm's create_model read another file or access the network.
_READ_ELSEWHERE = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
_MOST_BLOCKS = 1000  # a model of a million narrow blocks would take hours to build, and then fail


def create_model(name: str, kwargs: Mapping[str, Any], num_classes: int, img_size: int | None) -> nn.Module:
    """Create a timm model. UserError for arguments that it does not accept or that are incompatible.

    With user-supplied arguments the model is run once on one image: timm builds some models that fail or output NaN.
    """
    size = {} if img_size is None else {"img_size": img_size}
    if ":" in name or not kwargs.keys().isdisjoint(_READ_ELSEWHERE):  # from an untrusted checkpoint
        raise UserError(
            f"{name}: the model's name and arguments must not name a weights file; use a checkpoint or --weights"
        )
    depth = kwargs.get("depth")
    if isinstance(depth, int) and depth > _MOST_BLOCKS:
        raise UserError(f"{name}: depth must be at most {_MOST_BLOCKS}, got {depth}")
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # torch's, of layers without weights
            model = timm.create_model(name, **{**kwargs, **size, "num_classes": num_classes})
    except Exception as e:  # for unexpected arguments timm may raise anything
        if size and isinstance(e, TypeError) and "img_size" in str(e):  # a convolutional network takes any size
            return create_model(name, kwargs, num_classes, None)
        if "Unknown model" in str(e):
            raise UserError(f"{name}: no model of that name is registered with timm") from e
        if not kwargs and not size:  # not a user error
            raise
        raise UserError(f"{name}: {_reason(e)}") from e
    if (kwargs or size) and not any(p.is_meta for p in model.parameters()):
        _try(model, name, img_size)
    return model


def _try(model: nn.Module, name: str, img_size: int | None) -> None:
    """UserError unless the model outputs finite logits for an image."""
    was_training = model.training
    try:
        side = img_size or input_size(model)
        with torch.no_grad():
            logits = model.eval()(torch.zeros(1, 3, side, side))
        if logits.ndim != 2:
            raise ValueError(f"the output for one image has shape {tuple(logits.shape)}, expected (1, num_classes)")
        finite = bool(logits.isfinite().all())
    except Exception as e:
        raise UserError(f"{name} does not work with these arguments: {_reason(e)}") from e
    finally:
        model.train(was_training)
    if not finite:
        raise UserError(f"{name} outputs NaN or infinity with these arguments")


def _reason(error: Exception) -> str:
    return "out of memory" if is_out_of_memory(error) else str(error) or type(error).__name__


def input_size(model: nn.Module) -> int:
    """Side in pixels of the square input images of a timm model."""
    for part in (getattr(model, "config", None), getattr(model, "patch_embed", None)):  # an argument may have set it
        size = getattr(part, "img_size", None)
        if size is not None:
            return int(size[-1] if isinstance(size, tuple) else size)
    return int(model.pretrained_cfg["input_size"][-1])  # type: ignore[index]


def parse_model_kwargs(words: Sequence[str]) -> dict[str, Any]:
    """["depth=2", "dilation_factors=[1,2]"] -> {"depth": 2, "dilation_factors": [1, 2]}; values are YAML."""
    pairs = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"--model-kwargs expects NAME=VALUE, got {word!r}")
        try:
            pairs[name.replace("-", "_")] = read_yaml(text)
        except ValueError as e:
            raise UserError(f"--model-kwargs {word[:80]}: invalid value: {e}") from e
    try:
        check_model_kwargs(pairs)
    except ValueError as e:
        raise UserError(f"--{e}") from e
    return pairs


def check_model_kwargs(kwargs: Mapping[str, Any]) -> None:
    """ValueError for an argument that is not one of the architecture."""
    for name in kwargs:
        if not isinstance(name, str) or name in ("pretrained", "num_classes", *_READ_ELSEWHERE):
            raise ValueError(
                f"model-kwargs {name} is not allowed: it is not an argument of the architecture; see --help for the "
                "flags that set weights"
            )
