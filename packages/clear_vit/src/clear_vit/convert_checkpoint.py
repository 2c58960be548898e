"""A checkpoint of the original as one of this project, which evaluate and analyze can read.

uv run clear-vit-convert-checkpoint --checkpoint ORIGINAL.pth --output rope_mixed_ape.pth

Sizes and variant are read off the weights. Nothing in the file is run: it is read as tensors and plain values only.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

import clear_vit  # noqa: F401 -- registers the models with timm
from clear_vit.convert import config_of, model_arguments, model_from_original, variant_of
from clear_vit.recipe import RECIPE
from vit_core.commands.convert import Converted, parser, run
from vit_core.flags import command


def convert(weights: Mapping[str, Tensor], config: Mapping[str, Any], args: argparse.Namespace) -> Converted:
    if args.num_heads < 1:
        raise ValueError("--num-heads must be at least 1")
    sizes = config_of(weights, args.num_heads, args.image_size)
    arguments = {k: v for k, v in model_arguments(sizes).items() if v is not None}
    num_classes, img_size = arguments.pop("num_classes"), arguments.pop("img_size")
    return Converted(
        model=model_from_original(weights, sizes),
        recipe=RECIPE,
        name=variant_of(weights),
        arguments=arguments,
        num_classes=num_classes,
        img_size=img_size,
        dataset="imagenet100",
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    p = parser("clear-vit-convert-checkpoint", RECIPE.paper)
    p.add_argument("--num-heads", type=int, default=3, help="attention heads (default: %(default)s)")
    p.add_argument("--image-size", type=int, help="side of its images (default: what the weights say)")
    return run(convert, p, argv)


if __name__ == "__main__":
    sys.exit(main())
