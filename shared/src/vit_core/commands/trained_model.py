"""Load a trained model from a checkpoint, and the images to evaluate it on; used by all analysis scripts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vit_core.data import AugmentConfig, BatchLoader, Dataset, EvalTransform
from vit_core.errors import UserError
from vit_core.flags import ArgumentParser
from vit_core.recipe import Recipe, check_classes, create_model, load_images, run_settings
from vit_core.training.checkpoint import load_checkpoint, load_weights
from vit_core.training.config import DataConfig
from vit_core.training.distributed import World
from vit_core.training.precision import MODES


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model in evaluation mode on its device, and the settings of its run."""

    model: nn.Module
    settings: dict[str, Any]  # the checkpoint's `config`
    source: Path
    epoch: int = 0  # epochs completed
    test_splits: Mapping[str, str] = field(default_factory=dict)  # the recipe's

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.settings["class_names"])

    def transform(self) -> EvalTransform:
        """The evaluation transform of the run: uint8 (B, 3, H, W) -> normalized (B, 3, S, S)."""
        s = self.settings
        crop_pct = AugmentConfig(**s["augment"]).eval_crop_pct
        return EvalTransform(s["img_size"], s["mean"], s["std"], crop_pct)

    def dataset(self, args: Any, world: World) -> tuple[Dataset, DataConfig]:
        """The dataset selected by the flags of `add_data_flags`; by default that of the run.

        UserError for a different number of classes.
        """
        trained = self.settings["data"]
        same = args.dataset in (None, trained["dataset"])
        name = args.dataset or trained["dataset"]
        config = DataConfig(
            dataset=name,
            data_path=args.data_path or (trained["data_path"] if same else None),
            download=args.download,
            eval_split=args.eval_split or self.test_splits.get(name) or (trained.get("eval_split") if same else None),
            num_workers=args.num_workers,
            skip_broken=args.skip_broken or (same and trained.get("skip_broken", False)),
        )
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


def add_checkpoint_flag(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", "--model-path", dest="checkpoint", required=True,
        help="checkpoint written by training, such as best.pth",
    )  # fmt: skip


def add_data_flags(parser: ArgumentParser, *, amp: bool = True) -> None:
    """Add the flags of an evaluation script: dataset, batch size, device and, with `amp`, mixed precision."""
    parser.add_argument("--dataset", help="dataset to evaluate on (default: the training dataset)")
    parser.add_argument("--data-path", "--data-dir", help="folder of the dataset (default: that used in training)")
    parser.add_argument("--download", action="store_true", help="download the dataset if it is missing")
    parser.add_argument(
        "--eval-split",
        choices=("val", "test"),
        help="split to evaluate on (default: the paper's test split if it has one, else the split used in training)",
    )
    parser.add_argument("--batch-size", type=int, default=256, help="batch size (default: %(default)s)")
    parser.add_argument("--num-workers", type=int, default=4, help="data-loading processes (default: %(default)s)")
    parser.add_argument(
        "--skip-broken",
        action="store_true",
        help="skip unreadable images (always on if training used it); to find them, every image is decoded once first",
    )
    add_loading_flags(parser)
    if not amp:
        return
    parser.add_argument(
        "--amp", nargs="?", const="auto", default="off", choices=MODES, help="mixed precision (default: off)"
    )
    parser.add_argument("--no-amp", dest="amp", action="store_const", const="off", help="float32, the default")


def add_loading_flags(parser: ArgumentParser) -> None:
    """Add the flags of a script that loads a model: device, and EMA or raw weights."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    parser.add_argument(
        "--raw-weights", action="store_true", help="use the raw weights instead of their EMA, if the run kept one"
    )


def check_data_flags(args: Any) -> None:
    if args.batch_size < 1 or args.num_workers < 0:
        raise UserError("--batch-size must be at least 1 and --num-workers at least 0")


def load_trained(
    recipe: Recipe, path: str | Path, device: torch.device, *, model: str | None = None, raw_weights: bool = False
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
        model=built.to(device).eval(), settings=settings, source=Path(path), epoch=int(checkpoint["epoch"]),
        test_splits=recipe.test_splits,
    )  # fmt: skip
