"""The `plot_logs` command of the papers: plot accuracy and loss per epoch of several runs."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vit_core.errors import UserError
from vit_core.flags import REQUIRED, flag, parse


def read_metrics(run: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv, one per epoch. UserError if there are none."""
    try:
        with (run / "metrics.csv").open(newline="") as f:
            rows = list(csv.DictReader(f))
    except UnicodeDecodeError as e:
        raise UserError(f"{run / 'metrics.csv'} is damaged: {e}") from e
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{run} is not a run folder: it has no metrics.csv") from None
    if not rows or "epoch" not in rows[0]:
        raise UserError(f"{run / 'metrics.csv'} contains no epochs yet")
    return rows


@dataclass(frozen=True, kw_only=True)
class CurveFlags:
    """Plot the training curves of run folders."""

    runs: tuple[Path, ...] = flag(REQUIRED, "run folders with a metrics.csv", positional=True)
    labels: tuple[str, ...] = flag((), "labels of the runs in the legend (default: their models)")
    output: Path = flag(Path("curves.png"), "image file", metavar="FILE", output=True)

    def __post_init__(self) -> None:
        if self.labels and len(self.labels) != len(self.runs):
            raise ValueError(f"--labels: got {len(self.labels)} labels for {len(self.runs)} runs")


Reader = Callable[[Path], Sequence[dict[str, str]]]  # reads a run's log: rows as in metrics.csv, one per epoch


def run(
    prog: str,
    argv: Sequence[str] | None = None,
    read: Reader = read_metrics,
    flags: type[CurveFlags] = CurveFlags,
) -> int:
    """Parse `argv`, plot, and print the picture's path. Returns the exit code.

    read: for papers whose original code writes its own log format; `flags` describes it in the help.
    """
    args = parse(flags, argv, prog)
    draw(args.runs, args.output, args.labels, read)
    print(f"curves: {args.output}")
    return 0


def draw(runs: Sequence[Path], picture: Path, labels: Sequence[str] | None = None, read: Reader = read_metrics) -> None:
    """Write the picture. UserError for a run without metrics."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    for number, folder in enumerate(runs):
        rows = read(folder)
        label = labels[number] if labels else _model_of(folder)
        color = f"C{number}"
        for ax, name in ((accuracy, "acc1"), (loss, "loss")):
            for split, style in (("val", "-o"), ("train", "--")):
                try:
                    seen = [(int(r["epoch"]), float(r[f"{split}_{name}"])) for r in rows if r.get(f"{split}_{name}")]
                except (TypeError, ValueError) as e:
                    raise UserError(f"{folder}: its log is damaged: {e}") from e
                if seen:
                    ax.plot(*zip(*seen, strict=True), style, color=color, markersize=3, label=f"{label}, {split}")
    if not accuracy.lines:
        raise UserError(f"{', '.join(map(str, runs))}: no epoch has an accuracy")
    accuracy.set(xlabel="epoch", ylabel="top-1 accuracy, %")
    loss.set(xlabel="epoch", ylabel="loss")
    for ax in (accuracy, loss):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
    accuracy.legend(fontsize=8)
    picture.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(picture, dpi=150)
    except ValueError as e:  # a suffix that matplotlib does not know
        raise UserError(f"{picture}: {e}") from e


def _model_of(run: Path) -> str:
    try:
        return str(json.loads((run / "config.json").read_text())["model"])
    except (OSError, ValueError, KeyError):
        return run.name
