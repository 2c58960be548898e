"""The `convert` command of every paper: convert a checkpoint of the original code for use with this project.

The file is loaded as tensors and plain values only; no code in it is executed.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vit_core.commands.settings import settle
from vit_core.data.datasets import Stats, statistics
from vit_core.errors import UserError
from vit_core.flags import REQUIRED, flag, parse
from vit_core.models.create import input_size
from vit_core.training.checkpoint import read_safely, save_checkpoint

if TYPE_CHECKING:
    from vit_core.recipe import Recipe

_WRAPPERS = ("model_state_dict", "state_dict", "model")  # keys under which trainers store the weights


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A model with the original's weights, and the settings to store in its checkpoint."""

    model: nn.Module
    recipe: "Recipe"
    name: str  # one of the recipe's models
    arguments: Mapping[str, Any]  # model arguments, except num_classes and img_size
    dataset: str  # training dataset; its preset provides the remaining settings
    stats: Stats | None = None  # mean and std of the images, if different from the preset's


@dataclass(frozen=True, kw_only=True)
class ConvertFlags:
    """The flags of every paper's convert command."""

    checkpoint: str = flag(REQUIRED, "checkpoint to convert", aliases=("model_path",), metavar="FILE")
    output: Path = flag(REQUIRED, "file to write", metavar="FILE", output=True)
    class_names: str | None = flag(
        None, "text file with one class name per line, in the order of the classifier", metavar="FILE"
    )


Flags = TypeVar("Flags", bound=ConvertFlags)
# (weights, the file's "config" entry, flags) -> the model; ValueError for weights of another model
Convert = Callable[[Mapping[str, Tensor], Mapping[str, Any], Flags], Converted]


def run(convert: Convert[Flags], flags: type[Flags], argv: Sequence[str] | None, prog: str) -> int:
    """Parse the flags, convert the checkpoint and write the result. Returns the exit code."""
    args = parse(flags, argv, prog)
    weights, config = read_original(args.checkpoint)
    try:
        converted = convert(weights, config, args)
    except ValueError as e:
        raise UserError(f"{args.checkpoint}: {str(e)[:300]}") from e
    count: int = converted.model.num_classes  # type: ignore[assignment]
    names = _class_names(args.class_names) if args.class_names else [f"class {i}" for i in range(count)]
    if len(names) != count:
        raise UserError(f"--class-names {args.class_names}: has {len(names)} names; the model has {count} classes")
    # The remaining settings are those of the published recipe for this model.
    planned = settle(converted.recipe, {"model": converted.name, "dataset": converted.dataset}, None)
    planned = dataclasses.replace(planned, model_kwargs=dict(converted.arguments))
    stats = converted.stats or statistics(planned.data.dataset, planned.data.normalize)
    settings = planned.settings(names, input_size(converted.model), stats)
    save_checkpoint(
        args.output,
        {
            "epoch": 0,
            "model_state_dict": converted.model.state_dict(),
            "optimizer_state_dict": {},
            "scaler_state_dict": {},
            "best_acc1": 0.0,
            "config": settings,
        },
    )
    recipe, parameters = converted.recipe, sum(p.numel() for p in converted.model.parameters())
    print(f"{recipe.paper}, {converted.name}, {parameters:,} parameters, {count} classes: {args.output}")
    print(f"evaluate with: uv run {recipe.command}-evaluate --checkpoint {args.output} --data-path DATA")
    return 0


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
