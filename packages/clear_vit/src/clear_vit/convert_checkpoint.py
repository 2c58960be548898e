"""Convert a checkpoint of the original to this project's format, for evaluate and analyze.

uv run clear-vit-convert-checkpoint --checkpoint ORIGINAL.pth --output rope_mixed_ape.pth

Sizes and variant are inferred from the weights. No code in the file is run: only tensors and plain values are loaded.
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
        raise ValueError(f"--num-heads must be at least 1, got {args.num_heads}")
    sizes = config_of(weights, args.num_heads, args.image_size)
    from_the_model = ("num_classes", "img_size")
    arguments = {k: v for k, v in model_arguments(sizes).items() if v is not None and k not in from_the_model}
    return Converted(
        model=model_from_original(weights, sizes),
        recipe=RECIPE,
        name=variant_of(weights),
        arguments=arguments,
        dataset="imagenet100",
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    p = parser("clear-vit-convert-checkpoint", RECIPE.paper)
    p.add_argument(
        "--num-heads", type=int, default=3, help="attention heads, not stored in the weights (default: %(default)s)"
    )
    p.add_argument("--image-size", type=int, help="image size, in pixels per side (default: inferred from the weights)")
    return run(convert, p, argv)


if __name__ == "__main__":
    sys.exit(main())
