"""Evaluate a checkpoint: `uv run qavit-evaluate --checkpoint RUN/best.pth` (original: HQA_VIT/evaluate.py)."""

import sys

from qavit.recipe import RECIPE

main = RECIPE.evaluate

if __name__ == "__main__":
    sys.exit(main())
