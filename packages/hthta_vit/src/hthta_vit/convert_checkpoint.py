"""Convert a checkpoint of the original train.py for hthta-vit-evaluate.

uv run hthta-vit-convert --checkpoint ORIGINAL.pth --output hthta_vit.pth

Sizes are read from the weights. The file is read as tensors and plain values only: no code in it is executed.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hthta_vit.convert import head_sizes, model_from_original
from hthta_vit.recipe import RECIPE
from vit_core.commands.convert import Converted, ConvertFlags, run
from vit_core.flags import command, flag
from vit_core.models.conversion import sizes_of

DATASETS = {6: "intel", 10: "cifar10", 100: "cifar100", 200: "tiny_imagenet"}  # by the number of classes


@dataclass(frozen=True, kw_only=True)
class Flags(ConvertFlags):
    """Convert a checkpoint of HTHTA-ViT++'s original code to this project's format."""

    vit_heads: int | None = flag(None, "number of attention heads of its ViT (default: embed_dim / 64)")


def convert(weights: Mapping[str, Tensor], config: Mapping[str, Any], args: Flags) -> Converted:
    sizes: dict[str, Any] = head_sizes(weights)
    if args.vit_heads is not None:
        sizes["vit_heads"] = args.vit_heads
    model = model_from_original(weights, sizes)
    head = {f"pool_{k}": sizes[k] for k in ("heads", "head_dim")}
    layers = sizes["gru_layers"]
    return Converted(
        model=model,
        recipe=RECIPE,
        name="base_gru2" if layers == 2 else "base",
        arguments=sizes_of(model) | head | {"gru_layers": layers},
        dataset=DATASETS.get(model.num_classes, "cifar100"),
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    return run(convert, Flags, argv, "hthta-vit-convert")


if __name__ == "__main__":
    sys.exit(main())
