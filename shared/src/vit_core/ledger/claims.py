"""What a paper claims: the entries of a package's claims.yaml. docs/adding_a_paper.md has examples.

A claim is a sentence or number of the paper, its README, its notebook or its logs. The file has three parts:

    settings  name -> what the paper did, and what of a measurement counts as that: one rule for all claims of a setting
    runs      name -> one measurement with its provenance, and which settings it meets: said once, not claim by claim
    groups    fields that several entries share, and the entries

Verdicts are never in it; vit_core.ledger.verdicts computes them.
"""

import dataclasses
import datetime
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

Scalar = float | int | bool | str
Table = Mapping[str, Mapping[str, Scalar | Sequence[float]]]  # row -> column -> value, or one value a seed
Value = Scalar | Sequence[float] | Table
Checks = Mapping[str, Callable[[], Value]]

COSTS = ("instant", "cpu-minutes", "gpu-minutes", "gpu-hours", "impossible")
KINDS = {
    "result": "What a training or a timing gave: accuracy, speed, memory.",
    "forecast": "What a training or a timing is expected to give: forecasts, goals, hypotheses.",
    "property": "Formulas, invariances and behaviors of the model or method.",
    "size": "Parameters, multiply-adds, widths, depths.",
    "recipe": "What the paper says it does, held against what its code does.",
    "arithmetic": "Computed from figures that the paper itself gives; nothing is measured.",
}
OF_A_RUN = ("result", "forecast")  # a training or a timing decides about these
OF_THE_CODE = ("property", "size", "recipe")  # the original's code decides about these
COMPARISONS = ("about", "at least", "at most", "above", "below", "between")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Under which conditions the paper got a number."""

    name: str
    what: str  # data, resolution, model size, epochs
    counts: str  # what of a measurement counts as this setting


@dataclass(frozen=True, kw_only=True)
class Run:
    """A measurement, and where it comes from."""

    name: str
    what: str
    by: str  # ours, or original: the original's own code, run here
    meets: Sequence[str]  # the settings that it counts as
    command: str
    commit: str  # of the code that was run
    date: str
    machine: str

    def __post_init__(self) -> None:
        if self.by not in ("ours", "original"):
            raise ValueError(f"by is ours or original, not {self.by!r}")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A value that a run gave, and where it is recorded."""

    run: Run
    value: Value  # of several seeds: one value each
    seed: int | Sequence[int] | None  # None: nothing is drawn, or timings
    results: str  # the file under results/ that holds it
    interval: Sequence[float] | None = None  # 95%, where it is computed over something else than seeds
    cell: Mapping[str, Any] | None = None  # of a CSV or JSON file: which; see tests/workspace/test_claims_of_results.py
    quote: str | None = None  # of a text: the words in it that say so


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the original's own artefact says: its code, a log, a notebook's output, a table, a figure."""

    where: str
    says: str  # one sentence, with the figures
    value: Value | None = (
        None  # in the claim's form and unit; of a table perhaps a part. None: shown, and decides nothing
    )
    check: str | None = None  # function that computes it from the published figures
    commit: str | None = None  # of the original
    command: str | None = None  # that gave it, where the original's code was run

    def __post_init__(self) -> None:
        if self.value is not None and self.check is not None:
            raise ValueError("evidence has a value or a check, not both")

    @property
    def decides(self) -> bool:
        return self.value is not None or self.check is not None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Another reading of the claim's setting, under which the number may hold."""

    when: str  # completes "holds if …"
    check: str | None = None  # function of an instant reading
    measured: Measured | None = None
    repair: bool = False  # what our change to the model gives: shown, but it does not make the paper's claim hold

    def __post_init__(self) -> None:
        if (self.check is None) == (self.measured is None):
            raise ValueError("a reading has a check or a measured value, one of the two")


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """The claim's direction at a smaller setting: rows against a baseline over at least three paired seeds."""

    model: str  # model and data set
    sound: str  # why a comparison at this size says something: what the baseline reaches here and elsewhere
    run: Run
    seeds: Sequence[int]
    baseline: Sequence[float]  # one value a seed
    rows: Mapping[str, Sequence[float]]
    expected: Mapping[str, str]  # row -> above or below the baseline, as the paper has it
    results: str

    def __post_init__(self) -> None:
        if len(self.seeds) < 3:
            raise ValueError(f"a scaled verdict needs at least three seeds, not {len(self.seeds)}")
        if any(len(values) != len(self.seeds) for values in (self.baseline, *self.rows.values())):
            raise ValueError("baseline and rows have one value for each seed")
        if not self.expected or not self.expected.keys() <= self.rows.keys():
            raise ValueError("expected names rows that were measured")
        if set(self.expected.values()) - {"above", "below"}:
            raise ValueError("expected is above or below")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where a run of the paper's own recipe (`reproduce --preset paper`) has a value that is claimed."""

    training: str  # name of a `Training`
    row: str
    column: str  # acc1 or acc5, in percent of the evaluation images
    epoch: int | None = None  # of the validation curve (acc1 alone); None: after the last
    cell: Sequence[str] = ("", "")  # row and column of the claim where it is a table

    def __post_init__(self) -> None:
        if self.column not in ("acc1", "acc5") or (self.epoch is not None and self.column != "acc1"):
            raise ValueError(f"an outcome is acc1 or acc5, by epoch acc1 alone; not {self.column!r}")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """An entry of claims.yaml. `unit` and `note` are for readers; the rest decides the verdict."""

    id: str
    source: str  # document and place: section, table, line, cell
    statement: str
    claimed: Value
    kind: str  # of KINDS
    cost: str  # of COSTS
    why: str = ""  # of what is impossible to run: the reason
    unit: str = ""
    setting: Setting | None = None
    comparison: str = "about"  # how `claimed` is meant
    tolerance: float | str | None = None  # "1%" is relative; default: half a unit of the last digit that is claimed
    check: str = ""  # instant: a function of the package; else how it is measured, in words
    command: str | None = None  # of what is not instant
    parity: str = ""  # the test that proves our model equal to the original's in what the check measures
    evidence: Sequence[Evidence] = ()
    readings: Sequence[Reading] = ()
    measured: Sequence[Measured] = ()
    scaled: Sequence[Scaled] = ()
    outcomes: Sequence[Outcome] = ()  # of a table one for each cell
    note: str = ""

    def __post_init__(self) -> None:
        for name, known in (("cost", COSTS), ("kind", KINDS), ("comparison", COMPARISONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}")
        self._check_cost()
        if self.kind in OF_A_RUN and self.setting is None:
            raise ValueError(f"a {self.kind} names its setting")
        if isinstance(self.tolerance, str) and not re.fullmatch(r"\d+(\.\d+)?%", self.tolerance):
            raise ValueError(f"tolerance is a number (1.0e-9, not 1e-9, to YAML) or like '5%', not {self.tolerance!r}")
        if isinstance(self.claimed, Mapping):
            _check_table(self.claimed)
        scalars = [value for *_, value in cells(self.claimed)]
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in scalars)
        if (self.comparison == "between") != _is_pair(self.claimed) or (
            self.comparison in COMPARISONS[1:5] and not numbers
        ):
            raise ValueError(f"{self.comparison!r} does not compare with {self.claimed!r}")
        places = sorted((row, column) for row, column, _ in cells(self.claimed))
        if self.outcomes and sorted(tuple(outcome.cell) for outcome in self.outcomes) != places:
            raise ValueError("there is one outcome for each cell of what is claimed")

    def _check_cost(self) -> None:
        if (self.cost == "impossible") != bool(self.why):
            raise ValueError("cost impossible and why belong together")
        if self.cost == "impossible" and (self.command or self.check or self.measured):
            raise ValueError("what is impossible to run has no check, command or measured value")
        decided = any(e.decides for e in self.evidence)
        if self.cost == "instant":
            if self.measured or self.command is not None:
                raise ValueError("an instant claim has neither a command nor a measured value")
            if not self.check and not decided:
                raise ValueError("an instant claim has a check, or evidence that decides")
            if self.check and self.kind in OF_THE_CODE and not self.parity:
                raise ValueError("a check of our own model names the test of its parity with the original's (parity)")
            if self.check and self.kind in OF_A_RUN:
                raise ValueError(f"a {self.kind} is measured by a run, not by an instant check")
        elif self.cost != "impossible" and not (self.check and self.command):
            raise ValueError("a claim that is not instant says how it is measured (check) and by which command")

    def allowance(self, claimed: float) -> float:
        """How far a value may be from the claimed one, in its unit."""
        if isinstance(self.tolerance, str):
            return abs(claimed) * float(self.tolerance.removesuffix("%")) / 100
        if self.tolerance is not None:
            return float(self.tolerance)
        if self.comparison != "about" or isinstance(claimed, int):
            return 0.0
        exponent = Decimal(repr(claimed)).as_tuple().exponent
        assert isinstance(exponent, int)
        return 0.5 * 10.0**exponent


def cells(value: Value) -> Iterator[tuple[str, str, Scalar | Sequence[float]]]:
    """(row, column, value) of a table; what is no table is one cell without names."""
    if isinstance(value, Mapping):
        for row, columns in value.items():
            for column, cell in columns.items():
                yield row, column, cell
    else:
        yield "", "", value


def _check_table(value: Mapping[Any, Any]) -> None:
    """ValueError for what is no row -> column -> scalar."""
    for columns in value.values():
        if not isinstance(columns, Mapping) or not columns or not all(isinstance(c, Scalar) for c in columns.values()):
            raise ValueError(f"a table is row -> column -> value, not {value!r}")


def _is_pair(value: Value) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2


def load_claims(file: Path) -> list[Claim]:
    """The entries of a claims.yaml. ValueError, naming file and entry, for one that is not as `Claim` says."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    if (
        not isinstance(content, dict)
        or not content.keys() <= {"settings", "runs", "groups"}
        or not content.get("groups")
    ):
        raise ValueError(f"{file}: holds settings, runs and groups of entries, and of groups at least one")
    named = {part: _named(file, part, content.get(part) or {}) for part in ("settings", "runs")}
    used: set[str] = set()
    claims: list[Claim] = []
    for group in content["groups"]:
        if not isinstance(group, dict) or not isinstance(group.get("entries"), list):
            raise ValueError(f"{file}: a group holds entries")
        defaults = {k: v for k, v in group.items() if k != "entries"}
        for number, entry in enumerate(group["entries"], 1):
            name = entry.get("id", f"entry {number}") if isinstance(entry, dict) else f"entry {number}"
            try:
                if not isinstance(entry, dict):
                    raise TypeError(f"needs a mapping, got {entry!r}")
                claims.append(_read(Claim, _resolved({**defaults, **entry}, named, used)))
            except (TypeError, ValueError) as e:
                raise ValueError(f"{file}, {name}: {e}") from e
    doubled = {c.id for c in claims if [d.id for d in claims].count(c.id) > 1}
    if doubled:
        raise ValueError(f"{file}: more than one claim is called {min(doubled)}")
    unused = {name for part in named.values() for name in part} - used
    if unused:
        raise ValueError(f"{file}: no claim names the setting or run {min(unused)}")
    met = {name: set(run["meets"]) - named["settings"].keys() for name, run in named["runs"].items()}
    for name, unknown in met.items():
        if unknown:
            raise ValueError(f"{file}, {name}: there is no setting called {min(unknown)}")
    return claims


def _named(file: Path, part: str, entries: Any) -> dict[str, dict[str, Any]]:
    """name -> fields, the name among them."""
    if not isinstance(entries, dict):
        raise ValueError(f"{file}: {part} is a mapping from names to fields")
    kind = Setting if part == "settings" else Run
    named = {}
    for name, fields in entries.items():
        try:
            _read(kind, {"name": name, **fields})
        except (TypeError, ValueError) as e:
            raise ValueError(f"{file}, {name}: {e}") from e
        named[name] = {"name": name, **fields}
    return named


def _resolved(entry: Any, named: Mapping[str, Mapping[str, Any]], used: set[str]) -> Any:
    """The entry with what its names of settings and runs stand for."""
    if isinstance(entry, list):
        return [_resolved(e, named, used) for e in entry]
    if not isinstance(entry, dict):
        return entry
    values = {}
    for key, value in entry.items():
        part = {"setting": "settings", "run": "runs"}.get(key)
        if part is not None and isinstance(value, str):
            if value not in named[part]:
                raise ValueError(f"there is no {key} called {value}")
            used.add(value)
            values[key] = named[part][value]
            if part == "runs":
                used.update(named[part][value]["meets"])
        else:
            values[key] = _resolved(value, named, used) if key not in ("claimed", "value", "cell") else value
    return values


def _read(kind: type, entry: Any) -> Any:
    """A mapping of YAML -> the dataclass, nested ones included. TypeError, ValueError for what it is not."""
    if not isinstance(entry, dict):
        raise TypeError(f"needs a mapping, got {entry!r}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = entry.keys() - fields.keys()
    if unknown:
        raise ValueError(f"has no field {min(map(str, unknown))}")
    missing = [n for n, f in fields.items() if n not in entry and f.default is dataclasses.MISSING]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}")
    values = dict(entry)
    hints = typing.get_type_hints(kind)
    for name, value in entry.items():
        inner = [t for t in typing.get_args(hints[name]) or (hints[name],) if dataclasses.is_dataclass(t)]
        if isinstance(value, datetime.date):  # YAML's own dates
            values[name] = str(value)
        elif inner and isinstance(value, list):
            values[name] = [_read(inner[0], v) for v in value]  # type: ignore[arg-type]
        elif inner and value is not None:
            values[name] = _read(inner[0], value)  # type: ignore[arg-type]
        elif not _fits(value, hints[name]):
            raise TypeError(f"{name} cannot be {value!r}")
    return kind(**values)


def _fits(value: Any, hint: Any) -> bool:
    """A shallow look: whether a plain YAML value is of the annotated kind."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, t) for t in typing.get_args(hint))
    if hint is Any:
        return True
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is not None:
        kind = origin if isinstance(origin, type) else object
        return isinstance(value, kind) and not (kind is not str and isinstance(value, str))
    return isinstance(value, hint)
