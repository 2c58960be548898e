"""A checkpoint of the original as one of this project, which evaluate and analyze can read.

uv run clear-vit-convert-checkpoint --checkpoint ORIGINAL.pth --output rope_mixed_ape.pth

Sizes and variant are read off the weights. Nothing in the file is run: it is read as tensors and plain values only.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

import clear_vit  # noqa: F401 -- registers the models with timm
from clear_vit.convert import config_of, model_arguments, model_from_original, variant_of
from clear_vit.recipe import RECIPE
from vit_core.errors import UserError
from vit_core.flags import ArgumentParser, command, output_file
from vit_core.recipe import settle
from vit_core.training.checkpoint import read_safely, save_checkpoint
from vit_core.training.config import DataConfig

_WRAPPERS = ("model_state_dict", "state_dict", "model")  # where trainers put the weights


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(prog="clear-vit-convert-checkpoint", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", "--model-path", dest="checkpoint", required=True, help=".pth or .safetensors")
    parser.add_argument("--output", type=output_file, required=True, help="file to write")
    parser.add_argument("--num-heads", type=int, default=3, help="attention heads (default: %(default)s)")
    parser.add_argument("--image-size", type=int, help="side of its images (default: what the weights say)")
    parser.add_argument("--class-names", help="text file, a name a line, in the order of the classifier")
    args = parser.parse_args(argv)
    weights = read_weights(args.checkpoint)
    if args.num_heads < 1:
        raise UserError("--num-heads must be at least 1")
    try:
        config = config_of(weights, args.num_heads, args.image_size)
        model = model_from_original(weights, config)
    except ValueError as e:
        raise UserError(f"{args.checkpoint}: {str(e)[:300]}") from e
    variant, count = variant_of(weights), config["num_classes"]
    names = _class_names(args.class_names) if args.class_names else [f"class {i}" for i in range(count)]
    if len(names) != count:
        raise UserError(f"--class-names {args.class_names}: {len(names)} names for {count} classes")
    save_checkpoint(args.output, {
        "epoch": 0, "model_state_dict": model.state_dict(), "optimizer_state_dict": {}, "scaler_state_dict": {},
        "best_acc1": 0.0, "config": settings(variant, config, names),
    })  # fmt: skip
    print(f"{variant}, {sum(p.numel() for p in model.parameters()):,} parameters, {count} classes: {args.output}")
    print(f"evaluate it:   uv run clear-vit-evaluate --checkpoint {args.output} --data-path IMAGENET100")
    return 0


def settings(variant: str, config: Mapping[str, int], class_names: Sequence[str]) -> dict[str, Any]:
    """What our checkpoints say of their run: the published recipe's, for this model."""
    kwargs = {k: v for k, v in model_arguments(config).items() if v is not None}
    size = {name: kwargs.pop(name) for name in ("img_size", "num_classes")}
    run = settle(RECIPE, {"model": variant}, None)
    return size | {
        "model": run.model, "model_kwargs": kwargs, "start": run.start, "class_names": list(class_names),
        "mean": list(IMAGENET_DEFAULT_MEAN), "std": list(IMAGENET_DEFAULT_STD),
        "data": dataclasses.asdict(DataConfig(dataset="imagenet100")), "train": dataclasses.asdict(run.train),
        "augment": dataclasses.asdict(run.augment),
    }  # fmt: skip


def _class_names(file: str) -> list[str]:
    try:
        return Path(file).read_text().splitlines()
    except UnicodeDecodeError as e:
        raise UserError(f"--class-names {file} is no text file") from e


def read_weights(file: str) -> dict[str, Tensor]:
    """The tensors of a file, without what a trainer put around them. UserError for a file that is none."""
    if Path(file).suffix == ".safetensors":
        try:
            return dict(load_file(file))
        except (SafetensorError, OSError) as e:
            raise UserError(f"{file} is not a safetensors file, or is damaged ({e})") from e
    found: Any = read_safely(file)
    if not isinstance(found, Mapping):
        raise UserError(f"{file} holds a {type(found).__name__}, not the weights of a model")
    for name in _WRAPPERS:
        if isinstance(found.get(name), Mapping):
            found = found[name]
    weights = {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if any(v.is_complex() for v in weights.values()):
        raise UserError(f"{file} holds complex numbers: it is none of the original's checkpoints")
    return weights


if __name__ == "__main__":
    sys.exit(main())
