"""SelectiveViT's models, flags and hyperparameters, as the shared commands take them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from selective_vit.attention import EMPTY_ROWS, KERNELS, MODES
from selective_vit.model import LEARNED, describe_thresholds, grow_threshold, sparse_loss
from vit_core.flags import flag
from vit_core.models import timm_weights
from vit_core.models.timm_weights import OWN_HEAD, StartOptions
from vit_core.recipe import Recipe

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
    """Load timm's weights into a new model, and give it a new head as the notebook does: torch's own initial values.

    UserError, in one line, for weights that cannot be had or do not fit.
    """
    own = rf"{OWN_HEAD}|.*\.threshold\."
    if any(getattr(m, "reinitialised", False) for m in model.modules()):
        own += r"|.*\.attn\."
    timm_weights.initialise(model, start, own)
    head = model.get_submodule("head")
    if isinstance(head, nn.Linear) and (start.pretrained or start.weights):
        head.reset_parameters()


def for_plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """The flags without those of the selective model."""
    ours = {f.name for f in dataclasses.fields(ModelOptions)}
    return {k: v for k, v in given.items() if k not in ours}


# The selective layers of the notebook (cell 7): a hard gate, empty rows left at zero, and new attention modules.
NOTEBOOK_MODEL = {"mode": "hard", "empty_row": "zero", "reinit_attention": True}


def presets(given: Mapping[str, Any]) -> dict[str, Any]:
    """Model and dataset where they are not given, and the hyperparameters that belong to them.

    published: the README's table (70 epochs, batch 16, AdamW at 3e-4, a cosine) under its formula; what it does not say
    is the notebook's: the cosine moves once an epoch and ends at 1e-5, weight decay 0.01 on every parameter, an early
    stop after 3 epochs without a better accuracy, flips, and the deviations that it normalizes with.
    notebook: the notebook itself and section 6 of the PDF: 10 epochs, and the notebook's attention layers.
    fine_tune: a learning rate that suits pretrained weights, which 3e-4 does not; ours.
    The micro models' values are ours.
    """
    model, dataset, preset = given.get("model"), given.get("dataset"), given.get("preset")
    model = model or ("selective_micro" if dataset in (None, "digits") else "selective")
    micro = model.endswith("micro")
    dataset = dataset or ("digits" if micro else "cifar10")
    values: dict[str, Any] = {"model": model, "dataset": dataset, "crop": "none", "label_smoothing": 0.0}
    if micro:
        values |= {"epochs": 13, "batch_size": 32, "lr": 2e-3, "weight_decay": 0.05, "warmup_epochs": 2}
        if preset == "fine_tune":
            values |= {"lr": 5e-4, "warmup_epochs": 0}
    else:
        values |= {
            "epochs": 10 if preset == "notebook" else 70, "batch_size": 16, "lr": 3e-4, "min_lr": 1e-5,
            "schedule_by": "epoch", "weight_decay": 0.01, "decay_all": True, "warmup_epochs": 0, "grad_clip": 0.0,
            "early_stopping": 3, "pretrained": given.get("weights") is None,
        }  # fmt: skip
        if dataset == "cifar10":
            values |= {"normalize": "cifar10_image_std"}
        if preset == "fine_tune":
            values |= {
                "lr": 2e-5, "min_lr": 0.0, "schedule_by": "step", "decay_all": False, "warmup_epochs": 1,
                "grad_clip": 1.0, "epochs": 10,
            }  # fmt: skip
    if preset == "notebook" and model.startswith("selective"):
        values |= NOTEBOOK_MODEL
    if dataset == "digits":
        values |= {"hflip": 0.0}  # a mirrored 2 is no 2
    return values


RECIPE = Recipe(
    paper="SelectiveViT",
    description="Train a ViT, its selective form, or both in a row under one recipe. Without arguments: both micro "
    "models on the embedded digits, and a picture of their curves. With --model both alone: ViT-B/16 on CIFAR-10, by "
    "the README's table.",
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
    preset_names=("published", "notebook", "fine_tune"),
)
