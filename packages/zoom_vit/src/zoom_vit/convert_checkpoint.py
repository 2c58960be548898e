"""A checkpoint of the original study as one of this project, which the study's scripts read.

uv run zoom-vit-convert --checkpoint ORIGINAL.pth --output zoom_vit.pth

Sizes are read off the weights; 32-pixel models are taken for those of CIFAR-10, others for those of Flowers-102.
Nothing in the file is run: it is read as tensors and plain values only.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

import zoom_vit  # noqa: F401 -- registers the models with timm
from vit_core.commands.convert import Converted, parser, run
from vit_core.flags import command
from vit_core.models.conversion import sizes_of
from zoom_vit.convert import model_from_original
from zoom_vit.recipe import CIFAR, FLOWERS


def convert(weights: Mapping[str, Tensor], config: Mapping[str, Any], args: argparse.Namespace) -> Converted:
    heads = {} if args.num_heads is None else {"num_heads": args.num_heads}
    model = model_from_original(weights, heads)
    img_size = model.patch_embed.img_size[0]
    of_cifar = img_size == 32
    return Converted(
        model=model,
        recipe=CIFAR if of_cifar else FLOWERS,
        name="tiny_patch8_32" if of_cifar else "tiny_patch16_224",
        arguments=sizes_of(model),
        num_classes=model.num_classes,
        img_size=img_size,
        dataset="cifar10" if of_cifar else "flowers102",
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    p = parser("zoom-vit-convert", CIFAR.paper)
    p.add_argument("--num-heads", type=int, help="attention heads (default: 64 wide each)")
    return run(convert, p, argv)


if __name__ == "__main__":
    sys.exit(main())
