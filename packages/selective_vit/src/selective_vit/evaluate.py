"""Evaluate a ViT or SelectiveViT: `uv run selective-vit-evaluate --checkpoint FILE` (original: its notebook)."""

import sys

from selective_vit.recipe import RECIPE

main = RECIPE.evaluate

if __name__ == "__main__":
    sys.exit(main())
