"""A second pass on the zoomed image: accuracy from the crop alone, and from the mean of both passes.

    uv run zoom-vit-zoom-curve --checkpoint FILE

The box around the most important patches is resized to the full image size (`zoom.crop_zoom`), for keep ratios from
1.0 to 0.1 and every importance. Writes zoom_curve.csv, .json and .png. Changes are paired with the first pass on the
same images; low and high are the ends of 95% bootstrap intervals over the images.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vit_core.flags import command, parse
from zoom_vit.alignment import interval
from zoom_vit.experiment import CurveFlags, Experiment, begin, write_rows
from zoom_vit.importance import importance_map
from zoom_vit.recipe import FLOWERS
from zoom_vit.zoom import crop_zoom, zoom_boxes


@dataclass(frozen=True, kw_only=True)
class Flags(CurveFlags):
    """Accuracy of a second pass on the zoomed image."""


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Flags, argv, "zoom-vit-zoom-curve")
    importances, keeps = args.settings
    experiment = begin(FLOWERS, args)
    dense, rows = measure(experiment, importances, keeps, args.max_images)
    write_rows(experiment, "zoom_curve", rows, dense_acc1=dense)
    draw(dense, rows, experiment.folder / "zoom_curve.png", title_of(experiment, rows))
    print(f"dense {dense:.2f}%; zoom_curve.csv, zoom_curve.json and zoom_curve.png are in {experiment.folder}")
    return 0


def measure(
    experiment: Experiment, importances: Sequence[str], keeps: Sequence[float], limit: int | None
) -> tuple[float, list[dict[str, Any]]]:
    """Accuracy of the first pass, and one row per setting: accuracy from the crop and from both passes, their changes
    from the first pass, and the mean area of the box, in percent or percentage points.
    """
    model = experiment.model
    settings = [(name, keep) for name in importances for keep in keeps]
    firsts: list[Tensor] = []
    seen: dict[tuple[str, float], list[Tensor]] = {s: [] for s in settings}  # (3, B): crop correct, both correct, area
    with (
        torch.no_grad(),
        tqdm(total=len(experiment.numbers(limit)), disable=not sys.stderr.isatty(), leave=False) as bar,
    ):
        for _, images, targets in experiment.batches(limit):
            first = model(images).softmax(1)
            firsts.append((first.argmax(1) == targets).cpu().double())
            size = (images.shape[2], images.shape[3])
            maps = {name: importance_map(model, images, name) for name in importances}
            for name, keep in settings:
                second = model(crop_zoom(images, maps[name], keep)).softmax(1)
                boxes = zoom_boxes(maps[name], keep, size)
                area = (boxes[:, 2] * boxes[:, 3]).double() / (size[0] * size[1])
                hits = [(p.argmax(1) == targets).double() for p in (second, first + second)]
                seen[name, keep].append(torch.stack([*hits, area]).cpu())
            bar.update(len(images))
    dense = 100 * torch.cat(firsts).numpy()
    rows = [_row(name, keep, 100 * torch.cat(parts, 1).numpy(), dense) for (name, keep), parts in seen.items()]
    return float(dense.mean()), rows


def _row(name: str, keep: float, columns: np.ndarray, dense: np.ndarray) -> dict[str, Any]:
    crop, both, area = columns
    rng = np.random.default_rng(0)
    row: dict[str, Any] = {"importance": name, "keep_ratio": keep, "images": len(dense)}
    row |= {"crop_acc1": float(crop.mean()), "both_acc1": float(both.mean())}
    for column, values in (("crop_change", crop - dense), ("both_change", both - dense), ("box_area", area)):
        row[column], row[f"{column}_low"], row[f"{column}_high"] = interval(values, 2000, rng)
    return row


def title_of(experiment: Experiment, rows: Sequence[dict[str, Any]]) -> str:
    return f"{experiment.trained.settings['model']}, {experiment.dataset.name}: {rows[0]['images']:,} images"


def draw(dense: float, rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Plot accuracy against keep ratio, one line per importance: from the crop alone, and from both passes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    pairs = (("crop_acc1", "from the crop"), ("both_acc1", "mean of both passes"))
    for ax, (name, label) in zip(figure.subplots(1, 2), pairs, strict=True):
        for importance in dict.fromkeys(r["importance"] for r in rows):
            line = [r for r in rows if r["importance"] == importance]
            style = {"color": "#777777", "linestyle": "--"} if importance == "random" else {}
            x, y = [r["keep_ratio"] for r in line], [r[name] for r in line]
            ax.plot(x, y, marker="o", ms=3.5, label=importance, **style)
        ax.axhline(dense, color="black", lw=0.8, ls=":", label="the whole image")
        ax.set(title=label, xlabel="keep ratio: share of patches in the box", ylabel="top-1 accuracy, %")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
