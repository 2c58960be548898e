"""How sparse a model's attention is: active tokens of each head in every block, and how this changes in training.

    uv run selective-vit-sparsity --checkpoint checkpoints/RUN/best.pth
    uv run selective-vit-sparsity --checkpoint checkpoints/RUN/epoch_*.pth      also a plot by epoch
    uv run selective-vit-sparsity --checkpoint DENSE.pth --threshold 0.01       what τ would remove from a dense model

Learned thresholds are printed by block and are a column of the table.

Writes sparsity.csv, active_tokens.png (for the last checkpoint), and with several checkpoints sparsity_by_epoch.png.
"""

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selective_vit.model import threshold_values, thresholds
from selective_vit.recipe import RECIPE
from vit_core.commands.trained_model import ImageFlags, load_trained
from vit_core.errors import UserError
from vit_core.explain import SparsityTracker, draw_heads, measure_sparsity
from vit_core.flags import REQUIRED, command, flag, parse
from vit_core.training.distributed import World, pick_device

FIELDS = (
    "checkpoint",
    "epoch",
    "block",
    "head",
    "threshold",
    "active_tokens",
    "keys",
    "sparsity",
    "empty_rows",
    "single_rows",
)


@dataclass(frozen=True, kw_only=True)
class Flags(ImageFlags):
    """Measure how sparse a model's attention is."""

    checkpoint: tuple[str, ...] = flag(REQUIRED, "checkpoints of one model", aliases=("model_path",), metavar="FILE")
    threshold: float = flag(0.0, "weights above this are active; 0: all that the model keeps")
    max_images: int = flag(500, "images of the evaluation split", least=1)
    output_dir: Path | None = flag(
        None, "folder for the results (default: `sparsity` next to the last checkpoint)", metavar="DIR"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold < 1:
            raise ValueError(f"--threshold must lie in [0, 1), got {self.threshold:g}")


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Flags, argv, "selective-vit-sparsity")
    world = World(0, 1, pick_device(args.device))
    rows: list[dict[str, Any]] = []
    means = []
    for file in args.checkpoint:
        trained = load_trained(RECIPE, file, world.device, raw_weights=args.raw_weights)
        dataset, _ = trained.dataset(args, world)
        size = {"batch_size": args.batch_size, "num_workers": args.num_workers}
        tracker = measure_sparsity(
            trained.model, trained.loader(dataset, world, limit=args.max_images, **size), args.threshold
        )
        epoch = trained.epoch
        keys = next(iter(tracker.layers.values())).keys
        values = threshold_values(trained.model, keys)
        rows += table(tracker, file, epoch, values, args.threshold)
        means.append((epoch, tracker))
        if tracker.layers.keys() != means[0][1].layers.keys():
            raise UserError(
                f"{file} and {args.checkpoint[0]} have different attention layers: give checkpoints of the same model"
            )
        print(
            f"{file}: epoch {epoch}, {100 * tracker.mean('sparsity'):.2f}% of the weights are zero, "
            f"{100 * tracker.mean('empty_rows'):.2f}% of the rows are empty"
        )
        if any(t.form.learned for t in thresholds(trained.model).values()):
            for name, taus in values.items():
                print(f"  {name}: τ {' '.join(f'{tau:.5f}' for tau in taus)}")
            print(f"  for comparison, 1/N = {1 / keys:.5f}")
    folder = args.output_dir or Path(args.checkpoint[-1]).parent / "sparsity"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "sparsity.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    layers = list(means[-1][1].layers.values())
    draw_heads(
        [layer.active_tokens.tolist() for layer in layers],
        folder / "active_tokens.png",
        label=f"active tokens of {layers[0].keys}",
        title=f"{Path(args.checkpoint[-1]).parent.name}, epoch {epoch}",
        limits=(0, max(layer.keys for layer in layers)),
    )
    written = "sparsity.csv and active_tokens.png"
    if len(means) > 1:
        draw_epochs(sorted(means, key=lambda m: m[0]), folder / "sparsity_by_epoch.png")
        written = "sparsity.csv, active_tokens.png and sparsity_by_epoch.png"
    print(f"wrote {written} to {folder}")
    return 0


def table(
    tracker: SparsityTracker, checkpoint: str, epoch: int, taus: Mapping[str, Sequence[float]], dense: float
) -> list[dict[str, Any]]:
    """One row per block and head. taus: one τ per selective layer, or one per head; dense: τ for the other layers."""

    def tau(name: str, head: int) -> float:
        return (list(taus.get(name, [dense])) * (head + 1))[head]

    return [
        {
            "checkpoint": checkpoint,
            "epoch": epoch,
            "block": block,
            "head": head,
            "keys": layer.keys,
            "threshold": f"{tau(name, head):.6g}",
            "active_tokens": f"{layer.active_tokens[head]:.4f}",
            "sparsity": f"{layer.sparsity[head]:.6f}",
            "empty_rows": f"{layer.empty_rows[head]:.6f}",
            "single_rows": f"{layer.single_rows[head]:.6f}",
        }
        for block, (name, layer) in enumerate(tracker.layers.items())
        for head in range(len(layer.active))
    ]


def draw_epochs(means: Sequence[tuple[int, SparsityTracker]], path: Path) -> None:
    """Plot the sparsity of each block and their mean by epoch."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.5, 3.8), layout="constrained")
    ax = figure.subplots()
    epochs = [epoch for epoch, _ in means]
    for block, name in enumerate(means[0][1].layers):
        ax.plot(
            epochs, [100 * float(t.layers[name].sparsity.mean()) for _, t in means], "--", label=f"block {block}", lw=1
        )
    ax.plot(epochs, [100 * t.mean("sparsity") for _, t in means], "k-o", markersize=4, label="mean")
    ax.set(xlabel="epoch", ylabel="zero weights, %", ylim=(0, 100))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
