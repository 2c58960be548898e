"""HTHTA-ViT's models, flags and hyperparameters for the shared commands."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hthta_vit.model import COMPONENTS
from hthta_vit.original_config import flags_of
from vit_core.flags import flag
from vit_core.models import timm_weights
from vit_core.models.timm_weights import OWN_HEAD, StartOptions
from vit_core.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Flags that change the model; None keeps the model's default."""

    components: str | None = flag(
        None, "modules of the paper to use, as a row of its ablation (default: all)", choices=tuple(COMPONENTS)
    )
    gru_layers: int | None = flag(None, "number of GRU layers (default: 1; base_gru2 2)")
    gamma: float | None = flag(None, "initial fusion weight of the class token (default: 0.5)")
    beta: float | None = flag(None, "initial fusion weight of the elementwise product (default: 0.1)")
    frozen_blocks: int | None = flag(None, "number of first blocks to freeze, with the embeddings (default: 0)")
    drop_path_rate: float | None = flag(None, "stochastic depth rate of the last block (default: 0)")


OWN = rf"guided\.|{OWN_HEAD}"  # not in a ViT's weights file: the paper's modules and the classifier


def initialize(model: nn.Module, start: StartOptions) -> None:
    """Load the backbone's weights into a new model. UserError if they are unavailable or do not fit."""
    timm_weights.initialize(model, start, OWN)


def presets(given: Mapping[str, Any]) -> dict[str, Any]:
    """Default model and dataset, and their hyperparameters.

    published: the paper's text (section III.G: AdamW with lr 2e-5, weight decay 0.01, cosine, 500 warm-up steps, mixed
    precision) with the augmentation of train.py (flip, rotation by 10 degrees, 15 for datasets other than CIFAR, color
    jitter 0.2, hue 0.1). train.py: as that script trains: no warm-up, float32, cosine updated once per epoch.
    notebook: as the notebooks train their own model: lr 3e-5, weight decay 1e-4, 5 epochs with a cosine, no
    augmentation, no normalization; on Intel with mixup 1.0 and label smoothing 0.1 (add --frozen-blocks 1 there). All
    apply weight decay to every parameter. The original's configs/cifar100.yaml, which its train.py cannot read, is
    --config cifar100. The micro model's values are ours.
    """
    model, dataset = given.get("model"), given.get("dataset")
    preset = given.get("preset")
    large = "notebook" if preset == "notebook" else "base"
    model = model or ("micro" if dataset == "digits" or (dataset is None and preset is None) else large)
    dataset = dataset or ("digits" if model == "micro" else "cifar100")
    values: dict[str, Any] = {"model": model, "dataset": dataset, "crop": "none", "label_smoothing": 0.0}
    if model == "micro":
        values |= {"epochs": 10, "batch_size": 32, "lr": 2e-3, "weight_decay": 0.05, "warmup_epochs": 2}
    else:
        values |= {
            "epochs": 30, "batch_size": 32, "lr": 2e-5, "weight_decay": 0.01, "decay_all": True, "warmup_steps": 500,
            "min_lr": 0.0, "grad_clip": 0.0, "pretrained": given.get("weights") is None, "normalize": "imagenet",
            "rotation": 10.0 if dataset in ("cifar10", "cifar100") else 15.0, "color_jitter": 0.2, "hue_jitter": 0.1,
        }  # fmt: skip
        if preset == "train.py":
            values |= {"warmup_steps": 0, "amp": "off", "schedule_by": "epoch"}
        if preset == "notebook":
            values |= {
                "epochs": 5, "lr": 3e-5, "weight_decay": 1e-4, "warmup_steps": 0, "amp": "off", "schedule_by": "epoch",
                "rotation": 0.0, "color_jitter": 0.0, "hue_jitter": 0.0, "hflip": 0.0, "normalize": "none",
            }  # fmt: skip
            if dataset == "intel":
                values |= {"mixup": 1.0, "label_smoothing": 0.1}
    if dataset == "digits":
        values |= {"hflip": 0.0}  # a flipped 2 is not a 2
    return values


RECIPE = Recipe(
    paper="HTHTA-ViT++",
    description="Train an HTHTA-ViT. Default: the micro model on the bundled digits dataset. With only --model base or "
    "base_gru2: CIFAR-100 with the published recipe.",
    command="hthta-vit",
    models={
        "micro": "hthta_vit_micro",
        "base": "hthta_vit_base_patch16_224",
        "base_gru2": "hthta_vit_base_patch16_224_gru2",
        "notebook": "hthta_vit_notebook",
    },
    presets=presets,
    options=ModelOptions,
    start_options=StartOptions,
    initialize=initialize,
    aliases={"data_dir": "data_path", "output_dir": "save_dir", "learning_rate": "lr"},
    translate_config=flags_of,
    configs=Path(__file__).parent / "configs",
    preset_names=("published", "train.py", "notebook"),
)
