"""Plot accuracy and loss by epoch of several runs in one figure.

uv run clear-vit-plot-logs checkpoints/RUN_A checkpoints/RUN_B --output curves.png
"""

import sys
from collections.abc import Sequence

from vit_core.commands import curves
from vit_core.flags import command


@command
def main(argv: Sequence[str] | None = None) -> int:
    return curves.run("clear-vit-plot-logs", argv)


if __name__ == "__main__":
    sys.exit(main())
