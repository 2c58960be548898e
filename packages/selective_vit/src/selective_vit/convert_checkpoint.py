"""Convert a state dict of the original's notebook to a checkpoint of this project, for selective-vit-evaluate.

    uv run selective-vit-convert --checkpoint ORIGINAL.pth --output selective.pth
    uv run selective-vit-convert --checkpoint ORIGINAL.pth --output vit.pth --model vit

Both of its models have the same names and shapes, so --model must say which one it is. No code in the file is run: only
tensors and plain values are loaded.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

import selective_vit  # noqa: F401 -- registers the models with timm
from selective_vit.attention import EMPTY_ROWS, MODES
from selective_vit.convert import dense_from_original, model_from_original
from selective_vit.recipe import RECIPE
from vit_core.commands.convert import Converted, parser, run
from vit_core.flags import command
from vit_core.models.conversion import sizes_of


def convert(weights: Mapping[str, Tensor], config: Mapping[str, Any], args: argparse.Namespace) -> Converted:
    selection = {"threshold": args.threshold, "mode": args.mode, "empty_row": args.empty_row}
    heads = {} if args.num_heads is None else {"heads": args.num_heads}
    if args.model == "selective":
        model = model_from_original(weights, selection | heads)
    else:
        model, selection = dense_from_original(weights, heads), {}
    return Converted(
        model=model,
        recipe=RECIPE,
        name=args.model,
        arguments=sizes_of(model) | selection,
        dataset="cifar10",
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    p = parser("selective-vit-convert", RECIPE.paper)
    p.add_argument(
        "--model",
        choices=("selective", "vit"),
        default="selective",
        help="which model the file holds (default: %(default)s)",
    )
    p.add_argument("--threshold", type=float, default=0.01, help="τ of the model (default: %(default)s)")
    p.add_argument(
        "--mode", choices=MODES, default="hard", help="thresholding formula (default: the notebook's, %(default)s)"
    )
    p.add_argument(
        "--empty-row", choices=EMPTY_ROWS, default="zero", help="rows in which no weight passes (default: zero)"
    )
    p.add_argument("--num-heads", type=int, help="number of attention heads (default: width / 64)")
    return run(convert, p, argv)


if __name__ == "__main__":
    sys.exit(main())
