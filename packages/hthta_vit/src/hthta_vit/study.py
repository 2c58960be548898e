"""Models under one recipe: train each with each seed, measure accuracy and FAP, write a table and a picture.

A study is a folder. What is finished in it is not done again, what was interrupted is resumed: give the same command.
Measured is the model after its last epoch: to take the best epoch would be to choose by the images that are tested on.
"""

import csv
import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vit_core import train_command
from vit_core.checkpoint import load_checkpoint
from vit_core.distributed import World, pick_device
from vit_core.errors import UserError
from vit_core.evaluation import evaluate
from vit_core.explain import measure_focus
from vit_core.precision import choose_precision
from vit_core.recipe import Recipe, Run, check_classes, load_images, settle
from vit_core.run_folder import git_commit
from vit_core.trained_model import load_trained

FIELDS = (
    "row", "seed", "epochs", "acc1", "fap", "fap_chance", "fap_random", "fap_images", "empty_cams", "parameters",
    "git_commit",
)  # fmt: skip
Measurement = dict[str, Any]
AttentionMaps = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Study:
    """recipe: of all rows. rows: label -> the flags that make the row. flags: those of `train` that all rows share."""

    recipe: Recipe
    rows: Mapping[str, Sequence[str]]
    flags: Sequence[str]
    seeds: Sequence[int]
    folder: Path
    fap_images: int
    attention_maps: Callable[[nn.Module], AttentionMaps | None]

    def run(self) -> list[Measurement]:
        """Train and measure what is missing in measurements.csv. UserError where a training does not end well."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_identity()
        done = self._read()
        for seed in self.seeds:
            for row in self.rows:
                if any(m["row"] == row and int(m["seed"]) == seed for m in done):
                    continue
                print(f"\n{row}, seed {seed}", flush=True)
                self._train(row, seed)
                done.append(self._measure(row, seed))
                self._write(done)
        return [m for m in done if m["row"] in self.rows and int(m["seed"]) in self.seeds]

    def settled(self, row: str) -> Run:
        """The run of a row, as its flags say. Without early stopping: all rows have the same budget."""
        run = settle(self.recipe, self.recipe.parse([*self.flags, *self.rows[row]]), None)
        return dataclasses.replace(run, train=dataclasses.replace(run.train, early_stopping=None))

    def title(self, what: str) -> str:
        """what: "Ablation of …"; with the images and the budget of the first row."""
        run = self.settled(next(iter(self.rows)))
        named = run.data.dataset == "imagefolder" and run.data.data_path
        images = Path(run.data.data_path or "").name if named else run.data.dataset
        return f"{what}: {images}, {run.train.epochs} epochs"

    def _check_identity(self) -> None:
        """study.json: what each row is. UserError where the folder's study has a row of that name that is another."""
        file = self.folder / "study.json"
        earlier = json.loads(file.read_text()) if file.is_file() else {}
        for row in self.rows:
            settings = json.loads(json.dumps({**dataclasses.asdict(self.settled(row)), "fap_images": self.fap_images}))
            for part in ("train", "data"):  # where it ran is not what it is
                for name in ("device", "num_workers", "seed"):
                    settings[part].pop(name, None)
            known = earlier.setdefault(row, settings)
            if known != settings:
                other = [k for k in settings if known.get(k) != settings[k]]
                raise UserError(
                    f"{self.folder} holds another study: row {row} differs in {', '.join(other)}; "
                    "choose another --output-dir"
                )
        file.write_text(json.dumps(earlier, indent=2) + "\n")

    def _place(self, row: str, seed: int) -> Path:
        return self.folder / "runs" / f"{row.replace(' ', '')}_seed{seed}"

    def _checkpoint(self, row: str, seed: int) -> Path | None:
        """last.pth of the row's run, if there is one."""
        found = sorted(self._place(row, seed).glob("*/last.pth"))
        return found[-1] if found else None

    def _train(self, row: str, seed: int) -> None:
        place = self._place(row, seed)
        flags = [*self.flags, *self.rows[row], "--seed", str(seed), "--save-dir", str(place)]
        flags += ["--log-dir", str(place / "events")]
        epochs = self.settled(row).train.epochs
        flags += ["--early-stopping", str(epochs)]  # never
        last = self._checkpoint(row, seed)
        if last is not None:
            if load_checkpoint(last)["epoch"] >= epochs:
                return
            flags += ["--resume", str(last)]
        code = train_command.run(self.recipe, flags)
        if code:
            raise SystemExit(code)  # after a signal; the command given again goes on

    def _measure(self, row: str, seed: int) -> Measurement:
        last = self._checkpoint(row, seed)
        if last is None:
            raise UserError(f"{self._place(row, seed)} holds no run")
        run = self.settled(row)
        world = World(0, 1, pick_device(run.train.device))
        trained = load_trained(self.recipe, last, world.device)
        dataset = load_images(run.data, trained.settings["img_size"], world)
        check_classes(trained.settings, last, dataset, run.data.dataset)
        size = {"batch_size": run.train.batch_size, "num_workers": run.data.num_workers}
        precision = choose_precision(run.train.amp, world.device)
        result = evaluate(trained.model, trained.loader(dataset, world, **size), precision)
        row_of: Measurement = {
            "row": row, "seed": seed, "epochs": run.train.epochs, "acc1": result.acc1,
            "parameters": sum(p.numel() for p in trained.model.parameters()), "git_commit": git_commit(),
        }  # fmt: skip
        maps = self.attention_maps(trained.model)
        if maps is None:
            return row_of
        try:
            focus = measure_focus(trained.model, trained.loader(dataset, world, limit=self.fap_images, **size), maps)
        except ValueError as e:  # this architecture has no such map: its accuracy stands
            print(f"note: no FAP for {row}: {e}")
            return row_of
        print(focus)
        row_of |= {
            "fap": focus.fap, "fap_chance": focus.chance, "fap_random": focus.random,
            "fap_images": focus.num_images, "empty_cams": focus.empty_cams,
        }  # fmt: skip
        return row_of

    def _read(self) -> list[Measurement]:
        file = self.folder / "measurements.csv"
        if not file.is_file():
            return []
        with file.open(newline="") as f:
            return [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(f)]

    def _write(self, measurements: Sequence[Measurement]) -> None:
        temporary = self.folder / ".measurements.csv"
        with temporary.open("w", newline="") as f:
            writer = csv.DictWriter(f, FIELDS)
            writer.writeheader()
            for m in measurements:
                writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in m.items()})
        temporary.replace(self.folder / "measurements.csv")


def mean_and_spread(values: Sequence[float], digits: int = 1) -> str:
    """ "62.1 ± 0.4": mean and standard deviation over the seeds; "—" for no value."""
    if not values:
        return "—"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def column(measurements: Sequence[Measurement], row: str, name: str) -> list[float]:
    """The values of one row, a seed each."""
    return [float(m[name]) for m in measurements if m["row"] == row and name in m]


def table(measurements: Sequence[Measurement], rows: Sequence[str], claimed: Mapping[str, tuple[str, str]]) -> str:
    """Markdown: a line a row. claimed: row -> what the paper says of its accuracy and its FAP."""
    seeds = sorted({int(m["seed"]) for m in measurements})
    lines = [
        f"| model | top-1 % (seeds {', '.join(map(str, seeds))}) | FAP % | chance | random maps "
        "| claimed top-1 | claimed FAP |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row, mean_and_spread(column(measurements, row, "acc1"), 2)]
        cells += [mean_and_spread(column(measurements, row, name)) for name in ("fap", "fap_chance", "fap_random")]
        lines.append("| " + " | ".join([*cells, *claimed.get(row, ("—", "—"))]) + " |")
    return "\n".join(lines) + "\n"


def picture(measurements: Sequence[Measurement], rows: Sequence[str], path: Path, title: str) -> Path:
    """Accuracy and FAP side by side: bars are means, dots are seeds, the dashed line is the chance level."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 1.4 + 0.55 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for ax, name, label in ((left, "acc1", "top-1 accuracy, %"), (right, "fap", "Focused Attention Percentage, %")):
        for place, row in enumerate(rows):
            values = column(measurements, row, name)
            if not values:
                ax.text(0, place, " no map to compare", va="center", fontsize=9)
                continue
            ax.barh(place, statistics.fmean(values), color="#9db8d2", height=0.6)
            ax.plot(values, [place] * len(values), "o", color="#1f3b57", markersize=5)
        ax.set(xlabel=label, xlim=(0, None))
    left.set_yticks(range(len(rows)), rows)
    left.invert_yaxis()
    for place, row in enumerate(rows):  # a row of its own grid has a chance level of its own
        for chance in column(measurements, row, "fap_chance")[:1]:
            right.vlines(chance, place - 0.4, place + 0.4, color="#b03a2e", linestyle="--")
            right.text(chance, place - 0.4, "chance", color="#b03a2e", fontsize=7, ha="center", va="bottom")
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=150)
    return path
