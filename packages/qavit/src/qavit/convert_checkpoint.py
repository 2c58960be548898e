"""A checkpoint of the original's train.py as one of this project, which qavit-evaluate and qavit-train --weights read.

uv run qavit-convert --checkpoint ORIGINAL.pth --output qavit.pth

Classes, and the size where the file says it, are read off the file. Nothing in it is run.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from qavit.convert import model_from_original
from qavit.recipe import RECIPE
from vit_core.commands.convert import Converted, parser, run
from vit_core.data.datasets import Stats
from vit_core.flags import command

# Mean and deviation of the pixels by which the original normalizes each of its datasets (QAViT.py, DATASET_CONFIGS).
STATISTICS: dict[str, Stats] = {
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def convert(weights: Mapping[str, Tensor], config: Mapping[str, Any], args: argparse.Namespace) -> Converted:
    size = args.model or config.get("model")
    if size is None:
        raise ValueError("it does not say which size its model has: give --model tiny or --model small")
    model = model_from_original(weights, {**config, "model": size})
    dataset = "imagenet" if config.get("dataset") == "imagenet" else "cifar100"
    return Converted(
        model=model,
        recipe=RECIPE,
        name=size,
        arguments={"msda_truncate": True},
        num_classes=model.num_classes,
        img_size=model.config.img_size,
        dataset=dataset,
        stats=STATISTICS[dataset],
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    p = parser("qavit-convert", RECIPE.paper)
    p.add_argument("--model", choices=("tiny", "small"), help="its size, where the file does not say")
    return run(convert, p, argv)


if __name__ == "__main__":
    sys.exit(main())
