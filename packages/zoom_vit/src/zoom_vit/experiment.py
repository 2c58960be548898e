"""Shared by the analysis scripts: flags, the trained model with its images, and the study's folders."""

import csv
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_core.commands.trained_model import CheckpointFlags, ImageFlags, TrainedModel, load_trained
from vit_core.data import BatchLoader, Dataset
from vit_core.errors import UserError
from vit_core.explain import denormalize
from vit_core.flags import build, flag
from vit_core.recipe import Recipe
from vit_core.training.distributed import World, pick_device
from vit_core.training.run_folder import environment
from zoom_vit.alignment import JUDGES, LAYERS, Judgment, noise_entropy
from zoom_vit.importance import IMPORTANCES
from zoom_vit.model import ZoomViT
from zoom_vit.recipe import FLOWERS_FOLDER

KEEP = 0.3  # the study's share of patches
KEEP_RATIOS = tuple(round(1 - 0.1 * i, 1) for i in range(10))


@dataclass(frozen=True, kw_only=True)
class ExperimentFlags(CheckpointFlags, ImageFlags):
    """The flags of every analysis script."""

    output_dir: Path = flag(Path(FLOWERS_FOLDER), "folder for the results", metavar="DIR")
    batch_size: int = flag(64, "batch size")


@dataclass(frozen=True, kw_only=True)
class CurveFlags(ExperimentFlags):
    """The range of a curve."""

    importances: tuple[str, ...] = flag(tuple(IMPORTANCES), "importances to measure", choices=tuple(IMPORTANCES))
    keep_ratios: tuple[float, ...] = flag(KEEP_RATIOS, "shares of patches to keep")
    max_images: int | None = flag(None, "number of evenly spaced images (default: the whole split)", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares("--keep-ratios", self.keep_ratios)

    @property
    def settings(self) -> tuple[list[str], list[float]]:
        """Importances and keep ratios without duplicates, ratios in descending order."""
        return list(dict.fromkeys(self.importances)), sorted(set(self.keep_ratios), reverse=True)


@dataclass(frozen=True, kw_only=True)
class JudgmentFlags(ExperimentFlags):
    """How an image's intent is judged; see `alignment.Judgment`."""

    importance: str = flag(
        "token_norm", "importance measure of the patches; token_norm as published", choices=tuple(IMPORTANCES)
    )
    keep_ratio: float = flag(KEEP, "share of patches to keep")
    prune_layer: int | None = flag(None, "prune after this many blocks (default: half of them)")
    judged_by: str = flag(
        "pixels",
        "hide the other patches in the image (pixels) or prune them (tokens) to judge the top patches alone",
        choices=JUDGES,
    )
    judged_at: str = flag(
        "last",
        "judge the map after the last block (last), as in the study's pictures, or at the pruning layer (pruned)",
        choices=LAYERS,
    )
    entropy_threshold: float | None = flag(
        None, "intent is diffuse if the map's entropy is above this (default: entropy of uniform noise)"
    )
    seed: int = flag(0, "random seed of the random control")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares("--keep-ratio", [self.keep_ratio])
        if self.entropy_threshold is not None and not 0 <= self.entropy_threshold <= 1:
            raise ValueError(f"--entropy-threshold must lie in [0, 1], got {self.entropy_threshold}")


def check_shares(name: str, shares: Sequence[float]) -> None:
    """ValueError unless all lie in (0, 1]."""
    wrong = [share for share in shares if not 0 < share <= 1]
    if wrong:
        raise ValueError(f"{name} must lie in (0, 1], got {wrong[0]}")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A trained model, the images it is evaluated on, and the output folder."""

    trained: TrainedModel
    model: ZoomViT
    dataset: Dataset
    world: World
    folder: Path
    batch_size: int
    num_workers: int

    def loader(self, limit: int | None = None) -> BatchLoader:
        """The evaluation split in order, or `limit` evenly spaced images of it."""
        return self.trained.loader(
            self.dataset, self.world, limit=limit, batch_size=self.batch_size, num_workers=self.num_workers
        )

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

    def pick(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
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
            "checkpoint": str(self.trained.source),
            "model": self.trained.settings["model"],
            "dataset": self.dataset.name,
            "eval_split": self.dataset.eval_split,
            "environment": environment(),
        }

    def picture(self, image: Tensor) -> Tensor:
        """Undo the normalization of an image (3, S, S): pixel values in [0, 1], on the CPU."""
        return denormalize(image, self.trained.settings["mean"], self.trained.settings["std"]).cpu()

    def says(self, logits: Tensor) -> str:
        """The predicted class and its probability, for one image's logits (C,)."""
        p = logits.softmax(0)
        best = int(p.argmax())
        return f"{self.trained.class_names[best]} {float(p[best]):.3f}"


def begin(recipe: Recipe, flags: ExperimentFlags) -> Experiment:
    """Load the model and data that the flags name. UserError if they do not fit."""
    world = World(0, 1, pick_device(flags.device))
    trained = load_trained(recipe, flags.checkpoint, world.device, raw_weights=flags.raw_weights)
    assert isinstance(trained.model, ZoomViT)
    dataset, _ = trained.dataset(flags, world)
    folder = flags.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):  # fail before the measurement, not after it
        raise UserError(f"--output-dir {folder}: permission denied; choose a writable folder")
    return Experiment(
        trained=trained,
        model=trained.model,
        dataset=dataset,
        world=world,
        folder=folder,
        batch_size=flags.batch_size,
        num_workers=flags.num_workers,
    )


def judgment(flags: JudgmentFlags, model: ZoomViT) -> Judgment:
    """How the flags judge an image's intent. UserError for values that do not fit the model."""
    depth = len(model.blocks)
    if flags.prune_layer is not None and not 1 <= flags.prune_layer < depth:
        raise UserError(
            f"--prune-layer must lie in 1 … {depth - 1} for a model with {depth} blocks, got {flags.prune_layer}"
        )
    return build(Judgment, {**dataclasses.asdict(flags), "prune_layer": flags.prune_layer or depth // 2})


def threshold_of(flags: JudgmentFlags, model: ZoomViT) -> float:
    """The entropy above which an intent is diffuse."""
    given = flags.entropy_threshold
    return noise_entropy(model.patch_embed.num_patches) if given is None else given


def write_rows(experiment: Experiment, name: str, rows: Sequence[Mapping[str, Any]], **more: Any) -> None:
    """Write the rows to NAME.csv, and to NAME.json with model, data and environment."""
    with (experiment.folder / f"{name}.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    record = {**more, "rows": list(rows), **experiment.record()}
    (experiment.folder / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
