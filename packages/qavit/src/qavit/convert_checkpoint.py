"""Convert a checkpoint of the original train.py for qavit-evaluate and qavit-train --weights.

uv run qavit-convert --checkpoint ORIGINAL.pth --output qavit.pth

The number of classes, and the model size if recorded, are read from the file. No code in the file is executed.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qavit.convert import model_from_original
from qavit.recipe import RECIPE
from vit_core.commands.convert import Converted, ConvertFlags, run
from vit_core.data.datasets import Stats
from vit_core.flags import command, flag

# Mean and standard deviation with which the original normalizes each dataset (QAViT.py, DATASET_CONFIGS).
STATISTICS: dict[str, Stats] = {
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclass(frozen=True, kw_only=True)
class Flags(ConvertFlags):
    """Convert a checkpoint of QAViT's original code to this project's format."""

    model: str | None = flag(None, "model size, if the checkpoint does not record it", choices=("tiny", "small"))


def convert(weights: Mapping[str, Tensor], config: Mapping[str, Any], args: Flags) -> Converted:
    size = args.model or config.get("model")
    if size is None:
        raise ValueError("the checkpoint does not record its model size: give --model tiny or --model small")
    model = model_from_original(weights, {**config, "model": size})
    dataset = "imagenet" if config.get("dataset") == "imagenet" else "cifar100"
    return Converted(
        model=model,
        recipe=RECIPE,
        name=size,
        arguments={"msda_truncate": True},
        dataset=dataset,
        stats=STATISTICS[dataset],
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    return run(convert, Flags, argv, "qavit-convert")


if __name__ == "__main__":
    sys.exit(main())
