"""Evaluate a variant: `uv run clear-vit-evaluate --checkpoint FILE`."""

import sys
from collections.abc import Sequence

import clear_vit  # noqa: F401 -- registers the models with timm
from clear_vit.recipe import RECIPE
from vit_core.commands import evaluate as evaluate_command
from vit_core.flags import command


@command
def main(argv: Sequence[str] | None = None) -> int:
    return evaluate_command.run(RECIPE, argv)


if __name__ == "__main__":
    sys.exit(main())
