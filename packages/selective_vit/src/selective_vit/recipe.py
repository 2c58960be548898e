"""SelectiveViT's models, flags and hyperparameters for the shared commands."""

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

# Values of --model that train two models in turn: first the plain one, then the selective one.
PAIRS = {"both": ("vit", "selective"), "both_micro": ("vit_micro", "selective_micro")}


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Flags that change the selective model; None keeps its default. The plain model has none of them."""

    threshold: float | None = flag(
        None, "τ: attention weights up to it are removed (default: 0.01; 1/N if relative or learned)"
    )
    mode: str | None = flag(None, "relu: the README's formula; hard: the notebook's (default: relu)", choices=MODES)
    empty_row: str | None = flag(
        None,
        "a row in which no weight passes: keep its largest weight, or zero as published (default: argmax)",
        choices=EMPTY_ROWS,
    )
    relative_threshold: bool | None = flag(None, "τ is in units of 1/N, the weight of uniform attention")
    learned_threshold: str | None = flag(
        None, "learn τ, one per layer or head, initialized at --threshold", choices=LEARNED
    )
    sparsity_weight: float | None = flag(
        None, "loss weight of the fraction of attention weights that pass (default: 0)"
    )
    threshold_growth: float | None = flag(None, "fraction of training during which τ rises from zero (default: 0)")
    kernel: str | None = flag(
        None,
        "attention implementation; weights: the plain formula, flex: FlexAttention (default: auto)",
        choices=KERNELS,
    )
    reinit_attention: bool | None = flag(
        None, "re-initialize the attention layers with random weights, as the original did by accident"
    )


def initialize(model: nn.Module, start: StartOptions) -> None:
    """Load timm's weights into a new model, and a new head with torch's default initialization, as in the notebook.

    Raises UserError for weights that cannot be loaded or do not fit.
    """
    own = rf"{OWN_HEAD}|.*\.threshold\."
    if any(getattr(m, "reinitialized", False) for m in model.modules()):
        own += r"|.*\.attn\."
    timm_weights.initialize(model, start, own)
    head = model.get_submodule("head")
    if isinstance(head, nn.Linear) and (start.pretrained or start.weights):
        head.reset_parameters()


def for_plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """The given flags without those of the selective model."""
    ours = {f.name for f in dataclasses.fields(ModelOptions)}
    return {k: v for k, v in given.items() if k not in ours}


# The selective layers of the notebook (cell 7): a hard gate, empty rows left at zero, and new attention modules.
NOTEBOOK_MODEL = {"mode": "hard", "empty_row": "zero", "reinit_attention": True}


def presets(given: Mapping[str, Any]) -> dict[str, Any]:
    """Default model and dataset where they are not given, and the hyperparameters that belong to them.

    published: the README's table (70 epochs, batch size 16, AdamW with learning rate 3e-4, cosine schedule) with its
    formula. What it does not state is from the notebook: the cosine is updated once per epoch and ends at 1e-5, weight
    decay 0.01 on every parameter, early stopping after 3 epochs without a better accuracy, horizontal flips, and the
    standard deviations for normalization.
    notebook: the notebook and section 6 of the PDF: 10 epochs, and the notebook's attention layers.
    fine_tune: ours, with a learning rate suited to pretrained weights, which 3e-4 is not.
    The values for the micro models are ours.
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
        values |= {"hflip": 0.0}  # a mirrored 2 is not a 2
    return values


RECIPE = Recipe(
    paper="SelectiveViT",
    description="Train a ViT, its selective form, or both in turn with the same recipe. Without arguments: both micro "
    "models on the embedded digits, and a plot of their curves. With only --model both: ViT-B/16 on CIFAR-10, as in "
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
    initialize=initialize,
    loss_function=sparse_loss,
    before_step=grow_threshold,
    describe=describe_thresholds,
    aliases={"data_dir": "data_path", "output_dir": "save_dir"},
    preset_names=("published", "notebook", "fine_tune"),
)
