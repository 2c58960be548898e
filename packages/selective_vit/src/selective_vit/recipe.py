"""SelectiveViT's models, flags and hyperparameters, as the shared commands take them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from selective_vit.attention import EMPTY_ROWS, KERNELS, MODES
from selective_vit.model import LEARNED, describe_thresholds, grow_threshold, sparse_loss
from vit_core import timm_weights
from vit_core.cli import flag
from vit_core.recipe import Recipe
from vit_core.timm_weights import OWN_HEAD, StartOptions

# What --model says for two models in a row: the plain one, then the selective one.
PAIRS = {"both": ("vit", "selective"), "both_micro": ("vit_micro", "selective_micro")}


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Flags that change the selective model; None leaves its own default. The plain model has none of them."""

    threshold: float | None = flag(
        None, "τ, under which a weight is removed (default: 0.01; 1/N where it is relative or learned)"
    )
    mode: str | None = flag(None, "relu, the paper's formula, or hard, its notebook (default: relu)", choices=MODES)
    empty_row: str | None = flag(
        None, "a row in which nothing passes: its strongest key, or zero as published (default: argmax)",
        choices=EMPTY_ROWS,
    )  # fmt: skip
    relative_threshold: bool | None = flag(None, "τ in units of 1/N, the weight in a row without preferences")
    learned_threshold: str | None = flag(
        None, "learn τ, one for each layer or head, from --threshold on", choices=LEARNED
    )
    sparsity_weight: float | None = flag(
        None, "weight in the loss of the share of attention weights that pass (default: 0)"
    )
    threshold_growth: float | None = flag(None, "share of the training in which τ rises from zero (default: 0)")
    kernel: str | None = flag(None, "how attention is computed (default: auto)", choices=KERNELS)
    reinit_attention: bool | None = flag(
        None, "new random weights for the attention layers, which the original gave them by accident"
    )


def initialise(model: nn.Module, start: StartOptions) -> None:
    """Load timm's weights into a new model. UserError, in one line, for what cannot be had or does not fit."""
    own = rf"{OWN_HEAD}|.*\.threshold\."
    if any(getattr(m, "reinitialised", False) for m in model.modules()):
        own += r"|.*\.attn\."
    timm_weights.initialise(model, start, own)


def for_plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """The flags without those of the selective model."""
    ours = {f.name for f in dataclasses.fields(ModelOptions)}
    return {k: v for k, v in given.items() if k not in ours}


def presets(given: Mapping[str, Any]) -> dict[str, Any]:
    """Model and dataset where they are not given, and the hyperparameters that belong to them.

    published: the seed's table, with its notebook's early stopping after 3 epochs. fine_tune: a learning rate that
    suits pretrained weights, which 3e-4 does not. The micro models' values are ours.
    """
    model, dataset = given.get("model"), given.get("dataset")
    model = model or ("selective_micro" if dataset in (None, "digits") else "selective")
    micro = model.endswith("micro")
    dataset = dataset or ("digits" if micro else "cifar10")
    values: dict[str, Any] = {"model": model, "dataset": dataset, "crop": "none", "label_smoothing": 0.0}
    if micro:
        values |= {"epochs": 13, "batch_size": 32, "lr": 2e-3, "weight_decay": 0.05, "warmup_epochs": 2}
        if given.get("preset") == "fine_tune":
            values |= {"lr": 5e-4, "warmup_epochs": 0}
    else:
        values |= {
            "epochs": 70, "batch_size": 16, "lr": 3e-4, "min_lr": 1e-5, "weight_decay": 0.01, "warmup_epochs": 0,
            "grad_clip": 0.0, "early_stopping": 3, "pretrained": given.get("weights") is None,
        }  # fmt: skip
        if given.get("preset") == "fine_tune":
            values |= {"lr": 2e-5, "min_lr": 0.0, "warmup_epochs": 1, "grad_clip": 1.0, "epochs": 10}
    if dataset == "digits":
        values |= {"hflip": 0.0}  # a mirrored 2 is no 2
    return values


RECIPE = Recipe(
    paper="SelectiveViT",
    description="Train a ViT, its selective form, or both in a row under one recipe. Without arguments: both micro "
    "models on the embedded digits, and a picture of their curves. With --model both alone: CIFAR-10, as published.",
    command="selective-vit",
    models={
        "vit": timm_weights.BACKBONE,
        "selective": "selective_vit_base_patch16_224",
        "vit_micro": "dense_vit_micro",
        "selective_micro": "selective_vit_micro",
    },
    model_groups=tuple(PAIRS),
    presets=presets,
    options=ModelOptions,
    start_options=StartOptions,
    initialise=initialise,
    loss_function=sparse_loss,
    before_step=grow_threshold,
    describe=describe_thresholds,
    aliases={"data_dir": "data_path", "output_dir": "save_dir"},
    preset_names=("published", "fine_tune"),
)
