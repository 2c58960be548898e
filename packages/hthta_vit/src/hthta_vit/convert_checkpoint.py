"""Convert a checkpoint of the original train.py for hthta-vit-evaluate.

uv run hthta-vit-convert --checkpoint ORIGINAL.pth --output hthta_vit.pth

Sizes are read from the weights. The file is read as tensors and plain values only: no code in it is executed.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

import hthta_vit  # noqa: F401 -- registers the models with timm
from hthta_vit.convert import head_sizes, model_from_original
from hthta_vit.recipe import RECIPE
from vit_core.commands.convert import Converted, parser, run
from vit_core.flags import command
from vit_core.models.conversion import sizes_of

DATASETS = {6: "intel", 10: "cifar10", 100: "cifar100", 200: "tiny_imagenet"}  # by the number of classes


def convert(weights: Mapping[str, Tensor], config: Mapping[str, Any], args: argparse.Namespace) -> Converted:
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
    p = parser("hthta-vit-convert", RECIPE.paper)
    p.add_argument("--vit-heads", type=int, help="number of attention heads of its ViT (default: embed_dim / 64)")
    return run(convert, p, argv)


if __name__ == "__main__":
    sys.exit(main())
