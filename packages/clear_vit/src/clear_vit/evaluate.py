"""Evaluate a variant: `uv run clear-vit-evaluate --checkpoint FILE`."""

import sys

from clear_vit.recipe import RECIPE

main = RECIPE.evaluate

if __name__ == "__main__":
    sys.exit(main())
