"""The ablation of the paper's table: plain ViT, + BiGRU, + attention pooling, + class-token fusion, under one recipe.

    uv run hthta-vit-ablation-study --seeds 0 1 --dataset imagefolder --data-path DIR --epochs 5

Flags that are not listed below are those of hthta-vit-train, for all rows. Writes measurements.csv, table.md and
ablation.png; the same command given again goes on where it was interrupted.
"""

import sys
from collections.abc import Sequence

import hthta_vit  # noqa: F401 -- registers the models with timm
from hthta_vit.focus import attention_map
from hthta_vit.model import COMPONENTS
from hthta_vit.recipe import RECIPE
from hthta_vit.study import run_study, study_parser
from vit_core.errors import UserError
from vit_core.flags import command

# Table I of the paper: accuracy and FAP of ViT-B/16 at 224 x 224 after 30 epochs.
CLAIMED = {
    "none": ("89.2", "51.3"),
    "bigru": ("90.8", "63.1"),
    "bigru+pooling": ("92.1", "72.4"),
    "bigru+pooling+fusion": ("93.3", "76.5"),
}


PARTS = ("bigru", "attention_pooling", "cls_fusion")  # as the original's README spells them


def rows_of(components: Sequence[str]) -> list[str]:
    """The rows that --components asks for: as named, or of the original's parts all that lead up to the last one."""
    if set(components) & set(PARTS[1:]):
        unknown = set(components) - set(PARTS)
        if unknown:
            raise UserError(f"--components: {min(unknown)} is a row, and {PARTS[1]} a part; give one or the other")
        return list(COMPONENTS)[: 2 + max(map(PARTS.index, components))]
    return list(components)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = study_parser(
        "ablation-study", "Train and measure the rows of the paper's ablation.", seeds=(0, 1), folder="./ablation"
    )
    parser.add_argument(
        "--components", nargs="+", choices=(*COMPONENTS, *PARTS), metavar="NAME", default=list(COMPONENTS),
        help=f"the rows: {', '.join(COMPONENTS)}; or the original's parts, {' '.join(PARTS)}, added one by one",
    )  # fmt: skip
    args, flags = parser.parse_known_args(argv)
    shared = RECIPE.parse(flags)
    rows = {name: {**shared, "components": name} for name in rows_of(args.components)}
    run_study(args, rows, lambda _: attention_map, CLAIMED, "Ablation of HTHTA-ViT++", name="ablation")
    return 0


if __name__ == "__main__":
    sys.exit(main())
