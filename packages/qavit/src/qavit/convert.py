"""Checkpoints of the original HQA_VIT code into this package's `QAViT`."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from qavit.config import QAViTConfig
from qavit.model import QAViT
from vit_core.conversion import load_original


def model_from_original(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> QAViT:
    """A `QAViT` with the weights of an original checkpoint, in the published form of the bank and of MSDA.

    state_dict: the original's keys, with or without `module.` in front. Its attentions hold the one bank each under
    a name of their own (`blocks.0.swa.global_bank.global_k`, …); those copies are left out here.
    config: the original's `QAViTConfig` arguments, by name.
    Raises ValueError that lists missing, unexpected and wrongly shaped keys, or unknown arguments.
    """
    try:
        model = QAViT(QAViTConfig(**{"bank_update": "inplace", "msda_truncate": True, **config}))
    except TypeError as e:
        raise ValueError(f"config: {e}") from e
    theirs = {}
    for key, value in state_dict.items():
        key = key.removeprefix("module.")
        if not (key.startswith("blocks.") and ".global_bank." in key):
            theirs[key.replace(".dwconv.dwconv.", ".dwconv.")] = value
    load_original(model, theirs, "QAViT")
    return model.eval()
