"""The steps of a reproduction for one paper: train, evaluate, analyze, claims. Each returns JSON values."""

import dataclasses
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from vit_core.commands.curves import read_metrics
from vit_core.commands.study import Study
from vit_core.errors import UserError
from vit_core.flags import spelled
from vit_core.ledger.claims import Claim, Measured, Outcome, Run, Value, cells, load_claims
from vit_core.ledger.verdicts import Cell, Found, Trained, Verdict, judge
from vit_core.papers import Paper, Training
from vit_core.recipe import Recipe

Report = Callable[[float, str], None]  # (fraction of the step completed, current item)
Step = Literal["train", "evaluate", "analyze", "claims"]
STEPS: tuple[Step, ...] = get_args(Step)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Training options from the command line; stored in the run folder."""

    preset: str = "micro"
    dataset: str | None = None
    data_path: str | None = None
    download: bool = False
    epochs: int | None = None
    seeds: tuple[int, ...] = (42,)
    device: str = "auto"

    def over(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A training's flags, as returned by `settings.parse`, overridden by those of the command line."""
        path, own = self.data_path, given.get("data_path")
        if self.dataset is None and own is not None:  # the training's own dataset: a given path replaces data/
            path = str(Path(path) / Path(own).name) if path else own
        chosen = {
            "dataset": self.dataset,
            "data_path": path,
            "epochs": self.epochs,
            "download": self.download or None,
            "device": self.device,
        }
        rest = {k: v for k, v in given.items() if k != "data_path"}
        return rest | {k: v for k, v in chosen.items() if v is not None}


def studies(paper: Paper, options: Options, folder: Path, report: Report | None = None) -> dict[str, Study]:
    """The trainings of a paper under `folder`, by name. report: called with the fraction of all trainings completed."""
    found: dict[str, Study] = {}
    trainings = paper.trainings(options.preset)
    total = sum(len(t.rows) for t in trainings) * len(options.seeds)
    begun = 0  # rows started so far, over all trainings
    label = ""

    def announce(row: str, seed: int) -> None:
        nonlocal begun, label
        label, begun = f"{row}, seed {seed}" if len(options.seeds) > 1 else row, begun + 1
        print(f"\n{row}, seed {seed}", flush=True)

    def watch(share: float) -> None:
        if report is not None:
            report((begun - 1 + share) / total, label)

    for training in trainings:
        rows = {row: options.over(given) for row, given in training.rows.items()}
        found[training.name] = Study(
            recipe=training.recipe,
            rows=rows,
            seeds=options.seeds,
            folder=folder / training.name,
            announce=announce,
            on_step=watch,
        )
    return found


class Incomplete(UserError):
    """Some trainings of a paper failed; `record` is the step's result for the others."""

    def __init__(self, problems: Sequence[str], record: dict[str, Any]) -> None:
        super().__init__("; ".join(problems))
        self.record = record


def train(paper: Paper, options: Options, folder: Path, report: Report) -> dict[str, Any]:
    """Run all trainings; one that fails, for example for lack of its dataset, does not stop the others."""
    problems = []
    for name, study in studies(paper, options, folder, report).items():
        try:
            study.train()
        except UserError as e:
            problems.append(f"{name}: {e}")
            print(problems[-1])
    if problems:
        raise Incomplete(problems, {})
    return {}


def evaluate(paper: Paper, options: Options, folder: Path, report: Report) -> dict[str, Any]:
    """Accuracy after the last epoch, and the training curves."""
    trainings: list[dict[str, Any]] = []
    problems = []
    for training, study in _pairs(paper, options, folder, report):
        try:
            measured = study.measure_trained()
        except UserError as e:
            problems.append(f"{training.name}: {e}")
            continue
        rows = []
        for label in study.rows:
            seeds = [_seed(study, m) for m in measured if m["row"] == label]
            first = next(m for m in measured if m["row"] == label)
            rows.append(
                {
                    "label": label,
                    "model": study.settled(label).model,
                    "parameters": int(first["parameters"]),
                    "command": as_command(training.recipe, study.rows[label], options.seeds),
                    "seeds": seeds,
                }
            )
        run = study.settled(next(iter(study.rows)))
        trainings.append({"name": training.name, "dataset": run.data.dataset, "rows": rows})
    if problems and not trainings:
        raise UserError("; ".join(problems))
    if problems:
        raise Incomplete(problems, {"trainings": trainings})
    return {"trainings": trainings}


def _seed(study: Study, measured: Mapping[str, Any]) -> dict[str, Any]:
    seed = int(measured["seed"])
    last = study.checkpoint(measured["row"], seed)
    names = ("train_loss", "train_acc1", "val_loss", "val_acc1")
    curve = [
        {"epoch": int(r["epoch"])} | {n: float(r[n]) if r[n] else None for n in names}
        for r in (read_metrics(last.parent) if last else [])
    ]
    figures = {name: float(measured[name]) for name in ("acc1", "acc5")}
    return {"seed": seed, "epochs": int(measured["epochs"]), **figures, "curve": curve, "where": _where(last)}


def _where(checkpoint: Path | None) -> dict[str, str]:
    """Commit, date and machine of the training of a checkpoint."""
    try:
        config = json.loads((checkpoint.parent / "config.json").read_text(encoding="utf-8")) if checkpoint else {}
        found, device = config["environment"], config["train"]["device"]
    except (OSError, ValueError, KeyError):
        return {"commit": "unknown", "date": "unknown", "machine": "unknown"}
    machine = found["machine"] + (f", {found['gpu']}" if found["gpu"] and device != "cpu" else "")
    return {"commit": found["git_commit"] or "no checkout", "date": found["date"][:10], "machine": machine}


def analyze(paper: Paper, options: Options, folder: Path, report: Report) -> dict[str, Any]:
    """The paper's own analysis of the first training's models, with the first seed."""
    study = next(iter(studies(paper, options, folder).values()))
    subjects = {row: study.subject(row, options.seeds[0]) for row in study.rows}
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    analysis = paper.analyze(subjects, study.measure_trained(), pictures)
    shown = [{**p._asdict(), "file": f"{folder.name}/pictures/{p.file}"} for p in analysis.pictures]
    tables = [{**t._asdict(), "rows": [list(row) for row in t.rows]} for t in analysis.tables]
    return {"analysis": {"findings": list(analysis.findings), "pictures": shown, "tables": tables}}


def claims(paper: Paper, options: Options, folder: Path, report: Report) -> dict[str, Any]:
    """Every claim with its verdict; with the papers' own recipes, accuracy claims are judged by this run's results."""
    file = folder / "evaluate.json"
    recipes = options.preset == "paper" and options.dataset is None and options.epochs is None
    trainings = json.loads(file.read_text(encoding="utf-8"))["trainings"] if recipes and file.is_file() else []
    verdicts = verdicts_of(paper, report, lambda outcomes: reached(trainings, outcomes))
    return {"claims": [as_record(v) for v in verdicts]}


def reached(trainings: Sequence[Mapping[str, Any]], outcomes: Sequence[Outcome]) -> Measured | None:
    """A claim's outcomes in the results of `evaluate`, for the seeds that have all of them; None if there are none."""
    rows = {(t["name"], row["label"]): row["seeds"] for t in trainings for row in t["rows"]}
    found: dict[int, dict[tuple[str, str], float]] = {}  # by seed and cell
    where: dict[str, Any] = {}
    for outcome in outcomes:
        for seed in rows.get((outcome.training, outcome.row), ()):
            values = {point["epoch"]: point["val_acc1"] for point in seed["curve"]}
            value = seed[outcome.column] if outcome.epoch is None else values.get(outcome.epoch)
            if value is not None:
                row, column = outcome.cell
                found.setdefault(seed["seed"], {})[row, column] = value
                where = seed["where"]
    seeds = [seed for seed, values in found.items() if len(values) == len(outcomes)]
    if not seeds:
        return None
    run = Run(
        name="trained", what="trained by this run", by="ours", meets=(), command="reproduce --preset paper", **where
    )
    table: dict[str, dict[str, list[float]]] = {}
    for row, column in found[seeds[0]]:
        table.setdefault(row, {})[column] = [found[seed][row, column] for seed in seeds]
    whole: Value = table[""][""] if "" in table else table
    return Measured(run=run, value=whole, seed=seeds, results="trained by this run")


def verdicts_of(paper: Paper, report: Report, trained: Trained = lambda outcomes: None) -> list[Verdict]:
    """The verdict of each claim of the paper."""
    entries = load_claims(paper.claims_file)
    instant = [c.id for c in entries if c.cost == "instant"]

    def tell(claim: Claim) -> None:
        if claim.id in instant:
            report(instant.index(claim.id) / len(instant), claim.id)

    return judge(entries, paper.checks, tell, trained)


NESTED = {"setting", "tolerance", "evidence", "readings", "measured", "scaled", "outcomes"}  # fields of a claim


def as_record(verdict: Verdict) -> dict[str, Any]:
    """A verdict in the format of results.json and claims.csv."""
    claim = verdict.claim
    record = {f.name: getattr(claim, f.name) for f in dataclasses.fields(claim) if f.name not in NESTED}
    number = claim.claimed if isinstance(claim.claimed, int | float) and not isinstance(claim.claimed, bool) else None
    decided = [_found(f) for f in verdict.found if f.decides]
    record |= {"setting": dataclasses.asdict(claim.setting) if claim.setting else None, "table": _table(verdict)}
    record |= {"allowance": None if number is None else claim.allowance(number), "how": verdict.how}
    record |= {"verdict": verdict.verdict, "reason": verdict.reason, "condition": verdict.condition}
    record |= {"measured": decided[0] if decided else None, "also_measured": decided[1:]}
    record |= {"near": [_found(f) for f in verdict.found if not f.decides]}
    record |= {"found": verdict.cells[0].found if verdict.cells and not record["table"] else None}
    record |= {"evidence": [dataclasses.asdict(e) for e in claim.evidence], "under": [list(u) for u in verdict.under]}
    record |= {"scaled": [{"row": row, **dataclasses.asdict(d)} for row, d in verdict.differences.items()]}
    return record | {"error": verdict.error}


def _table(verdict: Verdict) -> list[dict[str, Any]]:
    """The cells of a claim that is a table, with the values found; empty for other claims."""
    if not isinstance(verdict.claim.claimed, Mapping):
        return []
    found = {(cell.row, cell.column): cell for cell in verdict.cells}
    return [
        dataclasses.asdict(found.get((row, column)) or Cell(row, column, claimed, None, ""))
        for row, column, claimed in cells(verdict.claim.claimed)
    ]


def _found(found: Found) -> dict[str, Any]:
    """A measurement and the provenance of its run."""
    run = found.measured.run
    provenance = {n: getattr(run, n) for n in ("what", "by", "command", "commit", "date", "machine")}
    values = {n: getattr(found.measured, n) for n in ("value", "seed", "results")}
    return provenance | values | {"interval": found.interval}


def as_command(recipe: Recipe, given: Mapping[str, Any], seeds: Sequence[int]) -> str:
    """The command that trains one row, with the first seed."""
    words = ["uv", "run", f"{recipe.command}-train"]
    for name, value in {**given, "seed": seeds[0]}.items():
        flag = spelled(name)
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, Mapping):  # --model-kwargs
            words += [flag, *(f"{key}={json.dumps(one)}" for key, one in value.items())]
        elif (name, value) != ("device", "auto"):
            words += [flag, str(value)]
    return shlex.join(words)


def _pairs(paper: Paper, options: Options, folder: Path, report: Report) -> list[tuple[Training, Study]]:
    return list(zip(paper.trainings(options.preset), studies(paper, options, folder, report).values(), strict=True))


RUN: Mapping[str, Callable[[Paper, Options, Path, Report], dict[str, Any]]] = {
    "train": train,
    "evaluate": evaluate,
    "analyze": analyze,
    "claims": claims,
}
