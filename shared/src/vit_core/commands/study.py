"""Studies: train several models with the same recipe and seeds, measure each, and tabulate the results.

A study is a folder. Running the same command again skips what is finished and resumes what was interrupted.
Models are measured after the last epoch: choosing the best epoch would be model selection on the test images.
"""

import csv
import dataclasses
import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from vit_core.commands import train as train_command
from vit_core.commands.images import check_classes, load_images
from vit_core.commands.settings import Run, settle
from vit_core.commands.trained_model import TrainedModel, load_trained
from vit_core.data import AugmentConfig, BatchLoader, Dataset
from vit_core.errors import UserError
from vit_core.files import locked, replacing, write_whole
from vit_core.flags import flag, spelled
from vit_core.training.checkpoint import load_checkpoint
from vit_core.training.config import DataConfig, TrainConfig
from vit_core.training.distributed import World, pick_device
from vit_core.training.evaluation import evaluate
from vit_core.training.precision import choose_precision
from vit_core.training.run_folder import git_commit
from vit_core.training.trainer import Stopped

if TYPE_CHECKING:
    from vit_core.recipe import Recipe

Measurement = dict[str, Any]
_RECORD = TypeAdapter(dict[str, dict[str, Any]])  # study.json: row -> its settings


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What `measure` receives for a row: the model after its last epoch, and the images it was validated on."""

    trained: TrainedModel
    dataset: Dataset
    world: World
    run: Run

    def loader(self, limit: int | None = None) -> BatchLoader:
        """The evaluation split with the training batch size; with `limit`, only that many images, evenly spaced."""
        return self.trained.loader(
            self.dataset,
            self.world,
            batch_size=self.run.train.batch_size,
            num_workers=self.run.data.num_workers,
            limit=limit,
        )


@dataclass(frozen=True, kw_only=True)
class StudyFlags:
    """The flags of every study; a script's own dataclass sets their defaults."""

    seeds: tuple[int, ...] = flag((0,), "random seeds of each row")
    output_dir: Path = flag(Path("./study"), "folder of the study", metavar="DIR")

    def __post_init__(self) -> None:
        if not all(0 <= seed < 2**32 for seed in self.seeds) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("--seeds must be different integers from 0 to 4294967295")


def nothing_more(subject: Subject) -> Measurement:
    """Default of `Study.measure`: no columns besides accuracy and parameter count."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Study:
    """Rows to train and measure with each seed.

    Args:
        rows: label -> flags of its training, as `settings.parse` returns them.
        measure: computes further columns of a row.
        measured_by: settings that `measure` depends on; all measurements in a folder must use the same.
        announce: called with row and seed before each is trained or measured.
    """

    recipe: "Recipe"
    rows: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    folder: Path
    measure: Callable[[Subject], Measurement] = nothing_more
    measured_by: Mapping[str, Any] = field(default_factory=dict)
    announce: Callable[[str, int], None] = lambda row, seed: print(f"\n{row}, seed {seed}", flush=True)
    on_step: Callable[[float], None] = train_command.nothing_on_step  # called with the fraction of training completed

    def run(self) -> list[Measurement]:
        """Train and measure what is missing in measurements.csv.

        UserError if a training fails or another process uses the folder.
        """
        with self._begin():
            done = self._read()
            for row, seed in self._missing(done):
                self.announce(row, seed)
                self._train(row, seed)
                done.append(self._measure(row, seed))
                write_measurements(self.folder, done)
            return self._of_this(done)

    def train(self) -> None:
        """Train what is missing, without measuring. Errors: see `run`."""
        with self._begin():
            for row, seed in self._missing([]):
                self.announce(row, seed)
                self._train(row, seed)

    def measure_trained(self) -> list[Measurement]:
        """Measure what `train` trained. UserError if a row has no run yet; other errors: see `run`."""
        with self._begin():
            done = self._read()
            for row, seed in self._missing(done):
                self.announce(row, seed)
                done.append(self._measure(row, seed))
                write_measurements(self.folder, done)
            return self._of_this(done)

    @contextmanager
    def _begin(self) -> Iterator[None]:
        """Lock the folder during the block, after checks of the rows."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("studies run in a single process: start the command without torchrun")
        ours = {"resume", "seed", "save_dir", "log_dir"} & {name for given in self.rows.values() for name in given}
        if ours:
            raise UserError(
                f"{spelled(min(ours))} is not available here: a study resumes by itself; use --seeds and --output-dir"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder):
            self._check_identity()
            yield

    def _missing(self, done: Sequence[Measurement]) -> list[tuple[str, int]]:
        known = {(m["row"], int(m["seed"])) for m in done}
        return [(row, seed) for seed in self.seeds for row in self.rows if (row, seed) not in known]

    def _of_this(self, done: Sequence[Measurement]) -> list[Measurement]:
        return [m for m in done if m["row"] in self.rows and int(m["seed"]) in self.seeds]

    def settled(self, row: str) -> Run:
        """The resolved settings of a row, without early stopping: all rows train for their full number of epochs."""
        run = settle(self.recipe, self.rows[row], None)
        return dataclasses.replace(run, train=dataclasses.replace(run.train, early_stopping=None))

    def title(self, what: str) -> str:
        """`what` ("Ablation of …") followed by the dataset and number of epochs of the first row."""
        run = self.settled(next(iter(self.rows)))
        named = run.data.dataset == "imagefolder" and run.data.data_path
        images = Path(run.data.data_path or "").name if named else run.data.dataset
        return f"{what}: {images}, {run.train.epochs} epochs"

    def _check_identity(self) -> None:
        """Check the rows against study.json, and add new ones. UserError if a row there has other settings."""
        file = self.folder / "study.json"
        try:
            earlier = _RECORD.validate_json(file.read_bytes()) if file.is_file() else {}
        except ValidationError as e:
            raise UserError(f"{file} is damaged ({e.errors()[0]['msg']}); choose another --output-dir") from e
        for row in self.rows:
            settings = json.loads(json.dumps({**dataclasses.asdict(self.settled(row)), **self.measured_by}))
            for part in ("train", "data"):  # these do not define the row
                for name in ("device", "num_workers", "seed"):
                    settings[part].pop(name, None)
            known = earlier.setdefault(row, settings)
            for part, config in (("train", TrainConfig()), ("data", DataConfig()), ("augment", AugmentConfig())):
                for name in settings[part].keys() - known.get(part, {}).keys():  # flags added since then
                    known.setdefault(part, {})[name] = getattr(config, name)
            if known != settings:
                other = [k for k in settings if known.get(k) != settings[k]]
                raise UserError(
                    f"{self.folder} contains another study: row {row} differs in {', '.join(other)}; "
                    "choose another --output-dir"
                )
        write_whole(file, json.dumps(earlier, indent=2) + "\n")

    def _place(self, row: str, seed: int) -> Path:
        return self.folder / "runs" / f"{row.replace(' ', '')}_seed{seed}"

    def checkpoint(self, row: str, seed: int) -> Path | None:
        """last.pth of the row's run, or None."""
        found = sorted(self._place(row, seed).glob("*/last.pth"))
        return found[-1] if found else None

    def _train(self, row: str, seed: int) -> None:
        place = self._place(row, seed)
        epochs = self.settled(row).train.epochs
        given = {**self.rows[row], "seed": seed, "save_dir": str(place), "log_dir": str(place / "events")}
        given["early_stopping"] = epochs  # never
        last = self.checkpoint(row, seed)
        if last is not None:
            if load_checkpoint(last)["epoch"] >= epochs:
                return
            given["resume"] = str(last)
        try:
            train_command.train(self.recipe, given, self.on_step)
        except Stopped as stopped:
            print(f"{stopped}\nresume with: the same command")
            raise SystemExit(128 + stopped.signal_number) from None

    def subject(self, row: str, seed: int) -> Subject:
        """The row's model after its last epoch. UserError if it has no run."""
        last = self.checkpoint(row, seed)
        if last is None:
            raise UserError(f"{self._place(row, seed)} contains no run: train the study first")
        run = self.settled(row)
        world = World(0, 1, pick_device(run.train.device))
        trained = load_trained(self.recipe, last, world.device)
        dataset = load_images(run.data, trained.settings["img_size"], world)
        check_classes(trained.settings, last, dataset, run.data.dataset)
        return Subject(trained=trained, dataset=dataset, world=world, run=run)

    def _measure(self, row: str, seed: int) -> Measurement:
        subject = self.subject(row, seed)
        model, run = subject.trained.model, subject.run
        result = evaluate(model, subject.loader(), choose_precision(run.train.amp, subject.world.device))
        row_of: Measurement = {
            "row": row,
            "seed": seed,
            "epochs": run.train.epochs,
            "acc1": result.acc1,
            "acc5": result.acc5,
            "parameters": sum(p.numel() for p in model.parameters()),
        }
        return row_of | self.measure(subject) | {"git_commit": git_commit()}

    def _read(self) -> list[Measurement]:
        file = self.folder / "measurements.csv"
        if not file.is_file():
            return []
        try:
            with file.open(newline="") as f:
                rows = [{k: v for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(f)]
            for row in rows:
                for name in ("acc1", "acc5", "seed"):
                    float(row[name])
                row["row"], int(row["seed"])
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{file} is damaged ({e!r}): remove the invalid lines, or the file") from e
        return rows


def write_measurements(folder: Path, measurements: Sequence[Measurement]) -> None:
    """Write measurements.csv: one line per measurement, with the union of their columns."""
    with replacing(folder / "measurements.csv") as temporary, temporary.open("w", newline="") as f:
        writer = csv.DictWriter(f, list(dict.fromkeys(name for m in measurements for name in m)))
        writer.writeheader()
        for m in measurements:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in m.items()})


def column(measurements: Sequence[Measurement], row: str, name: str) -> list[float]:
    """The values of one row, one per seed."""
    return [float(m[name]) for m in measurements if m["row"] == row and name in m]


def mean_and_spread(values: Sequence[float], digits: int = 1) -> str:
    """ "62.1 ± 0.4": mean and standard deviation over the seeds; "—" without values."""
    if not values:
        return "—"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def markdown_table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in rows)


def bars(ax: Any, measurements: Sequence[Measurement], rows: Sequence[str], name: str, label: str) -> None:
    """Plot one column on matplotlib axes, rows from top to bottom: bars are means, dots are seeds."""
    for place, row in enumerate(rows):
        values = column(measurements, row, name)
        if not values:
            ax.text(0, place, " not measured", va="center", fontsize=9)
            continue
        ax.barh(place, statistics.fmean(values), color="#9db8d2", height=0.6)
        ax.plot(values, [place] * len(values), "o", color="#1f3b57", markersize=5)
    ax.set(xlabel=label, xlim=(0, None))
    ax.set_yticks(range(len(rows)), rows)
    if not ax.yaxis_inverted():
        ax.invert_yaxis()
