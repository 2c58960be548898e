"""Image-level zoom on images with good, inverted and diffuse intent (defined in `alignment.py`).

    uv run zoom-vit-flowers-zoom-image --checkpoint FILE

Writes 2_zoom_image/ (background faded to gray) and 3_image_level_zoom/ (box around the most important patches, and the
crop), each with one folder per group, images.txt and images.json. For the accuracy of a second pass on the zoomed
image, use zoom-vit-zoom-curve.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vit_core.flags import command, parse
from zoom_vit.examples import Example, ExampleFlags, begin_examples, draw_attenuation, draw_crop, write_examples
from zoom_vit.recipe import FLOWERS


@dataclass(frozen=True, kw_only=True)
class Flags(ExampleFlags):
    """Draw zoomed images, by alignment of intent."""


@command
def main(argv: Sequence[str] | None = None) -> int:
    experiment, by, found = begin_examples(FLOWERS, parse(Flags, argv, "zoom-vit-flowers-zoom-image"))

    def attenuation(example: Example, file: Path) -> Mapping[str, str]:
        return draw_attenuation(experiment, example, by, file)

    def crop(example: Example, file: Path) -> Mapping[str, str]:
        return draw_crop(experiment, example, by, file)

    write_examples(experiment, found, "2_zoom_image", attenuation)
    write_examples(experiment, found, "3_image_level_zoom", crop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
