"""Accuracy against throughput under token pruning: every importance, several layers, keep ratios from 1.0 to 0.1.

    uv run zoom-vit-pruning-curve --checkpoint FILE

Every batch runs through the dense model and all settings in turn, so that changes in machine speed affect all equally.
A speed-up is the median over the batches of dense time divided by pruned time. Counted multiply-adds include those of
the importance: the two with gradients first need a full forward and backward pass. Writes pruning_curve.csv, .json and
.png.
"""

import statistics
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vit_core.bench.pair import multiply_adds
from vit_core.errors import UserError
from vit_core.flags import command, flag, parse
from vit_core.training.evaluation import now
from zoom_vit.experiment import CurveFlags, Experiment, begin, write_rows
from zoom_vit.recipe import FLOWERS

Setting = tuple[str, int, float]  # importance, layer, keep ratio


@dataclass(frozen=True, kw_only=True)
class Flags(CurveFlags):
    """Accuracy against throughput under token pruning."""

    prune_layers: tuple[int, ...] = flag((), "blocks to prune after (default: ¼, ½, ¾ of them)")


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Flags, argv, "zoom-vit-pruning-curve")
    importances, keeps = args.settings
    experiment = begin(FLOWERS, args)
    depth = len(experiment.model.blocks)
    layers = sorted(set(args.prune_layers or [max(1, depth * i // 4) for i in (1, 2, 3)]))
    if not all(1 <= layer < depth for layer in layers):
        raise UserError(f"--prune-layers must lie in 1 … {depth - 1} for a model with {depth} blocks, got {layers}")
    rows = measure(experiment, importances, layers, keeps, args.max_images)
    write_rows(experiment, "pruning_curve", rows)
    draw(rows, experiment.folder / "pruning_curve.png", title_of(experiment, rows))
    print(f"\npruning_curve.csv, pruning_curve.json and pruning_curve.png are in {experiment.folder}")
    return 0


def measure(
    experiment: Experiment, importances: Sequence[str], layers: Sequence[int], keeps: Sequence[float], limit: int | None
) -> list[dict[str, Any]]:
    """One row for the dense model and one per setting: accuracy in percent, images/s, speed-up, multiply-adds."""
    model, device = experiment.model, experiment.world.device
    dense: Setting = ("dense", len(model.blocks), 1.0)
    settings = [dense, *((name, layer, keep) for name in importances for layer in layers for keep in keeps)]

    def logits_of(setting: Setting, images: torch.Tensor) -> torch.Tensor:
        name, layer, keep = setting
        if setting == dense:
            return model(images)
        return model.forward_pruned(images, keep, layer, name).logits

    hits = dict.fromkeys(settings, 0)
    seconds: dict[Setting, list[float]] = {s: [] for s in settings}
    gmacs = dict.fromkeys(settings, 0.0)
    numbers = experiment.numbers(limit)
    full = min(experiment.batch_size, len(numbers))
    with torch.no_grad(), tqdm(total=len(numbers), disable=not sys.stderr.isatty(), leave=False) as bar:
        for _, images, targets in experiment.batches(limit):
            if not gmacs[dense]:
                for setting in settings:
                    gmacs[setting] = multiply_adds(partial(logits_of, setting, images[:1])) / 1e9
                    logits_of(setting, images)  # warm-up, not timed
            for setting in settings:
                start = now(device)
                logits = logits_of(setting, images)
                if len(images) == full:  # a smaller last batch is not timed
                    seconds[setting].append((now(device) - start) / full)
                hits[setting] += int((logits.argmax(1) == targets).sum())
            bar.update(len(images))
    return [
        {
            "importance": s[0],
            "prune_layer": s[1],
            "keep_ratio": s[2],
            "images": len(numbers),
            "acc1": 100 * hits[s] / len(numbers),
            "images_per_second": 1 / statistics.median(seconds[s]),
            "speed_up": statistics.median(d / t for d, t in zip(seconds[dense], seconds[s], strict=True)),
            "gmacs": gmacs[s],
            "ideal_speed_up": gmacs[dense] / gmacs[s],
        }
        for s in settings
    ]


def title_of(experiment: Experiment, rows: Sequence[dict[str, Any]]) -> str:
    dense, model = rows[0], experiment.trained.settings["model"]
    return (
        f"{model}, {experiment.dataset.name}: {dense['images']:,} images, dense {dense['acc1']:.1f}% at "
        f"{dense['images_per_second']:.0f} images/s"
    )


def draw(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Plot accuracy against measured speed-up: one panel per layer, one line per importance, one dot per keep ratio."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    dense, pruned = rows[0], rows[1:]
    layers = sorted({r["prune_layer"] for r in pruned})
    figure = Figure(figsize=(4.2 * len(layers), 4.6), layout="constrained")
    axes = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    for ax, layer in zip(axes, layers, strict=True):
        for name in dict.fromkeys(r["importance"] for r in pruned):
            line = [r for r in pruned if r["importance"] == name and r["prune_layer"] == layer]
            style = {"color": "#777777", "linestyle": "--"} if name == "random" else {}
            x, y = [r["speed_up"] for r in line], [r["acc1"] for r in line]
            ax.plot(x, y, marker="o", ms=3.5, lw=1.3, label=name, **style)
        ax.axhline(dense["acc1"], color="black", lw=0.8, ls=":")
        ax.axvline(1, color="black", lw=0.8, ls=":")
        ax.set(title=f"pruned after block {layer}", xlabel="speed-up over the dense model (measured)", xscale="log")
        low, high = ax.get_xlim()
        ticks = [t for t in (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10) if low <= t <= high]
        ax.set_xticks(ticks, [f"{t:g}×" for t in ticks], fontsize=8)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("top-1 accuracy, %")
    axes[0].legend(fontsize=8)
    whole = f"{title}; keep ratios {pruned[0]['keep_ratio']:g} to {pruned[-1]['keep_ratio']:g}"
    figure.suptitle(textwrap.fill(whole, 52 * len(layers)), fontsize=10)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
