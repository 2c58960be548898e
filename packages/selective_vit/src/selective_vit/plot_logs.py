"""Curves of several runs in one picture: accuracy and loss by epoch (original: its plotting cells).

uv run selective-vit-plot-logs checkpoints/RUN_A checkpoints/RUN_B --output curves.png
uv run selective-vit-plot-logs vit_log.csv selectivevit_log.csv        logs that the original's notebook wrote
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from vit_core.commands import curves
from vit_core.errors import UserError
from vit_core.flags import command

# Columns of the notebook's log (cell 11), accuracies as shares of one, and ours, in percent.
COLUMNS = {
    "Epoch": "epoch", "Train Loss": "train_loss", "Train Acc": "train_acc1", "Test Loss": "val_loss",
    "Test Acc": "val_acc1",
}  # fmt: skip


@command
def main(argv: Sequence[str] | None = None) -> int:
    return curves.run("selective-vit-plot-logs", argv, read, ", or CSV files that the original's notebook wrote")


def read(run: Path) -> Sequence[dict[str, str]]:
    """Rows as in metrics.csv: of a run folder, or of one of the notebook's logs. UserError for a file that is neither.

    The notebook appends to a log that exists already: where it holds several trainings, the last one counts.
    """
    if not run.is_file():
        return curves.read_metrics(run)
    try:
        with run.open(newline="", encoding="utf-8-sig") as f:
            lines = csv.DictReader(f)
            if list(lines.fieldnames or ()) != list(COLUMNS):
                raise UserError(f"{run} is no log of the original's notebook: its columns are not {', '.join(COLUMNS)}")
            rows = [_ours(line) for line in lines]
    except (UnicodeDecodeError, csv.Error, TypeError, ValueError) as e:
        raise UserError(f"{run} is damaged: {e}") from e
    starts = [i for i, row in enumerate(rows) if i == 0 or int(row["epoch"]) <= int(rows[i - 1]["epoch"])]
    if len(starts) > 1:
        print(f"{run} holds {len(starts)} trainings: the last one is drawn")
    if not rows:
        raise UserError(f"{run} holds no epoch yet")
    return rows[starts[-1] :]


def _ours(line: dict[str, str]) -> dict[str, str]:
    row = {ours: line[theirs] for theirs, ours in COLUMNS.items()}
    for name in ("train_acc1", "val_acc1"):
        row[name] = f"{100 * float(row[name]):.6g}"
    return row | {"epoch": str(int(row["epoch"]))}


if __name__ == "__main__":
    sys.exit(main())
