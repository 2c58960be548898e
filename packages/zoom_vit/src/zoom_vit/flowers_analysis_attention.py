"""Importance maps of images with good, inverted and diffuse intent (`alignment.py` says what these are).

    uv run zoom-vit-flowers-analysis-attention --checkpoint FILE

Writes 1_visualizations/ with a folder a group.
"""

import sys
from collections.abc import Sequence

import zoom_vit  # noqa: F401 -- registers the models with timm
from vit_core.cli import ArgumentParser, command
from zoom_vit.alignment import GROUPS
from zoom_vit.examples import GROUP_FOLDERS, add_example_flags, begin_examples, draw_importance
from zoom_vit.experiment import FLOWERS_FOLDER
from zoom_vit.recipe import FLOWERS


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(
        prog="zoom-vit-flowers-analysis-attention", description="Importance maps, by the alignment of the intent."
    )
    add_example_flags(parser, FLOWERS_FOLDER)
    experiment, _, found = begin_examples(FLOWERS, parser.parse_args(argv))
    for example in found:
        file = experiment.folder / "1_visualizations" / GROUP_FOLDERS[example.group] / f"{example.number:05d}.png"
        note = f"\nimage {example.number}, {GROUPS[example.group]}, entropy {example.entropy:.3f}"
        draw_importance(experiment, example.image, example.target, file, note)
    print(f"{len(found)} pictures are in {experiment.folder / '1_visualizations'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
