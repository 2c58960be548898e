"""Load checkpoints of the original study: timm's ViT with the prefix `model.`."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vit_core.models.conversion import load_original, vit_arguments
from zoom_vit.model import ZoomViT

PAPER = "ZoomViT study"
_SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes")


def model_from_original(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> ZoomViT:
    """The model of a checkpoint, in evaluation mode.

    state_dict: timm's names with the prefix `model.`, with or without `module.` before it. config: the original's
    timm_model, img_size, patch_size, embed_dim, depth, num_heads and num_classes, as numbers or strings. All are
    optional: sizes are read from the weights, and without num_heads the head dimension is 64, as in ViT-Tiny. Other
    config entries concern the images and are ignored.
    Raises ValueError that lists missing, unexpected and mismatched keys.
    """
    theirs = {k.removeprefix("module.").removeprefix("model."): v for k, v in state_dict.items()}
    model = ZoomViT(**vit_arguments(theirs, PAPER) | {k: int(config[k]) for k in _SIZES if k in config})
    load_original(model, theirs, PAPER)
    return model.eval()
