"""Evaluate a checkpoint: `uv run qavit-evaluate --checkpoint RUN/best.pth` (original: HQA_VIT/evaluate.py)."""

import sys
from collections.abc import Sequence

import qavit  # noqa: F401 -- registers the models with timm
from qavit.recipe import RECIPE
from vit_core.commands import evaluate as evaluate_command
from vit_core.flags import command


@command
def main(argv: Sequence[str] | None = None) -> int:
    return evaluate_command.run(RECIPE, argv)


if __name__ == "__main__":
    sys.exit(main())
