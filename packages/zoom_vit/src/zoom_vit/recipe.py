"""The study's two recipes, CIFAR-10 and Flowers-102, for the shared commands."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vit_core.flags import flag
from vit_core.models import timm_weights
from vit_core.recipe import Recipe
from zoom_vit.registry import BACKBONE, TAGS


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Flags that change the model; None keeps the model's default."""

    drop_rate: float | None = flag(None, "dropout before the classifier (default: 0)")
    drop_path_rate: float | None = flag(None, "stochastic depth rate of the last block (default: 0)")


@dataclass(frozen=True, kw_only=True)
class StartOptions(timm_weights.StartOptions):
    """Initial weights of a new run: random by default, as in the study."""

    backbone: ClassVar[str] = BACKBONE
    pretrained: bool = flag(False, "start from timm's ViT-Tiny weights: a stronger baseline than the study's")
    pretrained_tag: str = flag(TAGS[0], "tag of timm's pretrained weights", choices=TAGS)


# Adam with lr 1e-4 throughout; the study names no weight decay, label smoothing or clipping, so there is none.
PUBLISHED: dict[str, Any] = {
    "optimizer": "adam", "lr": 1e-4, "weight_decay": 0.0, "warmup_epochs": 0, "schedule": "constant", "min_lr": 0.0,
    "grad_clip": 0.0, "label_smoothing": 0.0, "crop": "none",
}  # fmt: skip
CIFAR10: dict[str, Any] = {"dataset": "cifar10", "normalize": "half", "hflip": 0.0, "batch_size": 64, "epochs": 3}
FLOWERS102: dict[str, Any] = {
    "dataset": "flowers102",
    "normalize": "imagenet",
    "hflip": 0.5,
    "batch_size": 32,
    "epochs": 5,
}


def _presets(model: str, published: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    def presets(given: Mapping[str, Any]) -> dict[str, Any]:
        """Default model and dataset, and their hyperparameters.

        They are the study's; the micro model uses ours unless `--preset published` is given.
        """
        dataset = given.get("dataset")
        chosen = given.get("model") or ("micro" if dataset == "digits" else model)
        values: dict[str, Any] = {**PUBLISHED, **published, "model": chosen}
        if chosen == "micro" and given.get("preset") is None:
            values |= {
                "optimizer": "adamw", "lr": 2e-3, "min_lr": 1e-6, "weight_decay": 0.05, "warmup_epochs": 2,
                "schedule": "cosine", "grad_clip": 1.0, "label_smoothing": 0.1, "batch_size": 32, "epochs": 12,
            }  # fmt: skip
        if dataset is not None:
            values |= {"dataset": dataset}
        if dataset == "digits":
            values |= {"hflip": 0.0}  # a flipped 2 is not a 2
        return values

    return presets


def _recipe(command: str, images: str, model: str, published: Mapping[str, Any], results_folder: str) -> Recipe:
    return Recipe(
        paper="ZoomViT study",
        description=f"Train the study's ViT. Default: {images} with the published recipe. With --dataset digits: a "
        "micro model on the bundled digits dataset.",
        command=command,
        models={
            "tiny_patch8_32": "zoom_vit_tiny_patch8_32",
            "tiny_patch16_224": "zoom_vit_tiny_patch16_224",
            "micro": "zoom_vit_micro",
        },
        presets=_presets(model, published),
        options=ModelOptions,
        start_options=StartOptions,
        initialize=timm_weights.initialize,
        aliases={"data_dir": "data_path", "output_dir": "save_dir"},
        test_splits={"flowers102": "test"},
        results_folder=results_folder,
    )


CIFAR_FOLDER = "experiments/cifar/vit_baseline"
FLOWERS_FOLDER = "experiments/flowers/vit_baseline"
CIFAR = _recipe("zoom-vit-cifar", "CIFAR-10", "tiny_patch8_32", CIFAR10, CIFAR_FOLDER)
FLOWERS = _recipe("zoom-vit-flowers", "Flowers-102", "tiny_patch16_224", FLOWERS102, FLOWERS_FOLDER)
