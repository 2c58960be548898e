"""QAViT's models, flags and hyperparameters for the shared commands."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vit_core.flags import flag
from vit_core.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Flags that change the model; None keeps the model's default."""

    bank_update: str | None = flag(
        None,
        "global token bank: inplace (as published), functional (per sample, trains the gateway) or frozen",
        choices=("inplace", "functional", "frozen"),
    )
    msda_truncate: bool | None = flag(None, "truncate the dilated sequence to max(k, 128) tokens, as published")
    dropout: float | None = flag(None, "dropout rate, also for attention weights (default: 0.1; micro 0)")
    attn_drop: float | None = flag(None, "dropout rate for attention weights only (default: same as --dropout)")
    drop_path: float | None = flag(None, "stochastic depth rate of the last block (default: the model's)")


# The README's hyperparameters: (model, on ImageNet) -> batch size, learning rate, weight decay, warm-up epochs.
PUBLISHED = {
    ("tiny", False): (256, 1e-3, 0.05, 20),
    ("small", False): (128, 8e-4, 0.05, 20),
    ("tiny", True): (512, 1e-3, 0.05, 30),
    ("small", True): (256, 8e-4, 0.05, 30),
}


def presets(given: Mapping[str, Any]) -> dict[str, Any]:
    """Default model and dataset, and the hyperparameters for them.

    published: the README's table. stable: learning rate 5e-4 and 10 epochs of warm-up, the defaults of the original
    train.py, which its notes chose after runs of the former went to NaN at epochs 7-10. Both follow that train.py:
    label smoothing 0.1, gradient clipping at 1.0, weight decay on every parameter; images are resized, padded by an
    eighth, randomly cropped and flipped (ImageNet: padded by 4 pixels, color jitter 0.1). Its learning rate changes
    once per epoch and is 0 in the first one; ours changes every step. The micro model's values are ours.
    """
    model, dataset = given.get("model"), given.get("dataset")
    model = model or ("micro" if dataset in (None, "digits") else "tiny")
    dataset = dataset or ("digits" if model == "micro" else "cifar100")
    values: dict[str, Any] = {"model": model, "dataset": dataset}
    if model == "micro":
        values |= {
            "epochs": 10,
            "batch_size": 64,
            "lr": 2e-3,
            "weight_decay": 0.05,
            "warmup_epochs": 2,
            "crop": "pad",
        }
    else:
        batch_size, lr, weight_decay, warmup = PUBLISHED[model, dataset in ("imagenet", "imagenet100")]
        values |= {
            "epochs": 300,
            "batch_size": batch_size,
            "lr": lr,
            "weight_decay": weight_decay,
            "warmup_epochs": warmup,
            "decay_all": True,
            "crop": "pad",
        }
        if dataset in ("imagenet", "imagenet100"):
            values |= {"crop_pad": 4 / 224, "color_jitter": 0.1}
        if given.get("preset") == "stable":
            values |= {"lr": 5e-4, "warmup_epochs": 10}
    if dataset == "digits":
        values |= {"hflip": 0.0, "crop": "none"}  # a flipped 2 is not a 2
        if model == "micro":
            values |= {"batch_size": 32, "lr": 4e-3}
    return values


RECIPE = Recipe(
    paper="QAViT",
    description="Train a QAViT. Default: the micro model on the bundled digits dataset. With only --model tiny or "
    "small: CIFAR-100 with the published recipe.",
    command="qavit",
    models={"micro": "qavit_micro", "tiny": "qavit_tiny", "small": "qavit_small"},
    presets=presets,
    options=ModelOptions,
    preset_names=("published", "stable"),
)
