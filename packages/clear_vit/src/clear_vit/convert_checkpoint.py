"""Convert a checkpoint of the original to this project's format, for evaluate and analyze.

uv run clear-vit-convert-checkpoint --checkpoint ORIGINAL.pth --output rope_mixed_ape.pth

Sizes and variant are inferred from the weights. No code in the file is run: only tensors and plain values are loaded.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from clear_vit.convert import config_of, model_arguments, model_from_original, variant_of
from clear_vit.recipe import RECIPE
from vit_core.commands.convert import Converted, ConvertFlags, run
from vit_core.flags import command, flag


@dataclass(frozen=True, kw_only=True)
class Flags(ConvertFlags):
    """Convert a checkpoint of clear-vit's original code to this project's format."""

    num_heads: int = flag(3, "attention heads, not stored in the weights", least=1)
    image_size: int | None = flag(None, "image size, in pixels per side (default: inferred from the weights)")


def convert(weights: Mapping[str, Tensor], config: Mapping[str, Any], args: Flags) -> Converted:
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
    return run(convert, Flags, argv, "clear-vit-convert-checkpoint")


if __name__ == "__main__":
    sys.exit(main())
