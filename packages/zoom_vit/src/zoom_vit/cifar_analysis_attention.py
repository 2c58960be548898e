"""Importance maps of a trained model, and the agreement of the six importance measures.

    uv run zoom-vit-cifar-analysis-attention --checkpoint FILE

Writes visualizations/ with one picture per image, and attention.txt and .json with statistics over more images: the
entropy of each kind of map, and the share of top patches that two kinds have in common.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vit_core.commands.study import markdown_table
from vit_core.explain import chance_level, top_places
from vit_core.flags import command, flag, parse
from zoom_vit.alignment import noise_entropy, normalized_entropy
from zoom_vit.examples import draw_importance
from zoom_vit.experiment import KEEP, Experiment, ExperimentFlags, begin, check_shares
from zoom_vit.importance import IMPORTANCES, importance_map
from zoom_vit.recipe import CIFAR, CIFAR_FOLDER


@dataclass(frozen=True, kw_only=True)
class Flags(ExperimentFlags):
    """Draw and compare importance maps."""

    output_dir: Path = flag(Path(CIFAR_FOLDER), "folder for the results", metavar="DIR")
    pictures: int = flag(8, "images to draw")
    max_images: int = flag(500, "images to measure", least=1)
    keep_ratio: float = flag(KEEP, "share of patches to keep")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares("--keep-ratio", [self.keep_ratio])
        if self.pictures < 0:
            raise ValueError("--pictures must be at least 0")


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Flags, argv, "zoom-vit-cifar-analysis-attention")
    experiment = begin(CIFAR, args)
    record = measure(experiment, args.keep_ratio, args.max_images)
    text = report(record)
    (experiment.folder / "attention.txt").write_text(text)
    record |= experiment.record()
    (experiment.folder / "attention.json").write_text(json.dumps(record, indent=2) + "\n")
    folder = experiment.folder / "visualizations"
    names = experiment.trained.class_names
    for numbers, images, targets in experiment.batches(args.pictures) if args.pictures else ():
        for number, image, target in zip(numbers, images, targets.tolist(), strict=True):
            file = folder / f"{number:05d}_{names[target].replace('/', '-').replace(' ', '_')}.png"
            draw_importance(experiment, image[None], target, file)
    drawn = " and visualizations/" if args.pictures else ""
    print(f"{text}\nattention.txt, attention.json{drawn} are in {experiment.folder}")
    return 0


def measure(experiment: Experiment, share: float, limit: int) -> dict[str, Any]:
    """Mean entropy of each kind of map, and for each pair of kinds the overlap of their top `share` of patches."""
    names = list(IMPORTANCES)
    entropy = torch.zeros(len(names), dtype=torch.float64)
    common = torch.zeros(len(names), len(names), dtype=torch.float64)
    count = places = 0
    for _, images, _ in experiment.batches(limit):
        maps = [importance_map(experiment.model, images, name) for name in names]
        entropy += torch.stack([normalized_entropy(m).sum().cpu() for m in maps])
        top = torch.stack([top_places(m, share).flatten(1) for m in maps]).double()  # (importances, B, N)
        chosen = top.sum(2)[0].mean()
        common += (torch.einsum("ibn,jbn->ij", top, top) / chosen).cpu()
        count, places = count + len(images), top.shape[2]
    return {
        "images": count,
        "patches": places,
        "share": share,
        "importances": names,
        "entropy": (entropy / count).tolist(),
        "noise_entropy": noise_entropy(places),
        "agreement": (100 * common / count).tolist(),
        "chance": chance_level(places, share),
    }


def report(record: dict[str, Any]) -> str:
    names = record["importances"]
    lines = []
    for i, name in enumerate(names):
        shared = ["" if i == j else f"{v:.0f}" for j, v in enumerate(record["agreement"][i])]
        lines.append([name, f"{record['entropy'][i]:.3f}", *shared])
    return (
        f"{record['images']} images, {record['patches']} patches. Entropy: 1 for a constant map, "
        f"{record['noise_entropy']:.3f} for uniform noise. Agreement: overlap of the top {100 * record['share']:g}% of "
        f"patches of two kinds, in percent; chance is {record['chance']:.0f}.\n\n"
        + markdown_table(["importance", "entropy", *names], lines)
    )


if __name__ == "__main__":
    sys.exit(main())
