"""Load a trained model from a checkpoint, and the images to evaluate it on; used by all analysis scripts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from vit_core.commands.images import check_classes, load_images
from vit_core.commands.settings import RunSettings, run_settings
from vit_core.data import AugmentConfig, BatchLoader, Dataset, EvalTransform
from vit_core.errors import UserError
from vit_core.flags import REQUIRED, build, flag
from vit_core.models.create import create_model
from vit_core.training.checkpoint import load_checkpoint, load_weights
from vit_core.training.config import DataConfig
from vit_core.training.distributed import World
from vit_core.training.precision import MODES

if TYPE_CHECKING:
    from vit_core.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class CheckpointFlags:
    """The flag of a script that loads one checkpoint."""

    checkpoint: str = flag(
        REQUIRED, "checkpoint written by training, such as best.pth", aliases=("model_path",), metavar="FILE"
    )


@dataclass(frozen=True, kw_only=True)
class AmpFlags:
    """The flag of a script that can run in mixed precision."""

    amp: str = flag("off", "mixed precision", choices=MODES, bare="auto")


@dataclass(frozen=True, kw_only=True)
class LoadingFlags:
    """The flags of a script that loads trained models."""

    device: str = flag("auto", "auto, cpu, cuda, cuda:N or mps")
    raw_weights: bool = flag(False, "use the raw weights instead of their EMA, if the run kept one")


@dataclass(frozen=True, kw_only=True)
class ImageFlags(LoadingFlags):
    """The flags of a script that runs trained models on a dataset."""

    dataset: str | None = flag(None, "dataset to evaluate on (default: the training dataset)")
    data_path: str | None = flag(
        None, "folder of the dataset (default: that used in training)", aliases=("data_dir",), metavar="DIR"
    )
    download: bool = flag(False, "download the dataset if it is missing")
    eval_split: str | None = flag(
        None,
        "split to evaluate on (default: the paper's test split if it has one, else the split used in training)",
        choices=("val", "test"),
    )
    batch_size: int = flag(256, "batch size")
    num_workers: int = flag(4, "data-loading processes")
    skip_broken: bool = flag(
        False,
        "skip unreadable images (always on if training used it); to find them, every image is decoded once first",
    )

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_workers < 0:
            raise ValueError("--batch-size must be at least 1 and --num-workers at least 0")


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model in evaluation mode on its device, and the settings of its run."""

    model: nn.Module
    settings: RunSettings  # the checkpoint's `config`
    source: Path
    epoch: int = 0  # epochs completed
    test_splits: Mapping[str, str] = field(default_factory=dict)  # the recipe's

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.settings["class_names"])

    def transform(self) -> EvalTransform:
        """The evaluation transform of the run: uint8 (B, 3, H, W) -> normalized (B, 3, S, S)."""
        s = self.settings
        crop_pct = build(AugmentConfig, s["augment"]).eval_crop_pct
        return EvalTransform(s["img_size"], s["mean"], s["std"], crop_pct)

    def dataset(self, flags: ImageFlags, world: World) -> tuple[Dataset, DataConfig]:
        """The dataset that the flags select; by default that of the run.

        UserError for a different number of classes.
        """
        trained = self.settings["data"]
        same = flags.dataset in (None, trained["dataset"])
        name = flags.dataset or trained["dataset"]
        chosen = {
            "dataset": name,
            "data_path": flags.data_path or (trained["data_path"] if same else None),
            "download": flags.download,
            "eval_split": flags.eval_split
            or self.test_splits.get(name)
            or (trained.get("eval_split") if same else None),
            "num_workers": flags.num_workers,
            "skip_broken": flags.skip_broken or (same and trained.get("skip_broken", False)),
        }
        config = build(DataConfig, chosen)
        dataset = load_images(config, self.settings["img_size"], world)
        note = check_classes(self.settings, self.source, dataset, config.dataset)
        if note and world.is_main:
            print(note)
        return dataset, config

    def loader(
        self, dataset: Dataset, world: World, *, batch_size: int, num_workers: int, limit: int | None = None
    ) -> BatchLoader:
        """The evaluation split in order; with `limit`, only that many images, evenly spaced."""
        return BatchLoader(
            dataset.val,
            batch_size=batch_size,
            transform=self.transform(),
            train=False,
            rank=world.rank,
            world=world.size,
            device=world.device,
            num_workers=num_workers,
            limit=limit,
        )


def load_trained(
    recipe: "Recipe", path: str | Path, device: torch.device, *, model: str | None = None, raw_weights: bool = False
) -> TrainedModel:
    """Load the model of a checkpoint written by one of the recipe's runs; the EMA weights if the run kept them.

    model: the expected value of --model, if any. Raises UserError for a checkpoint of another paper or model.
    """
    checkpoint = load_checkpoint(path)
    settings = run_settings(checkpoint, path)
    if settings["model"] not in recipe.models.values():
        raise UserError(f"{path} is not a checkpoint of {recipe.paper}")
    if model and recipe.models[model] != settings["model"]:
        raise UserError(f"{path} is a checkpoint of {settings['model']}, not of {recipe.models[model]}")
    built = create_model(settings["model"], settings["model_kwargs"], settings["num_classes"], settings["img_size"])
    ema = None if raw_weights else checkpoint.get("ema_state_dict")
    load_weights(built, ema or checkpoint["model_state_dict"], path)
    return TrainedModel(
        model=built.to(device).eval(),
        settings=settings,
        source=Path(path),
        epoch=int(checkpoint["epoch"]),
        test_splits=recipe.test_splits,
    )
