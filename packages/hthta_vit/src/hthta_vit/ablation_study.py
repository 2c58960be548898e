"""The ablation of the paper's table: plain ViT, + BiGRU, + attention pooling, + class-token fusion, under one recipe.

    uv run hthta-vit-ablation-study --seeds 0 1 --dataset imagefolder --data-path DIR --epochs 5

Flags that are not listed below are those of hthta-vit-train, for all rows. Writes measurements.csv, table.md and
ablation.png; the same command given again goes on where it was interrupted.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import hthta_vit  # noqa: F401 -- registers the models with timm
from hthta_vit.focus import attention_map
from hthta_vit.model import COMPONENTS
from hthta_vit.recipe import RECIPE
from hthta_vit.study import Study, picture, table
from vit_core.cli import ArgumentParser, command
from vit_core.errors import UserError

# Table "Ablation on CIFAR-100" of the seed: accuracy and FAP of ViT-B/16 at 224 x 224 after 30 epochs.
CLAIMED = {
    "none": ("89.2", "51.3"),
    "bigru": ("90.8", "63.1"),
    "bigru+pooling": ("92.1", "72.4"),
    "bigru+pooling+fusion": ("93.3", "76.5"),
}


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(
        prog="hthta-vit-ablation-study",
        description="Train and measure the rows of the paper's ablation. Flags that are not listed here are those of "
        "hthta-vit-train.",
    )
    parser.add_argument("--components", nargs="+", choices=tuple(COMPONENTS), default=list(COMPONENTS), help="the rows")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="of each row (default: 0 1)")
    parser.add_argument("--output-dir", default="./ablation", help="folder of the study (default: %(default)s)")
    parser.add_argument("--fap-images", type=int, default=2000, help="images for FAP (default: %(default)s)")
    args, flags = parser.parse_known_args(argv)
    if args.fap_images < 1:
        raise UserError("--fap-images must be at least 1")
    study = Study(
        recipe=RECIPE, rows={name: ("--components", name) for name in args.components}, flags=flags,
        seeds=args.seeds, folder=Path(args.output_dir), fap_images=args.fap_images,
        attention_maps=lambda _: attention_map,
    )  # fmt: skip
    measurements = study.run()
    text = table(measurements, args.components, CLAIMED)
    (study.folder / "table.md").write_text(text)
    picture(measurements, args.components, study.folder / "ablation.png", study.title("Ablation of HTHTA-ViT++"))
    print(f"\n{text}\nmeasurements.csv, table.md and ablation.png are in {study.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
