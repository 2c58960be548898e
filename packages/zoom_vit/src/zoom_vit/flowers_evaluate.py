"""Evaluate the study's ViT on the Flowers-102 test split: `uv run zoom-vit-flowers-evaluate --checkpoint FILE`."""

import sys

from zoom_vit.recipe import FLOWERS

main = FLOWERS.evaluate

if __name__ == "__main__":
    sys.exit(main())
