"""Train a variant: `uv run clear-vit-train --variant rope_mixed_ape --data-path DIR`.

uv run clear-vit-train                                                       micro rope_mixed_ape on the embedded digits
uv run clear-vit-train --variant micro_suppression --dataset cifar10 --download
"""

import sys

from clear_vit.recipe import RECIPE

main = RECIPE.train

if __name__ == "__main__":
    sys.exit(main())
