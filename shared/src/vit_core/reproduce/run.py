"""A reproduction run: its folder, and the steps of each paper.

runs/reproduce/20261121_235000/
    run.json                       options of the run
    results.json, claims.csv, index.html     all results so far, rewritten after each step
    log.txt                        output of the steps
    qavit/train.json …             one file per finished step, which is not repeated on resume
    qavit/digits/                  the study with its runs and checkpoints
    qavit/pictures/
"""

import csv
import dataclasses
import datetime
import io
import json
import logging
import shlex
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from vit_core.errors import UserError
from vit_core.files import locked, write_whole
from vit_core.papers import Paper
from vit_core.reproduce import steps
from vit_core.reproduce.comparison import compare
from vit_core.reproduce.page import write_page
from vit_core.reproduce.progress import Display, Part
from vit_core.reproduce.steps import STEPS, Options, Step
from vit_core.training.run_folder import environment

FORMAT = 1
TITLES = {"train": "training", "evaluate": "evaluation", "analyze": "analysis", "claims": "claims"}
SECONDS = {"evaluate": 3.0, "analyze": 6.0, "claims": 5.0, "compare": 15.0}  # expected duration of a step
COMPARISON = "comparison"  # in the display and the log, in place of a step's name


class RunRecord(TypedDict):
    """run.json."""

    command: str
    started: str
    seconds: float
    papers: list[str]
    asked: list[Step]
    options: Options
    environment: dict[str, Any]


class Interrupted(BaseException):
    """A signal stopped the run; `code` is the exit code. A BaseException, so that steps do not catch it as an error."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Reproduction:
    """One run folder. `papers`: the papers of the run; `broken`: those that could not be loaded."""

    folder: Path
    options: Options
    papers: Mapping[str, Paper]
    broken: Mapping[str, Exception] = field(default_factory=dict)
    asked: Sequence[str] = STEPS
    only: Sequence[str] | None = None  # restrict the run to these papers

    def run(self, stream: TextIO) -> int:
        """Run all missing steps. Returns the exit code: 0, or 1 if a step or a paper failed.

        Raises Interrupted, after saving all results so far, for Ctrl-C and SIGTERM; UserError if another process uses
        the folder.
        """
        with locked(self.folder):
            before, began = self._read("run"), time.monotonic()
            asked = [s for s in STEPS if s in {*before["asked"], *self.asked}]
            self._write("run", before | {"asked": asked})
            ending = "interrupted"

            def write(state: str) -> None:
                self._write_results(before["seconds"] + time.monotonic() - began, state)

            try:
                plan = self._plan()
                with Display([part for _, _, part in plan], stream) as display, self._log() as log:
                    failed = self._carry_out(plan, display, log, lambda: write("running"))
                ending = "finished"
            except KeyboardInterrupt:
                raise Interrupted(130) from None
            finally:
                write(ending)
        return int(failed or bool(self.broken))

    def _carry_out(
        self, plan: Sequence[tuple[str, str, Part]], display: Display, log: TextIO, written: Callable[[], None]
    ) -> bool:
        """Run every step that is not done yet. Returns whether any failed."""
        failed = False
        for name, step, part in plan:
            if self._is_done(name, step):
                continue
            display.start(part)
            try:
                outcome = self._do(name, step, display)
            except UserError as e:
                outcome, failed = self._failed(name, step, " ".join(str(e).split())), True
            except SystemExit as e:
                if isinstance(e.code, int) and e.code > 128:  # a study whose training received a signal
                    raise Interrupted(e.code) from None
                outcome, failed = self._failed(name, step, f"exited with code {e.code}"), True
            except Exception as e:  # an error in one paper must not stop the others
                traceback.print_exc(file=log)
                outcome, failed = self._failed(name, step, f"{type(e).__name__}: {e}"), True
            display.end(outcome)
            written()
        return failed

    def _plan(self) -> list[tuple[str, str, Part]]:
        plan = []
        for name, paper in self.papers.items():
            if self.only is not None and name not in self.only:
                continue
            trainings = paper.trainings(self.options.preset)
            cost = {**SECONDS, "train": sum(t.seconds * len(t.rows) for t in trainings) * len(self.options.seeds)}
            short = paper.title.partition(":")[0]
            plan += [(name, s, Part(short, TITLES[s], 0.0 if self._is_done(name, s) else cost[s])) for s in self.asked]
        if "evaluate" in self.asked and self.only is None:
            seconds = 0.0 if self._is_done("", "comparison") else SECONDS["compare"]
            plan.append(("", "comparison", Part("all papers", COMPARISON, seconds)))
        return plan

    def _do(self, name: str, step: str, display: Display) -> str:
        """Run one step. Returns a short summary of its result."""
        began = time.monotonic()
        if not name:
            papers = self._comparable()
            found = compare(papers, self.options, self.folder, display.at)
            took = time.monotonic() - began
            self._write("comparison", {"comparison": found, "of": self._fingerprint(papers), "seconds": took})
            return f"{len(found['rows'])} models" if found else "nothing to compare"
        place = self.folder / name
        place.mkdir(exist_ok=True)
        error = self._file(name, f"{step}.error")
        if step == "evaluate" and self.options.preset == "paper":  # the claims' verdicts depend on the accuracies
            self._file(name, "claims").unlink(missing_ok=True)
        try:
            result = steps.RUN[step](self.papers[name], self.options, place, display.at)
            error.unlink(missing_ok=True)
        except steps.Incomplete as e:  # keep partial results; the error file marks the step as not done
            self._write(f"{name}/{step}", e.record | {"seconds": time.monotonic() - began})
            raise
        except UserError:
            if step in ("evaluate", "analyze"):  # a checkpoint may be missing or damaged: the next run trains it again
                self._file(name, "train").unlink(missing_ok=True)
            raise
        self._write(f"{name}/{step}", result | {"seconds": time.monotonic() - began})
        return _outcome(result)

    def _failed(self, name: str, step: str, error: str) -> str:
        print(f"{name or COMPARISON}, {step}: {error}")
        if name:
            (self.folder / name).mkdir(exist_ok=True)
            self._write(f"{name}/{step}.error", {"error": error})
        return f"failed: {error}"

    def _comparable(self) -> dict[str, Paper]:
        return {name: paper for name, paper in self.papers.items() if self._load(name, "evaluate")}

    def _fingerprint(self, papers: Mapping[str, Paper]) -> dict[str, Any]:
        """Identity of a comparison: the evaluated trainings of each paper."""
        return {name: [t["name"] for t in (self._load(name, "evaluate") or {})["trainings"]] for name in papers}

    # ── files ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _file(self, *parts: str) -> Path:
        path = self.folder.joinpath(*parts)
        return path.with_name(path.name + ".json")

    def _load(self, name: str, step: str) -> dict[str, Any] | None:
        """The result of a step; None if it was not done or its file is damaged, so that it runs again."""
        try:
            record = read_json(self._file(name, step))
        except UserError:
            return None
        return record if "seconds" in record else None

    def _is_done(self, name: str, step: str) -> bool:
        """Whether the step finished without an error."""
        record = self._load(name, step)
        if record is None:
            return False
        if not name:
            return record.get("of") == self._fingerprint(self._comparable())
        return not self._file(name, f"{step}.error").is_file()

    def _read(self, name: str) -> dict[str, Any]:
        return read_json(self._file(name))

    def _write(self, name: str, record: Mapping[str, Any]) -> None:
        write_json(self._file(name), record)

    @contextmanager
    def _log(self) -> Iterator[TextIO]:
        """Redirect output and logging of the steps to log.txt, so that they do not disturb the display."""
        root = logging.getLogger()
        handlers = root.handlers[:]
        with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
            root.handlers[:] = [logging.StreamHandler(log)]
            try:
                with redirect_stdout(log), redirect_stderr(log):
                    yield log
            finally:
                root.handlers[:] = handlers

    def results(self) -> dict[str, Any]:
        """All results so far, in the format of results.json."""
        run = self._read("run")
        papers = []
        for name, paper in self.papers.items():
            record: dict[str, Any] = {"trainings": [], "analysis": None, "claims": []}
            states = []
            for step in STEPS:
                found = self._load(name, step)
                seconds = found.pop("seconds") if found else None
                record |= found or {}
                error = self._file(name, f"{step}.error")
                if error.is_file():
                    why = read_json(error).get("error")
                    states.append({"name": step, "state": "failed", "seconds": seconds, "error": why})
                elif found is not None:
                    states.append({"name": step, "state": "done", "seconds": seconds, "error": None})
                elif step in run["asked"]:
                    states.append({"name": step, "state": "pending", "seconds": None, "error": None})
            about = {f: getattr(paper, f) for f in ("title", "idea", "source", "citation")}
            papers.append({"name": name, **about, "model": paper.model, "steps": states, **record})
        compared = (self._load("", "comparison") or {}).get("comparison")
        return {
            "format": FORMAT,
            **{k: run[k] for k in ("command", "started", "seconds", "environment")},
            "preset": self.options.preset,
            "options": dataclasses.asdict(self.options),
            "finished": run.get("finished"),
            "state": run.get("state", "running"),
            "broken": {name: f"{type(e).__name__}: {e}" for name, e in self.broken.items()},
            "papers": papers,
            "comparison": compared,
        }

    def _write_results(self, seconds: float, state: str) -> None:
        """state: running, interrupted or finished. A run is finished when no requested step is pending."""
        results = self.results()
        if any(s["state"] == "pending" for p in results["papers"] for s in p["steps"]) and state == "finished":
            state = "interrupted"
        now = f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}" if state == "finished" else None
        ending = {"seconds": seconds, "finished": now, "state": state}
        self._write("run", self._read("run") | ending)
        results |= ending
        self._write("results", results)
        write_claims(results, self.folder / "claims.csv")
        write_page(results, self.folder)


def begin(
    place: Path,
    options: Options,
    papers: Mapping[str, Paper],
    broken: Mapping[str, Exception],
    asked: Sequence[str],
    words: Sequence[str] = (),
) -> Reproduction:
    """Create a run folder under `place`; words: the command line. UserError if no free name is left."""
    stamp = f"{datetime.datetime.now():%Y%m%d_%H%M%S}"
    for number in range(1, 1000):
        folder = place / (stamp if number == 1 else f"{stamp}_{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        record = {
            "format": FORMAT,
            "command": shlex.join(["uv", "run", "reproduce", *words]),
            "started": f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}",
            "seconds": 0.0,
            "papers": [*papers, *broken],
            "asked": list(asked),
            "options": dataclasses.asdict(options),
            "environment": environment(),
        }
        write_json(folder / "run.json", record)
        return Reproduction(folder, options, papers, broken, asked)
    raise UserError(f"too many runs in {place}")


def reopen(folder: Path, papers: Mapping[str, Paper], broken: Mapping[str, Exception]) -> Reproduction:
    """Open an earlier run. UserError if `folder` is not a run folder, or one of its papers is not installed."""
    try:
        record = TypeAdapter(RunRecord).validate_python(read_json(folder / "run.json"))
    except ValidationError as e:
        where = ".".join(map(str, e.errors()[0]["loc"]))
        raise UserError(
            f"{folder / 'run.json'} was not written by this version of `reproduce`: missing or invalid entry ({where})"
        ) from e
    names = record["papers"]
    gone = [name for name in names if name not in papers and name not in broken]
    if gone:
        raise UserError(f"{folder} contains a run of {', '.join(names)}, but {gone[0]} is not installed")
    chosen = {name: papers[name] for name in names if name in papers}
    failed = {name: error for name, error in broken.items() if name in names}
    return Reproduction(folder, record["options"], chosen, failed, record["asked"])


def latest(place: Path) -> Path:
    """The newest run folder under `place`. UserError if there is none."""
    found = sorted(f.parent for f in place.glob("*/run.json"))
    if not found:
        raise UserError(f"there are no runs in {place} yet: start one with `reproduce`")
    return found[-1]


def read_json(file: Path) -> dict[str, Any]:
    """UserError for a file that is missing or damaged."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file.parent} is not a run folder of `reproduce`: it has no {file.name}") from None
    except ValueError as e:
        raise UserError(f"{file} is damaged ({e}): remove it, and its step will run again") from e
    if not isinstance(record, dict):
        raise UserError(f"{file} is damaged (not a JSON object): remove it, and its step will run again")
    return record


def write_json(file: Path, record: Mapping[str, Any]) -> None:
    """Write JSON atomically. NaN and infinities, which JSON does not have, become null."""
    write_whole(file, json.dumps(_finite(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: object) -> object:
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


def write_claims(results: Mapping[str, Any], file: Path) -> None:
    """Write claims.csv: one line per claim of every paper."""
    names = (
        "paper", "id", "kind", "source", "statement", "claimed", "unit", "setting", "comparison", "verdict", "reason",
        "condition", "allowance", "measured", "interval", "other_readings", "by", "commit", "date", "seed", "machine",
        "results", "cost", "why", "how", "command", "near", "evidence", "note", "error",
    )  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore")
    writer.writeheader()
    for paper in results["papers"]:
        for claim in paper["claims"]:
            measured = claim["measured"] or {}
            row = {
                **measured,
                **claim,
                "paper": paper["name"],
                "measured": measured.get("value"),
                "setting": (claim["setting"] or {}).get("what"),
                "other_readings": "; ".join(f"{when}: {value}" for when, value in claim["under"]),
                "near": "; ".join(f"{near['what']}: {near['value']}" for near in claim["near"]),
                "evidence": "; ".join(f"{e['where']}: {e['says']}" for e in claim["evidence"]),
            }
            tables = {k: json.dumps(v, ensure_ascii=False) for k, v in row.items() if isinstance(v, Mapping)}
            writer.writerow(row | tables)
    write_whole(file, text.getvalue())


def _outcome(result: Mapping[str, Any]) -> str:
    """Short summary of a step's result."""
    if "trainings" in result:
        best = [max(s["acc1"] for s in row["seeds"]) for t in result["trainings"] for row in t["rows"]]
        low, high = f"{min(best):.1f}", f"{max(best):.1f}"
        return f"top-1 {low}%" if low == high else f"top-1 {low} to {high}%"
    if "claims" in result:
        verdicts = [c["verdict"] for c in result["claims"]]
        counts = {v: verdicts.count(v) for v in dict.fromkeys(verdicts)}
        return f"{len(verdicts)}: " + ", ".join(f"{n} {v}" for v, n in counts.items())
    return ""
