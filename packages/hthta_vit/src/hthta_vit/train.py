"""Train an HTHTA-ViT: `uv run hthta-vit-train` or `python -m hthta_vit.train` (original: train.py)."""

import sys
from collections.abc import Sequence

import hthta_vit  # noqa: F401 -- registers the models with timm
from hthta_vit.recipe import RECIPE
from vit_core.commands import train as train_command
from vit_core.flags import command


@command
def main(argv: Sequence[str] | None = None) -> int:
    return train_command.run(RECIPE, argv)


if __name__ == "__main__":
    sys.exit(main())
