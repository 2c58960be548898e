"""Evaluate the study's ViT on CIFAR-10: `uv run zoom-vit-cifar-evaluate --checkpoint FILE`."""

import sys

from zoom_vit.recipe import CIFAR

main = CIFAR.evaluate

if __name__ == "__main__":
    sys.exit(main())
