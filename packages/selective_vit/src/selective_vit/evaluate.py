"""Evaluate a ViT or SelectiveViT: `uv run selective-vit-evaluate --checkpoint FILE` (original: its notebook)."""

import sys
from collections.abc import Sequence

import selective_vit  # noqa: F401 -- registers the models with timm
from selective_vit.recipe import RECIPE
from vit_core.commands import evaluate as evaluate_command
from vit_core.flags import command


@command
def main(argv: Sequence[str] | None = None) -> int:
    return evaluate_command.run(RECIPE, argv)


if __name__ == "__main__":
    sys.exit(main())
