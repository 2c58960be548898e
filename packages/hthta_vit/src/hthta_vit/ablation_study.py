"""The paper's ablation: plain ViT, + BiGRU, + attention pooling, + class-token fusion, trained with one recipe.

    uv run hthta-vit-ablation-study --seeds 0 1 --dataset imagefolder --data-path DIR --epochs 5

The flags of hthta-vit-train apply to all rows. Writes measurements.csv, table.md and ablation.png. After an
interruption, run the same command again to resume.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hthta_vit.focus import attention_map
from hthta_vit.model import COMPONENTS
from hthta_vit.recipe import RECIPE
from hthta_vit.study import FocusFlags, run_study
from vit_core.commands.settings import parse_with
from vit_core.errors import UserError
from vit_core.flags import command, flag

# Table I of the paper: accuracy and FAP of ViT-B/16 at 224 x 224 after 30 epochs.
CLAIMED = {
    "none": ("89.2", "51.3"),
    "bigru": ("90.8", "63.1"),
    "bigru+pooling": ("92.1", "72.4"),
    "bigru+pooling+fusion": ("93.3", "76.5"),
}

PARTS = ("bigru", "attention_pooling", "cls_fusion")  # as the original's README spells them


def rows_of(components: Sequence[str]) -> list[str]:
    """The rows for --components: the named rows, or with the original's parts all rows up to the last part."""
    if set(components) & set(PARTS[1:]):
        unknown = set(components) - set(PARTS)
        if unknown:
            raise UserError(
                f"--components: {min(unknown)} is a row of the ablation, but {', '.join(PARTS[1:])} are parts of the "
                "model; give one or the other"
            )
        return list(COMPONENTS)[: 2 + max(map(PARTS.index, components))]
    return list(components)


@dataclass(frozen=True, kw_only=True)
class Flags(FocusFlags):
    """Train and evaluate the rows of the paper's ablation. The flags of hthta-vit-train apply to all rows."""

    seeds: tuple[int, ...] = flag((0, 1), "random seeds of each row")
    output_dir: Path = flag(Path("./ablation"), "folder of the study", metavar="DIR")
    components: tuple[str, ...] = flag(
        tuple(COMPONENTS),
        f"rows to run; or the original's names of parts, {' '.join(PARTS)}: all rows up to the last part",
        choices=(*COMPONENTS, *PARTS),
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    args, shared = parse_with(RECIPE, Flags, argv, "hthta-vit-ablation-study")
    rows = {name: {**shared, "components": name} for name in rows_of(args.components)}
    run_study(args, rows, lambda _: attention_map, CLAIMED, "Ablation of HTHTA-ViT++", name="ablation")
    return 0


if __name__ == "__main__":
    sys.exit(main())
