"""Shared by the analysis scripts: flags, the trained model with its images, and the study's folders."""

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_core.commands.trained_model import (
    TrainedModel,
    add_checkpoint_flag,
    add_data_flags,
    check_data_flags,
    load_trained,
)
from vit_core.data import BatchLoader, Dataset
from vit_core.errors import UserError
from vit_core.explain import denormalise
from vit_core.flags import ArgumentParser, build
from vit_core.recipe import Recipe
from vit_core.training.distributed import World, pick_device
from vit_core.training.run_folder import environment
from zoom_vit.alignment import JUDGES, LAYERS, Judgement, noise_entropy
from zoom_vit.importance import IMPORTANCES
from zoom_vit.model import ZoomViT

CIFAR_FOLDER = "experiments/cifar/vit_baseline"
FLOWERS_FOLDER = "experiments/flowers/vit_baseline"
KEEP_RATIOS = tuple(round(1 - 0.1 * i, 1) for i in range(10))


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A trained model, the images it is evaluated on, and the output folder."""

    trained: TrainedModel
    model: ZoomViT
    dataset: Dataset
    world: World
    folder: Path
    args: Any

    def loader(self, limit: int | None = None) -> BatchLoader:
        """The evaluation split in order, or `limit` evenly spaced images of it."""
        size = {"batch_size": self.args.batch_size, "num_workers": self.args.num_workers}
        return self.trained.loader(self.dataset, self.world, limit=limit, **size)

    def numbers(self, limit: int | None = None) -> list[int]:
        """Indices in the split of the images of `loader(limit)`."""
        return self.loader(limit).evaluated.tolist()

    def batches(self, limit: int | None = None) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Indices, normalized images (B, 3, S, S) and classes (B,), batch by batch."""
        loader = self.loader(limit)
        numbers = loader.evaluated.tolist()
        for images, targets in loader.epoch():
            yield numbers[: len(images)], images, targets
            del numbers[: len(images)]

    def pick(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """The normalized images (n, 3, S, S) of the split with these indices, and their classes (n,)."""
        count = len(self.dataset.val)
        wrong = [i for i in indices if not 0 <= i < count]
        if wrong:
            raise UserError(f"--indices {wrong[0]}: the evaluation split has images 0 to {count - 1}")
        loader = self.trained.loader(self.dataset, self.world, batch_size=1, num_workers=0)
        pairs = [next(loader.epoch(start_batch=i)) for i in indices]
        return torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs])

    def record(self) -> dict[str, Any]:
        """Model, data and environment, for a result's JSON file."""
        return {
            "checkpoint": str(self.trained.source), "model": self.trained.settings["model"],
            "dataset": self.dataset.name, "eval_split": self.dataset.eval_split, "environment": environment(),
        }  # fmt: skip

    def picture(self, image: Tensor) -> Tensor:
        """Undo the normalization of an image (3, S, S): pixel values in [0, 1], on the CPU."""
        return denormalise(image, self.trained.settings["mean"], self.trained.settings["std"]).cpu()

    def says(self, logits: Tensor) -> str:
        """The predicted class and its probability, for one image's logits (C,)."""
        p = logits.softmax(0)
        best = int(p.argmax())
        return f"{self.trained.class_names[best]} {float(p[best]):.3f}"


def add_experiment_flags(parser: ArgumentParser, folder: str) -> None:
    add_checkpoint_flag(parser)
    parser.add_argument("--output-dir", default=folder, help="folder for the results (default: %(default)s)")
    add_data_flags(parser, amp=False)
    parser.set_defaults(batch_size=64)


def begin(recipe: Recipe, args: Any) -> Experiment:
    """Load the model and data from the flags. UserError for invalid flags."""
    check_data_flags(args)
    if not 0 < getattr(args, "keep_ratio", 1.0) <= 1:
        raise UserError(f"--keep-ratio must lie in (0, 1], got {args.keep_ratio}")
    if getattr(args, "max_images", 1) is not None and getattr(args, "max_images", 1) < 1:
        raise UserError("--max-images must be at least 1")
    world = World(0, 1, pick_device(args.device))
    trained = load_trained(recipe, args.checkpoint, world.device, raw_weights=args.raw_weights)
    assert isinstance(trained.model, ZoomViT)
    dataset, _ = trained.dataset(args, world)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):  # fail before the measurement, not after it
        raise UserError(f"--output-dir {folder}: permission denied; choose a writable folder")
    return Experiment(
        trained=trained, model=trained.model, dataset=dataset, world=world, folder=folder, args=args
    )  # fmt: skip


def add_keep_ratio(parser: ArgumentParser) -> None:
    parser.add_argument("--keep-ratio", type=float, default=0.3, help="share of patches to keep (default: %(default)s)")


def add_curve_flags(parser: ArgumentParser) -> None:
    """Flags for the range of a curve."""
    parser.add_argument(
        "--importances", nargs="+", choices=tuple(IMPORTANCES), default=list(IMPORTANCES),
        help="importances to measure (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--keep-ratios", nargs="+", type=float, default=list(KEEP_RATIOS),
        help="shares of patches to keep (default: 1.0, 0.9 … 0.1)",
    )  # fmt: skip
    parser.add_argument("--max-images", type=int, help="number of evenly spaced images (default: the whole split)")


def curve_of(args: Any) -> tuple[list[str], list[float]]:
    """Importances and keep ratios without duplicates, ratios in descending order. UserError for invalid ratios."""
    if not all(0 < k <= 1 for k in args.keep_ratios):
        raise UserError("--keep-ratios must lie in (0, 1]")
    return list(dict.fromkeys(args.importances)), sorted(set(args.keep_ratios), reverse=True)


def add_judgement_flags(parser: ArgumentParser) -> None:
    """Flags for how an image's intent is judged; see `alignment.Judgement`."""
    parser.add_argument(
        "--importance", choices=tuple(IMPORTANCES), default="token_norm",
        help="importance measure of the patches (default: %(default)s, as published)",
    )  # fmt: skip
    add_keep_ratio(parser)
    parser.add_argument("--prune-layer", type=int, help="prune after this many blocks (default: half of them)")
    parser.add_argument(
        "--judged-by", choices=JUDGES, default="pixels",
        help="hide the other patches in the image (pixels) or prune them (tokens) to judge the top patches alone "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--judged-at", choices=LAYERS, default="last",
        help="judge the map after the last block (last), as in the study's pictures, or at the pruning layer (pruned) "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--entropy-threshold", type=float,
        help="intent is diffuse if the map's entropy is above this (default: entropy of uniform noise)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of the random control (default: %(default)s)")


def judgement(experiment: Experiment) -> Judgement:
    """Build the `Judgement` from the flags. UserError for values that do not fit the model."""
    args, depth = experiment.args, len(experiment.model.blocks)
    if args.entropy_threshold is not None and not 0 <= args.entropy_threshold <= 1:
        raise UserError(f"--entropy-threshold must lie in [0, 1], got {args.entropy_threshold}")
    if args.prune_layer is not None and not 1 <= args.prune_layer < depth:
        raise UserError(
            f"--prune-layer must lie in 1 … {depth - 1} for a model with {depth} blocks, got {args.prune_layer}"
        )
    fields = {name: getattr(args, name) for name in ("importance", "keep_ratio", "judged_by", "judged_at", "seed")}
    by: Judgement = build(Judgement, {**fields, "prune_layer": args.prune_layer or depth // 2})
    return by


def threshold_of(experiment: Experiment) -> float:
    """The entropy above which an intent is diffuse."""
    given: float | None = experiment.args.entropy_threshold
    return noise_entropy(experiment.model.patch_embed.num_patches) if given is None else given


def write_rows(experiment: Experiment, name: str, rows: Sequence[Mapping[str, Any]], **more: Any) -> None:
    """Write the rows to NAME.csv, and to NAME.json with model, data and environment."""
    with (experiment.folder / f"{name}.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    record = {**more, "rows": list(rows), **experiment.record()}
    (experiment.folder / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
