"""Accuracy and sparsity by threshold: train a model with each τ, or evaluate one trained model with each τ.

    uv run selective-vit-threshold-sweep --seeds 0 1 --dataset imagefolder --data-path DIR --model selective_micro
    uv run selective-vit-threshold-sweep --checkpoint checkpoints/RUN/best.pth

Without --checkpoint, all flags of selective-vit-train are accepted and apply to every training; repeat the command to
resume an interrupted sweep. Writes measurements.csv, table.md and sweep.png.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from selective_vit.attention import EMPTY_ROWS, MODES
from selective_vit.model import make_selective
from selective_vit.recipe import RECIPE
from vit_core.commands.settings import parse_with
from vit_core.commands.study import (
    Measurement,
    Study,
    StudyFlags,
    column,
    markdown_table,
    mean_and_spread,
    write_measurements,
)
from vit_core.commands.trained_model import AmpFlags, ImageFlags, load_trained
from vit_core.data import BatchLoader
from vit_core.errors import UserError
from vit_core.explain import measure_sparsity
from vit_core.flags import command, flag, parse, spelled
from vit_core.ledger.statistics import differences_to_baseline
from vit_core.training.distributed import World, pick_device
from vit_core.training.evaluation import evaluate
from vit_core.training.precision import choose_precision

THRESHOLDS = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


PROG = "selective-vit-threshold-sweep"


@dataclass(frozen=True, kw_only=True)
class Flags(StudyFlags):
    """Accuracy and sparsity by threshold: train a model with each τ, or with --checkpoint evaluate one with each τ.

    Without --checkpoint the flags of selective-vit-train apply to every training; with it see the help of `--checkpoint
    FILE --help`. Repeat the command to resume an interrupted sweep.
    """

    seeds: tuple[int, ...] = flag((0, 1), "random seeds of each τ")
    output_dir: Path = flag(Path("./sweep"), "folder of the sweep", metavar="DIR")
    thresholds: tuple[float, ...] = flag(THRESHOLDS, "values of τ", metavar="τ")
    sparsity_images: int = flag(500, "images to measure sparsity on", least=1)
    checkpoint: str | None = flag(
        None, "evaluate this trained model, dense or selective, with each τ instead of training", metavar="FILE"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        outside = [t for t in self.thresholds if not 0 <= t < 1]
        if outside:
            raise ValueError(f"--thresholds must lie in [0, 1), got {outside[0]:g}")


@dataclass(frozen=True, kw_only=True)
class CheckpointSweepFlags(Flags, ImageFlags, AmpFlags):
    """Accuracy and sparsity of one trained model with each τ."""

    mode: str | None = flag(None, "thresholding formula (default: the model's; relu if dense)", choices=MODES)
    empty_row: str | None = flag(
        None, "rows in which no weight passes (default: the model's; argmax if dense)", choices=EMPTY_ROWS
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        ImageFlags.__post_init__(self)


@command
def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if any(word.partition("=")[0] == "--checkpoint" for word in words):
        one = parse(CheckpointSweepFlags, words, PROG)
        measurements, title = _one_model(one)
        one.output_dir.mkdir(parents=True, exist_ok=True)
        write_measurements(one.output_dir, measurements)
        return _write(one, measurements, title)
    return _write(*_trained(words))


def _write(args: Flags, measurements: list[Measurement], title: str) -> int:
    """Write the table and the plot. Returns the exit code."""
    rows, folder = list(dict.fromkeys(f"{t:g}" for t in args.thresholds)), args.output_dir
    text = table(measurements, rows)
    (folder / "table.md").write_text(text)
    draw(measurements, rows, folder / "sweep.png", title)
    print(f"\n{text}\nwrote measurements.csv, table.md and sweep.png to {folder}")
    return 0


def _trained(words: Sequence[str]) -> tuple[Flags, list[Measurement], str]:
    """Train a model with each τ and measure it."""
    args, given = parse_with(RECIPE, Flags, words, PROG)
    shared = {"model": "selective_micro", **given}
    other = {"threshold", "relative_threshold", "learned_threshold"} & shared.keys()
    if other:
        raise UserError(
            f"{spelled(min(other))} is not available here: a sweep sets fixed values of τ; use --thresholds"
        )
    if not RECIPE.models.get(shared["model"], "").startswith("selective"):
        raise UserError(
            f"--model {shared['model']}: a sweep trains one selective model; use selective or selective_micro"
        )
    study = Study(
        recipe=RECIPE,
        rows={f"{t:g}": {**shared, "threshold": t} for t in args.thresholds},
        seeds=args.seeds,
        folder=args.output_dir,
        measure=lambda s: sparsity_of(s.trained.model, s.loader(args.sparsity_images)),
        measured_by={"sparsity_images": args.sparsity_images},
    )
    return args, study.run(), study.title("Trained with each τ")


def sparsity_of(model: nn.Module, images: BatchLoader) -> Measurement:
    """Sparsity of the attention weights that the model applies, mean over blocks, heads and images."""
    tracker = measure_sparsity(model, images)
    first = next(iter(tracker.layers.values()))
    shares = {name: 100 * tracker.mean(name) for name in ("sparsity", "single_rows", "empty_rows")}
    return shares | {
        "active_tokens": tracker.mean("active_tokens"),
        "keys": first.keys,
        "sparsity_images": first.rows // first.keys,
    }


def _one_model(args: CheckpointSweepFlags) -> tuple[list[Measurement], str]:
    """Measure one trained model with each τ."""
    assert args.checkpoint is not None
    world = World(0, 1, pick_device(args.device))
    trained = load_trained(RECIPE, args.checkpoint, world.device, raw_weights=args.raw_weights)
    dataset, data = trained.dataset(args, world)
    size = {"batch_size": args.batch_size, "num_workers": args.num_workers}
    kwargs = trained.settings["model_kwargs"]
    mode, empty_row = args.mode or kwargs.get("mode", "relu"), args.empty_row or kwargs.get("empty_row", "argmax")
    measurements = []
    for tau in dict.fromkeys(args.thresholds):
        make_selective(trained.model, tau, mode, empty_row)  # whatever threshold it was trained with
        result = evaluate(
            trained.model, trained.loader(dataset, world, **size), choose_precision(args.amp, world.device)
        )
        seed = trained.settings["train"]["seed"]
        measured: Measurement = {"row": f"{tau:g}", "seed": seed, "acc1": result.acc1, "acc5": result.acc5}
        measured |= sparsity_of(trained.model, trained.loader(dataset, world, limit=args.sparsity_images, **size))
        measurements.append(measured)
        print(f"τ {tau:g}: top-1 {result.acc1:.2f}%, {measured['sparsity']:.2f}% of the weights are zero", flush=True)
    return measurements, f"{trained.source.parent.name} with each τ: {data.dataset}"


def table(measurements: Sequence[Measurement], rows: Sequence[str]) -> str:
    """Markdown: one line per τ, each compared with the first, which is dense attention if it is 0.

    Differences are paired by seed, with a 95% interval corrected for the number of rows (Holm).
    """
    seeds = sorted({int(m["seed"]) for m in measurements})
    accuracies = {row: {int(m["seed"]): float(m["acc1"]) for m in measurements if str(m["row"]) == row} for row in rows}
    differences = differences_to_baseline(accuracies, rows[0])
    heads = [
        "τ",
        "τ N",
        f"top-1 % (seeds {', '.join(map(str, seeds))})",
        f"vs. τ = {rows[0]}, points (95%, paired, Holm)",
        "zero weights, %",
        "rows with at most one token, %",
    ]
    lines = []
    for row in rows:
        relative = float(row) * column(measurements, row, "keys")[0]
        shown = (mean_and_spread(column(measurements, row, name)) for name in ("sparsity", "single_rows"))
        accuracy = mean_and_spread(column(measurements, row, "acc1"), 2)
        lines.append([row, f"{relative:.2f}", accuracy, str(differences.get(row, "—")), *shown])
    return markdown_table(heads, lines)


def draw(measurements: Sequence[Measurement], rows: Sequence[str], path: Path, title: str) -> None:
    """Accuracy and sparsity by τ; dots are seeds, the line is their mean; the dashed line marks τ = 1/N."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    keys = int(column(measurements, rows[0], "keys")[0])
    positions = range(len(rows))
    values = [float(row) for row in rows]
    pairs = (("acc1", "top-1 accuracy, %"), ("sparsity", "zero weights, %"))
    for ax, (name, label) in zip(figure.subplots(1, 2), pairs, strict=True):
        columns = [column(measurements, row, name) for row in rows]
        ax.plot(positions, [sum(c) / len(c) for c in columns], "-", color="#9db8d2")
        for x, seeds in zip(positions, columns, strict=True):
            ax.plot([x] * len(seeds), seeds, "o", color="#1f3b57", markersize=5)
        between = sum(v < 1 / keys for v in values) - 0.5  # the values of τ are equally spaced
        if 0 < between < len(rows) - 1 and values == sorted(values):
            ax.axvline(between, color="#b03a2e", linestyle="--", lw=1)
            ax.text(
                between, 0.02, f" 1/N = {1 / keys:.4f}", color="#b03a2e", fontsize=8, transform=ax.get_xaxis_transform()
            )
        ax.set(xlabel="threshold τ", ylabel=label, xticks=positions, xticklabels=rows)
        ax.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
