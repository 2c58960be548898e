"""Train the study's ViT on Flowers-102: `uv run zoom-vit-flowers-train --download`.

    uv run zoom-vit-flowers-train --pretrained                              a stronger baseline than the study's
    uv run zoom-vit-flowers-train --dataset imagefolder --data-path DIR

Claimed after five epochs: 9.76% accuracy and a loss of 3.9559 on the test split. See README.md for our measurements.
"""

import sys
from collections.abc import Sequence

import zoom_vit  # noqa: F401 -- registers the models with timm
from vit_core.commands import train as train_command
from vit_core.flags import command
from zoom_vit.recipe import FLOWERS


@command
def main(argv: Sequence[str] | None = None) -> int:
    return train_command.run(FLOWERS, argv)


if __name__ == "__main__":
    sys.exit(main())
