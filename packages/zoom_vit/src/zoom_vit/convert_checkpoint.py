"""Convert a checkpoint of the original study for the scripts of this package.

uv run zoom-vit-convert --checkpoint ORIGINAL.pth --output zoom_vit.pth

Sizes are read from the weights. A 32-pixel model is assumed to be for CIFAR-10, any other for Flowers-102. The file is
read as tensors and plain values only: no code in it is executed.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vit_core.commands.convert import Converted, ConvertFlags, run
from vit_core.flags import command, flag
from vit_core.models.conversion import sizes_of
from zoom_vit.convert import model_from_original
from zoom_vit.recipe import CIFAR, FLOWERS


@dataclass(frozen=True, kw_only=True)
class Flags(ConvertFlags):
    """Convert a checkpoint of the ZoomViT study's original code to this project's format."""

    num_heads: int | None = flag(None, "number of attention heads (default: embed_dim / 64)")


def convert(weights: Mapping[str, Tensor], config: Mapping[str, Any], args: Flags) -> Converted:
    heads = {} if args.num_heads is None else {"num_heads": args.num_heads}
    model = model_from_original(weights, heads)
    img_size = model.patch_embed.img_size[0]
    of_cifar = img_size == 32
    return Converted(
        model=model,
        recipe=CIFAR if of_cifar else FLOWERS,
        name="tiny_patch8_32" if of_cifar else "tiny_patch16_224",
        arguments=sizes_of(model),
        dataset="cifar10" if of_cifar else "flowers102",
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    return run(convert, Flags, argv, "zoom-vit-convert")


if __name__ == "__main__":
    sys.exit(main())
