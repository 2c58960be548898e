"""Evaluate the study's ViT on the Flowers-102 test split: `uv run zoom-vit-flowers-evaluate --checkpoint FILE`."""

import sys
from collections.abc import Sequence

import zoom_vit  # noqa: F401 -- registers the models with timm
from vit_core.commands import evaluate as evaluate_command
from vit_core.flags import command
from zoom_vit.experiment import FLOWERS_FOLDER
from zoom_vit.recipe import FLOWERS


@command
def main(argv: Sequence[str] | None = None) -> int:
    return evaluate_command.run(FLOWERS, argv, FLOWERS_FOLDER)


if __name__ == "__main__":
    sys.exit(main())
