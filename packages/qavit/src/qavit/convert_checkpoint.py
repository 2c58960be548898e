"""A checkpoint of the original's train.py as one of this project, which qavit-evaluate and qavit-train --weights read.

uv run qavit-convert --checkpoint ORIGINAL.pth --output qavit.pth

Size and classes are read off the file. It is read as tensors and plain values only: nothing in it is run.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from qavit.convert import model_from_original
from qavit.model import QAViT
from qavit.recipe import RECIPE
from vit_core.errors import UserError
from vit_core.flags import ArgumentParser, command, output_file
from vit_core.recipe import settle
from vit_core.training.checkpoint import read_safely, save_checkpoint
from vit_core.training.config import DataConfig

# Mean and deviation of the pixels by which the original normalizes each of its datasets (QAViT.py, DATASET_CONFIGS).
STATISTICS = {
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(prog="qavit-convert", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", "--model-path", dest="checkpoint", required=True, help="the original's .pth")
    parser.add_argument("--output", type=output_file, required=True, help="file to write")
    parser.add_argument("--model", choices=("tiny", "small"), help="its size, where the file does not say")
    args = parser.parse_args(argv)
    weights, config = read_original(args.checkpoint, args.model)
    try:
        model = model_from_original(weights, config)
    except ValueError as e:
        raise UserError(f"{args.checkpoint}: {str(e)[:300]}") from e
    save_checkpoint(args.output, {
        "epoch": 0, "model_state_dict": model.state_dict(), "optimizer_state_dict": {}, "scaler_state_dict": {},
        "best_acc1": 0.0, "config": settings(model, config),
    })  # fmt: skip
    parameters = sum(p.numel() for p in model.parameters())
    print(f"QAViT-{config['model']}, {parameters:,} parameters, {model.num_classes} classes: {args.output}")
    print(f"evaluate it:   uv run qavit-evaluate --checkpoint {args.output} --data-path DATA")
    return 0


def read_original(file: str, size: str | None) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """Weights of a checkpoint, or of a bare state dict, and the arguments of the training that wrote it."""
    found: Any = read_safely(file)
    if not isinstance(found, Mapping):
        raise UserError(f"{file} holds a {type(found).__name__}, not the weights of a model")
    weights = found.get("model_state_dict", found)
    config = found.get("config")
    config = dict(config) if isinstance(config, Mapping) else {}
    if not isinstance(weights, Mapping):
        raise UserError(f"{file}: model_state_dict is a {type(weights).__name__}, not the weights of a model")
    if size is not None:
        config["model"] = size
    if "model" not in config:
        raise UserError(f"{file} does not say which size its model has: give --model tiny or --model small")
    tensors = {k: v for k, v in weights.items() if isinstance(k, str) and isinstance(v, Tensor)}
    return tensors, config


def settings(model: QAViT, config: Mapping[str, Any]) -> dict[str, Any]:
    """What our checkpoints say of their run: the published recipe's, for this model."""
    dataset = "imagenet" if config.get("dataset") == "imagenet" else "cifar100"
    run = settle(RECIPE, {"model": config["model"], "dataset": dataset}, None)
    mean, std = STATISTICS[dataset]
    return {
        "img_size": model.config.img_size, "num_classes": model.num_classes, "model": run.model,
        "model_kwargs": {"msda_truncate": True}, "start": run.start,
        "class_names": [f"class {i}" for i in range(model.num_classes)], "mean": list(mean), "std": list(std),
        "data": dataclasses.asdict(DataConfig(dataset=dataset)), "train": dataclasses.asdict(run.train),
        "augment": dataclasses.asdict(run.augment),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
