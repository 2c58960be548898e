"""Train a QAViT: `uv run qavit-train` or `python -m qavit.train` (original: HQA_VIT/train.py)."""

import sys
from collections.abc import Sequence

import qavit  # noqa: F401 -- registers the models with timm
from qavit.recipe import RECIPE
from vit_core.commands import train as train_command
from vit_core.flags import command


@command
def main(argv: Sequence[str] | None = None) -> int:
    return train_command.run(RECIPE, argv)


if __name__ == "__main__":
    sys.exit(main())
