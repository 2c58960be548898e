"""HTHTA-ViT's models, flags and hyperparameters, as the shared commands take them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hthta_vit.model import COMPONENTS
from vit_core import timm_weights
from vit_core.cli import flag
from vit_core.recipe import Recipe
from vit_core.timm_weights import OWN_HEAD, StartOptions


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Flags that change the model; None leaves the model's own default."""

    components: str | None = flag(
        None, "which of the paper's parts: a row of its ablation (default: all)", choices=tuple(COMPONENTS)
    )
    gru_layers: int | None = flag(None, "layers of the GRU (default: 1; base_gru2 2)")
    gamma: float | None = flag(None, "where the fusion's weight of the class token starts (default: 0.5)")
    beta: float | None = flag(None, "where the fusion's weight of the product starts (default: 0.1)")
    frozen_blocks: int | None = flag(None, "first blocks that do not learn, the embeddings included (default: 0)")
    drop_path_rate: float | None = flag(None, "stochastic depth of the last block (default: 0)")


OWN = rf"guided\.|{OWN_HEAD}"  # what no ViT's file has: the paper's parts and the classifier


def initialise(model: nn.Module, start: StartOptions) -> None:
    """Load the backbone's weights into a new model. UserError, in one line, for what cannot be had or does not fit."""
    timm_weights.initialise(model, start, OWN)


def presets(given: Mapping[str, Any]) -> dict[str, Any]:
    """Model and dataset where they are not given, and the hyperparameters that belong to them.

    published: the seed's training details with what its code adds (500 warm-up steps, clipping at 1.0, early stopping
    after 10). notebook: with label smoothing and mixup, as its notebook. The micro model's values are ours.
    """
    model, dataset = given.get("model"), given.get("dataset")
    model = model or ("micro" if dataset in (None, "digits") else "base")
    dataset = dataset or ("digits" if model == "micro" else "cifar100")
    values: dict[str, Any] = {"model": model, "dataset": dataset, "crop": "none", "label_smoothing": 0.0}
    if model == "micro":
        values |= {"epochs": 10, "batch_size": 32, "lr": 2e-3, "weight_decay": 0.05, "warmup_epochs": 2}
    else:
        values |= {
            "epochs": 30, "batch_size": 32, "lr": 2e-5, "weight_decay": 0.01, "warmup_steps": 500, "min_lr": 0.0,
            "grad_clip": 1.0, "early_stopping": 10, "pretrained": given.get("weights") is None,
            "rotation": 10.0, "color_jitter": 0.2,  # the original has both; how strong is ours
            "normalize": "imagenet",
        }  # fmt: skip
        if given.get("preset") == "notebook":
            values |= {"label_smoothing": 0.1, "mixup": 0.2}
    if dataset == "digits":
        values |= {"hflip": 0.0}  # a mirrored 2 is no 2
    return values


RECIPE = Recipe(
    paper="HTHTA-ViT++",
    description="Train an HTHTA-ViT. Without arguments: the micro model on the embedded digits. With --model base or "
    "base_gru2 alone: CIFAR-100, as published.",
    command="hthta-vit",
    models={
        "micro": "hthta_vit_micro",
        "base": "hthta_vit_base_patch16_224",
        "base_gru2": "hthta_vit_base_patch16_224_gru2",
    },
    presets=presets,
    options=ModelOptions,
    start_options=StartOptions,
    initialise=initialise,
    aliases={"data_dir": "data_path", "output_dir": "save_dir"},
    configs=Path(__file__).parent / "configs",
    preset_names=("published", "notebook"),
)
