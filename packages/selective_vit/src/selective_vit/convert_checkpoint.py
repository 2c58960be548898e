"""Convert a state dict of the original's notebook to a checkpoint of this project, for selective-vit-evaluate.

    uv run selective-vit-convert --checkpoint ORIGINAL.pth --output selective.pth
    uv run selective-vit-convert --checkpoint ORIGINAL.pth --output vit.pth --model vit

Both of its models have the same names and shapes, so --model must say which one it is. No code in the file is run: only
tensors and plain values are loaded.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from selective_vit.attention import EMPTY_ROWS, MODES
from selective_vit.convert import dense_from_original, model_from_original
from selective_vit.recipe import RECIPE
from vit_core.commands.convert import Converted, ConvertFlags, run
from vit_core.flags import command, flag
from vit_core.models.conversion import sizes_of


@dataclass(frozen=True, kw_only=True)
class Flags(ConvertFlags):
    """Convert a state dict of SelectiveViT's original notebook to this project's format."""

    model: str = flag("selective", "which model the file holds", choices=("selective", "vit"))
    threshold: float = flag(0.01, "τ of the model")
    mode: str = flag("hard", "thresholding formula; hard is the notebook's", choices=MODES)
    empty_row: str = flag("zero", "rows in which no weight passes", choices=EMPTY_ROWS)
    num_heads: int | None = flag(None, "number of attention heads (default: width / 64)")


def convert(weights: Mapping[str, Tensor], config: Mapping[str, Any], args: Flags) -> Converted:
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
    return run(convert, Flags, argv, "selective-vit-convert")


if __name__ == "__main__":
    sys.exit(main())
