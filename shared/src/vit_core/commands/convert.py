"""The `convert` command of every paper: convert a checkpoint of the original code for use with this project.

The file is loaded as tensors and plain values only; no code in it is executed.
"""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vit_core.data.datasets import Stats, statistics
from vit_core.errors import UserError
from vit_core.flags import ArgumentParser, output_file
from vit_core.recipe import Recipe, input_size, settle
from vit_core.training.checkpoint import read_safely, save_checkpoint

_WRAPPERS = ("model_state_dict", "state_dict", "model")  # keys under which trainers store the weights


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A model with the original's weights, and the settings to store in its checkpoint."""

    model: nn.Module
    recipe: Recipe
    name: str  # one of the recipe's models
    arguments: Mapping[str, Any]  # model arguments, except num_classes and img_size
    dataset: str  # training dataset; its preset provides the remaining settings
    stats: Stats | None = None  # mean and std of the images, if different from the preset's


# (weights, the file's "config" entry, flags) -> the model; ValueError for weights of another model
Convert = Callable[[Mapping[str, Tensor], Mapping[str, Any], argparse.Namespace], Converted]


def parser(name: str, paper: str) -> ArgumentParser:
    """A parser with the flags that all papers share."""
    p = ArgumentParser(
        prog=name, description=f"Convert a checkpoint of {paper}'s original code to this project's format."
    )
    p.add_argument("--checkpoint", "--model-path", dest="checkpoint", required=True, help="checkpoint to convert")
    p.add_argument("--output", type=output_file, required=True, help="file to write")
    p.add_argument("--class-names", help="text file with one class name per line, in the order of the classifier")
    return p


def run(convert: Convert, parser: ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parse the flags, convert the checkpoint and write the result. Returns the exit code."""
    args = parser.parse_args(argv)
    weights, config = read_original(args.checkpoint)
    try:
        converted = convert(weights, config, args)
    except ValueError as e:
        raise UserError(f"{args.checkpoint}: {str(e)[:300]}") from e
    count: int = converted.model.num_classes  # type: ignore[assignment]
    names = _class_names(args.class_names) if args.class_names else [f"class {i}" for i in range(count)]
    if len(names) != count:
        raise UserError(f"--class-names {args.class_names}: has {len(names)} names; the model has {count} classes")
    save_checkpoint(
        args.output,
        {
            "epoch": 0,
            "model_state_dict": converted.model.state_dict(),
            "optimizer_state_dict": {},
            "scaler_state_dict": {},
            "best_acc1": 0.0,
            "config": _settings(converted, names),
        },
    )
    recipe, parameters = converted.recipe, sum(p.numel() for p in converted.model.parameters())
    print(f"{recipe.paper}, {converted.name}, {parameters:,} parameters, {count} classes: {args.output}")
    print(f"evaluate with: uv run {recipe.command}-evaluate --checkpoint {args.output} --data-path DATA")
    return 0


def _settings(converted: Converted, class_names: Sequence[str]) -> dict[str, Any]:
    """The `config` of the checkpoint: the published recipe's settings for this model."""
    run = settle(converted.recipe, {"model": converted.name, "dataset": converted.dataset}, None)
    mean, std = converted.stats or statistics(run.data.dataset, run.data.normalize)
    return {
        "model": run.model,
        "model_kwargs": dict(converted.arguments),
        "num_classes": len(class_names),
        "img_size": input_size(converted.model),
        "class_names": list(class_names),
        "mean": list(mean),
        "std": list(std),
        "start": run.start,
        "data": dataclasses.asdict(run.data),
        "train": dataclasses.asdict(run.train),
        "augment": dataclasses.asdict(run.augment),
    }


def read_original(file: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights in a file, unwrapped from a training checkpoint if necessary, and its "config" entry.

    UserError for a file without weights, and for one that is damaged or unsafe.
    """
    if Path(file).suffix == ".safetensors":
        try:
            return dict(load_file(file)), {}
        except (SafetensorError, OSError) as e:
            raise UserError(f"{file} cannot be read as a safetensors file ({e})") from e
    found: Any = read_safely(file)
    config = found.get("config") if isinstance(found, Mapping) else None
    for name in _WRAPPERS:
        if isinstance(found, Mapping) and name in found:
            found = found[name]
    if not isinstance(found, Mapping):
        raise UserError(f"{file} contains a {type(found).__name__}, expected a state dict")
    weights = {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if any(v.is_complex() for v in weights.values()):
        raise UserError(f"{file} contains complex tensors: it is not a checkpoint of the original code")
    return weights, dict(config) if isinstance(config, Mapping) else {}


def _class_names(file: str) -> list[str]:
    try:
        return Path(file).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as e:
        raise UserError(f"--class-names {file}: not a UTF-8 text file") from e
