"""Plot accuracy and loss by epoch of several runs in one figure (original: its plotting cells).

uv run selective-vit-plot-logs checkpoints/RUN_A checkpoints/RUN_B --output curves.png
uv run selective-vit-plot-logs vit_log.csv selectivevit_log.csv        logs written by the original's notebook
"""

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vit_core.commands import curves
from vit_core.errors import UserError
from vit_core.flags import REQUIRED, command, flag

# Columns of the notebook's log (cell 11), with accuracies from 0 to 1, and our names, in percent.
COLUMNS = {
    "Epoch": "epoch",
    "Train Loss": "train_loss",
    "Train Acc": "train_acc1",
    "Test Loss": "val_loss",
    "Test Acc": "val_acc1",
}


@dataclass(frozen=True, kw_only=True)
class Flags(curves.CurveFlags):
    """Plot the training curves of run folders, or of logs written by the original's notebook."""

    runs: tuple[Path, ...] = flag(
        REQUIRED, "run folders with a metrics.csv, or CSV files written by the original's notebook", positional=True
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    return curves.run("selective-vit-plot-logs", argv, read, Flags)


def read(run: Path) -> Sequence[dict[str, str]]:
    """Rows as in metrics.csv, of a run folder or of a log of the notebook. UserError for a file that is neither.

    The notebook appends to an existing log: of several trainings in one file, the last one is returned.
    """
    if not run.is_file():
        return curves.read_metrics(run)
    try:
        with run.open(newline="", encoding="utf-8-sig") as f:
            lines = csv.DictReader(f)
            if list(lines.fieldnames or ()) != list(COLUMNS):
                raise UserError(f"{run} is not a notebook log: its columns must be {', '.join(COLUMNS)}")
            rows = [_ours(line) for line in lines]
    except (UnicodeDecodeError, csv.Error, TypeError, ValueError) as e:
        raise UserError(f"{run} cannot be read as a notebook log: {e}") from e
    starts = [i for i, row in enumerate(rows) if i == 0 or int(row["epoch"]) <= int(rows[i - 1]["epoch"])]
    if len(starts) > 1:
        print(f"{run} contains {len(starts)} trainings; only the last one is plotted")
    if not rows:
        raise UserError(f"{run} contains no epochs yet")
    return rows[starts[-1] :]


def _ours(line: dict[str, str]) -> dict[str, str]:
    row = {ours: line[theirs] for theirs, ours in COLUMNS.items()}
    for name in ("train_acc1", "val_acc1"):
        row[name] = f"{100 * float(row[name]):.6g}"
    return row | {"epoch": str(int(row["epoch"]))}


if __name__ == "__main__":
    sys.exit(main())
