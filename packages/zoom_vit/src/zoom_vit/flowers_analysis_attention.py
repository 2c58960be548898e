"""Importance maps of images with good, inverted and diffuse intent (defined in `alignment.py`).

    uv run zoom-vit-flowers-analysis-attention --checkpoint FILE

Writes 1_visualizations/ with one folder per group, images.txt and images.json.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vit_core.flags import command, parse
from zoom_vit.alignment import GROUPS
from zoom_vit.examples import Example, ExampleFlags, begin_examples, draw_importance, write_examples
from zoom_vit.recipe import FLOWERS


@dataclass(frozen=True, kw_only=True)
class Flags(ExampleFlags):
    """Draw importance maps, by alignment of intent."""


@command
def main(argv: Sequence[str] | None = None) -> int:
    experiment, _, found = begin_examples(FLOWERS, parse(Flags, argv, "zoom-vit-flowers-analysis-attention"))

    def draw(e: Example, file: Path) -> Mapping[str, str]:
        note = f"\nimage {e.number}, {GROUPS[e.group]}, entropy {e.entropy:.3f}"
        return draw_importance(experiment, e.image, e.target, file, note)

    write_examples(experiment, found, "1_visualizations", draw)
    return 0


if __name__ == "__main__":
    sys.exit(main())
