"""The images of a run, and whether they fit a checkpoint's classes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_core.data import Dataset, load_dataset
from vit_core.errors import UserError
from vit_core.training.config import DataConfig
from vit_core.training.distributed import World, broadcast, together


def check_classes(settings: Mapping[str, Any], source: str | Path, dataset: Dataset, name: str) -> str | None:
    """UserError if the run of `settings` has a different number of classes; a note if only their names differ."""
    if settings["num_classes"] != dataset.num_classes:
        raise UserError(
            f"{source} was trained with {settings['num_classes']} classes; the dataset {name} has {dataset.num_classes}"
        )
    pairs = zip(settings["class_names"], dataset.class_names, strict=True)
    differ = [(ours, theirs) for ours, theirs in pairs if ours.lower() != theirs.lower()]
    if not differ:
        return None
    ours, theirs = differ[0]
    return f"note: {len(differ)} class names differ from those in training: for example {theirs!r} instead of {ours!r}"


def load_images(config: DataConfig, img_size: int, world: World) -> Dataset:
    """The dataset of a run; one process per machine downloads, the others wait. UserError for a wrong class count.

    With `skip_broken` the main process finds and reports broken images; all processes leave out the same ones.
    """
    turns = [True]
    if config.download:
        turns.insert(0, world.local_rank == 0)
    if config.skip_broken:
        turns.insert(0, world.is_main)
    dataset = None
    skip: bool | frozenset[str] = config.skip_broken
    for is_turn in turns:
        with together():
            if is_turn and dataset is None:
                dataset = load_dataset(
                    config.dataset,
                    data_path=config.data_path,
                    download=config.download and world.local_rank == 0,
                    img_size=img_size,
                    cache=config.cache,
                    eval_split=config.eval_split,
                    normalize=config.normalize,
                    skip_broken=skip,
                )
        if skip is True:
            left_out = dataset.left_out if dataset is not None else ()
            skip = broadcast(frozenset(path for split in left_out for path in split.broken))
            if world.is_main and left_out:
                print("left out: " + "; ".join(map(str, left_out)))
    assert dataset is not None
    if config.num_classes is not None and config.num_classes != dataset.num_classes:
        raise UserError(
            f"--num-classes {config.num_classes}: the dataset {config.dataset} has {dataset.num_classes} classes"
        )
    return dataset
