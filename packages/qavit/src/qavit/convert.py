"""Checkpoints of the original HQA_VIT code into this package's `QAViT`."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from qavit.config import SIZES, QAViTConfig
from qavit.model import QAViT
from vit_core.models.conversion import load_original


def model_from_original(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> QAViT:
    """A `QAViT` with the weights of an original checkpoint, in the published form of the bank and of MSDA.

    state_dict: the original's keys, with or without `module.` in front. Its attentions hold the one bank each under
    a name of their own (`blocks.0.swa.global_bank.global_k`, …); those copies are left out here.
    config: the original's `QAViTConfig` arguments, by name; or what its checkpoints hold under `config`, the arguments
    of its train.py, of which `model` says the size.
    Raises ValueError that lists missing, unexpected and wrongly shaped keys, or unknown arguments.
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
    """Fields of `QAViTConfig` from either of the original's configurations. ValueError for one that is neither."""
    if "model" not in config:
        return {name: value for name, value in config.items() if name != "num_windows"}  # which its code never reads
    if config["model"] not in ("tiny", "small"):
        raise ValueError(f"config: model is tiny or small in the original, not {config['model']!r}")
    head = state_dict.get("head.weight")
    if not isinstance(head, Tensor) or head.ndim != 2:
        raise ValueError("not a checkpoint of this QAViT: missing head.weight")
    return SIZES[config["model"]] | {"num_classes": len(head)}
