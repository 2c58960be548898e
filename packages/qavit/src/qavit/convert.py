"""Load checkpoints of the original HQA_VIT code into this package's `QAViT`."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from qavit.config import SIZES, QAViTConfig
from qavit.model import QAViT
from vit_core.models.conversion import load_original


def model_from_original(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> QAViT:
    """A `QAViT` with the weights of an original checkpoint, with the bank and MSDA as published.

    state_dict: the original's keys, with or without a `module.` prefix. The original stores the shared bank once more
    under each attention branch (`blocks.0.swa.global_bank.global_k`, …); those copies are ignored.
    config: the original's `QAViTConfig` arguments by name, or the `config` of its checkpoints: the arguments of its
    train.py, where `model` is the size.
    Raises ValueError that lists missing, unexpected and mismatched keys, or unknown arguments.
    """
    theirs = {}
    for key, value in state_dict.items():
        key = key.removeprefix("module.").removeprefix("_orig_mod.")
        if not (key.startswith("blocks.") and ".global_bank." in key):
            theirs[key.replace(".dwconv.dwconv.", ".dwconv.")] = value
    published: dict[str, Any] = {"bank_update": "inplace", "msda_truncate": True}
    try:
        model = QAViT(QAViTConfig(**(published | model_arguments(config, theirs))))
    except TypeError as e:
        raise ValueError(f"config: {e}") from e
    load_original(model, theirs, "QAViT")
    return model.eval()


def model_arguments(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fields of `QAViTConfig` from either form of the original's configuration. ValueError for anything else."""
    if "model" not in config:
        return {name: value for name, value in config.items() if name != "num_windows"}  # unused in its code
    if config["model"] not in ("tiny", "small"):
        raise ValueError(f"config: model must be tiny or small, as in the original, got {config['model']!r}")
    head = state_dict.get("head.weight")
    if not isinstance(head, Tensor) or head.ndim != 2:
        raise ValueError("not a checkpoint of this QAViT: head.weight is missing or not a matrix")
    return SIZES[config["model"]] | {"num_classes": len(head)}
