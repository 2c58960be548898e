"""How good are the explanations? Deletion and insertion areas of Grad-CAM and attention rollout for several models.

    uv run selective-vit-judge --checkpoint DENSE.pth SELECTIVE.pth --max-images 500

All models and methods get the same images and explain the true class. Random maps are the control: a map that is not
better than random is not informative. Writes judgment.csv, table.md and curves.png.
"""

import csv
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selective_vit.recipe import RECIPE
from vit_core.commands.study import markdown_table
from vit_core.commands.trained_model import ImageFlags, load_trained
from vit_core.data import BatchLoader
from vit_core.errors import UserError
from vit_core.explain import Curves, attention_rollout, deletion_insertion, grad_cam
from vit_core.explain.deletion import BASELINES
from vit_core.flags import REQUIRED, command, flag, parse
from vit_core.training.distributed import World, pick_device

METHODS: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "Grad-CAM": lambda model, images, targets: grad_cam(model, images, targets),
    "rollout": lambda model, images, targets: attention_rollout(model, images),
}
FIELDS = ("model", "method", "deletion_area", "deletion_error", "insertion_area", "insertion_error", "images")


@dataclass(frozen=True, kw_only=True)
class Flags(ImageFlags):
    """Deletion and insertion areas of explanations."""

    checkpoint: tuple[str, ...] = flag(REQUIRED, "checkpoints to compare", aliases=("model_path",), metavar="FILE")
    labels: tuple[str, ...] = flag((), "names of the models in the results (default: model names)")
    max_images: int = flag(500, "images of the evaluation split", least=2)
    steps: int = flag(16, "steps per curve", least=1)
    baseline: str = flag("mean", "replacement for removed patches", choices=BASELINES)
    output_dir: Path = flag(Path("./judgment"), "folder for the results", metavar="DIR")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels and len(self.labels) != len(self.checkpoint):
            raise ValueError(
                f"--labels: {len(self.labels)} names for {len(self.checkpoint)} checkpoints; give one per checkpoint"
            )


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Flags, argv, "selective-vit-judge")
    world = World(0, 1, pick_device(args.device))
    curves: dict[tuple[str, str], Curves] = {}
    for number, file in enumerate(args.checkpoint):
        trained = load_trained(RECIPE, file, world.device, raw_weights=args.raw_weights)
        dataset, _ = trained.dataset(args, world)
        size = {"batch_size": args.batch_size, "num_workers": args.num_workers}
        loader = trained.loader(dataset, world, limit=args.max_images, **size)
        several = len(args.checkpoint) > 2  # may be of one model: distinguish them by file
        name = f"{trained.source.parent.name}/{trained.source.stem}" if several else trained.settings["model"]
        name = args.labels[number] if args.labels else name
        if (name, "random") in curves:
            raise UserError(f"--checkpoint: two models are named {name}; give distinct --labels")
        try:
            judged = judge(trained.model, loader, steps=args.steps, baseline=args.baseline)
        except ValueError as e:  # more steps than patches, or a model without these maps
            raise UserError(f"{file}: {e}") from e
        curves |= {(name, method): c for method, c in judged.items()}
    folder = args.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row_of(model, method, c) for (model, method), c in curves.items()]
    with (folder / "judgment.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    text = table(rows)
    (folder / "table.md").write_text(text)
    draw(curves, folder / "curves.png")
    print(f"{text}\nwrote judgment.csv, table.md and curves.png to {folder}")
    return 0


def judge(
    model: nn.Module, loader: BatchLoader, *, steps: int = 16, baseline: str = "mean", seed: int = 0
) -> dict[str, Curves]:
    """Curves of all images for each method and for random maps; the maps explain the true class."""
    generator = torch.Generator().manual_seed(seed)  # the same random maps and tie-breaking for every model
    parts: dict[str, list[Curves]] = {}
    for images, targets in loader.epoch():
        maps = {name: method(model, images, targets) for name, method in METHODS.items()}
        maps["random"] = torch.rand(maps["Grad-CAM"].shape, generator=generator).to(images.device)
        for name, heat in maps.items():
            done = deletion_insertion(model, images, heat, targets, steps=steps, baseline=baseline, generator=generator)
            parts.setdefault(name, []).append(done)
    return {
        name: Curves(c[0].shares, torch.cat([p.deletion for p in c]), torch.cat([p.insertion for p in c]))
        for name, c in parts.items()
    }


def row_of(model: str, method: str, curves: Curves) -> dict[str, Any]:
    """Mean areas over the images, in percent, with their standard errors."""
    areas = {"deletion": 100 * curves.deletion_area, "insertion": 100 * curves.insertion_area}
    row: dict[str, Any] = {"model": model, "method": method, "images": len(curves.deletion)}
    for name, values in areas.items():
        row[f"{name}_area"] = f"{float(values.mean()):.3f}"
        row[f"{name}_error"] = f"{float(values.std()) / len(values) ** 0.5:.3f}"
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    heads = ["model", "map", "deletion area, % (lower is better)", "insertion area, % (higher is better)"]
    lines = []
    for r in rows:
        areas = (f"{float(r[f'{n}_area']):.1f} ± {float(r[f'{n}_error']):.1f}" for n in ("deletion", "insertion"))
        lines.append([r["model"], r["method"], *areas])
    return markdown_table(heads, lines)


def draw(curves: dict[tuple[str, str], Curves], path: Path) -> None:
    """Mean curves: one row per model, one column for deletion and one for insertion."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(model for model, _ in curves))
    figure = Figure(figsize=(9.5, 0.6 + 2.9 * len(models)), layout="constrained")
    axes = figure.subplots(len(models), 2, squeeze=False, sharey=True)
    for (model, method), c in curves.items():
        style = {"color": "#777777", "linestyle": "--"} if method == "random" else {}
        for ax, name in zip(axes[models.index(model)], ("deletion", "insertion"), strict=True):
            values = getattr(c, name).mean(0).tolist()
            ax.plot([100 * s for s in c.shares.tolist()], values, label=method, **style)
            ax.set_title(textwrap.fill(f"{model}: {name}", 48), fontsize=9)
            ax.set(xlabel=f"patches {'removed' if name == 'deletion' else 'inserted'}, %")
            ax.set_ylabel("probability of the true class")
            ax.grid(alpha=0.3)
            ax.legend(fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
