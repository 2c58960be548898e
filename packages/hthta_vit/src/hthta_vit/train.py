"""Train an HTHTA-ViT: `uv run hthta-vit-train` or `python -m hthta_vit.train` (original: train.py)."""

import sys

from hthta_vit.recipe import RECIPE

main = RECIPE.train

if __name__ == "__main__":
    sys.exit(main())
