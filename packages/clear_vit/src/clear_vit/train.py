"""Train a variant: `uv run clear-vit-train --variant rope_mixed_ape --data-path DIR`.

uv run clear-vit-train                                                       micro rope_mixed_ape on the embedded digits
uv run clear-vit-train --variant micro_suppression --dataset cifar10 --download
"""

import sys
from collections.abc import Sequence

import clear_vit  # noqa: F401 -- registers the models with timm
from clear_vit.recipe import RECIPE
from vit_core.commands import train as train_command
from vit_core.flags import command


@command
def main(argv: Sequence[str] | None = None) -> int:
    return train_command.run(RECIPE, argv)


if __name__ == "__main__":
    sys.exit(main())
