"""Train a QAViT: `uv run qavit-train` or `python -m qavit.train` (original: HQA_VIT/train.py)."""

import sys

from qavit.recipe import RECIPE

main = RECIPE.train

if __name__ == "__main__":
    sys.exit(main())
