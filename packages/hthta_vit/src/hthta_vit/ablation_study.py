"""The paper's ablation: plain ViT, + BiGRU, + attention pooling, + class-token fusion, trained with one recipe.

    uv run hthta-vit-ablation-study --seeds 0 1 --dataset imagefolder --data-path DIR --epochs 5

Flags not listed below are those of hthta-vit-train and apply to all rows. Writes measurements.csv, table.md and
ablation.png. After an interruption, run the same command again to resume.
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


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = study_parser(
        "ablation-study", "Train and evaluate the rows of the paper's ablation.", seeds=(0, 1), folder="./ablation"
    )
    parser.add_argument(
        "--components", nargs="+", choices=(*COMPONENTS, *PARTS), metavar="NAME", default=list(COMPONENTS),
        help=f"rows to run: {', '.join(COMPONENTS)}; or the original's names of parts, {' '.join(PARTS)}: all rows up "
        "to the last part (default: all rows)",
    )  # fmt: skip
    args, flags = parser.parse_known_args(argv)
    shared = RECIPE.parse(flags)
    rows = {name: {**shared, "components": name} for name in rows_of(args.components)}
    run_study(args, rows, lambda _: attention_map, CLAIMED, "Ablation of HTHTA-ViT++", name="ablation")
    return 0


if __name__ == "__main__":
    sys.exit(main())
