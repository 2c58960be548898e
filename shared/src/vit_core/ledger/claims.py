"""What a paper claims: the entries of a package's claims.yaml. docs/adding_a_paper.md has examples.

A claim is a sentence or number of the paper, its README, its notebook or its logs. The file has three parts:

    settings  name -> what the paper did, and what of a measurement counts as that: one rule for all claims of a setting
    runs      name -> one measurement with its provenance, and which settings it meets: said once, not claim by claim
    groups    fields that several entries share, and the entries

Verdicts are never in it; vit_core.ledger.verdicts computes them.
"""

import datetime
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

Scalar = float | int | bool | str
Number = StrictInt | StrictFloat  # neither True nor "1"
Table = Mapping[str, Mapping[str, Scalar | Sequence[Number]]]  # row -> column -> value, or one value a seed
Value = Scalar | Sequence[Number] | Table
Checks = Mapping[str, Callable[[], Value]]
T = TypeVar("T")

Cost = Literal["instant", "cpu-minutes", "gpu-minutes", "gpu-hours", "impossible"]
COSTS = get_args(Cost)
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


def _say_what_a_value_is(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """One message in place of one for each type that it is not."""
    try:
        return validate(value)
    except ValidationError:
        raise ValueError(f"neither one value, nor numbers, nor a table row -> column -> value: {value!r}") from None


def _named(value: Any, info: ValidationInfo) -> Any:
    """The setting or run that the file calls so."""
    if not isinstance(value, str):
        return value
    assert info.context is not None
    if value not in info.context[info.field_name]:
        raise ValueError(f"there is no {info.field_name} called {value}")
    info.context["used"].add(value)
    return info.context[info.field_name][value]


class Entry:
    """What is read from YAML: unknown fields are errors."""

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True)
class Setting(Entry):
    """Under which conditions the paper got a number."""

    name: str
    what: str  # data, resolution, model size, epochs
    counts: str  # what of a measurement counts as this setting


@dataclass(frozen=True, kw_only=True)
class Run(Entry):
    """A measurement, and where it comes from."""

    name: str
    what: str
    by: Literal["ours", "original"]  # original: the original's own code, run here
    meets: Sequence[str]  # the settings that it counts as
    command: str
    commit: str  # of the code that was run
    date: Annotated[str, BeforeValidator(lambda date: str(date) if isinstance(date, datetime.date) else date)]
    machine: str


@dataclass(frozen=True, kw_only=True)
class Measured(Entry):
    """A value that a run gave, and where it is recorded."""

    run: Annotated[Run, BeforeValidator(_named)]
    value: Annotated[Value, WrapValidator(_say_what_a_value_is)]  # of several seeds: one value each
    seed: StrictInt | Sequence[StrictInt] | None  # None: nothing is drawn, or timings
    results: str  # the file under results/ that holds it
    interval: Sequence[Number] | None = None  # 95%, where it is computed over something else than seeds
    cell: Mapping[str, Any] | None = None  # of a CSV or JSON file: which; see tests/workspace/test_claims_of_results.py
    quote: str | None = None  # of a text: the words in it that say so


@dataclass(frozen=True, kw_only=True)
class Evidence(Entry):
    """What the original's own artefact says: its code, a log, a notebook's output, a table, a figure."""

    where: str
    says: str  # one sentence, with the figures
    # In the claim's form and unit; of a table perhaps a part. None: shown, and decides nothing.
    value: Annotated[Value | None, WrapValidator(_say_what_a_value_is)] = None
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
class Reading(Entry):
    """Another reading of the claim's setting, under which the number may hold."""

    when: str  # completes "holds if …"
    check: str | None = None  # function of an instant reading
    measured: Measured | None = None
    repair: StrictBool = False  # what our change to the model gives: shown, but it does not make the paper's claim hold

    def __post_init__(self) -> None:
        if (self.check is None) == (self.measured is None):
            raise ValueError("a reading has a check or a measured value, one of the two")


@dataclass(frozen=True, kw_only=True)
class Scaled(Entry):
    """The claim's direction at a smaller setting: rows against a baseline over at least three paired seeds."""

    model: str  # model and data set
    sound: str  # why a comparison at this size says something: what the baseline reaches here and elsewhere
    run: Annotated[Run, BeforeValidator(_named)]
    seeds: Annotated[Sequence[StrictInt], Field(min_length=3)]
    baseline: Sequence[Number]  # one value a seed
    rows: Mapping[str, Sequence[Number]]
    expected: Annotated[Mapping[str, Literal["above", "below"]], Field(min_length=1)]  # than the baseline
    results: str

    def __post_init__(self) -> None:
        if any(len(values) != len(self.seeds) for values in (self.baseline, *self.rows.values())):
            raise ValueError("baseline and rows have one value for each seed")
        if not self.expected.keys() <= self.rows.keys():
            raise ValueError("expected names rows that were measured")


@dataclass(frozen=True, kw_only=True)
class Outcome(Entry):
    """Where a run of the paper's own recipe (`reproduce --preset paper`) has a value that is claimed."""

    training: str  # name of a `Training`
    row: str
    column: Literal["acc1", "acc5"]  # in percent of the evaluation images
    epoch: StrictInt | None = None  # of the validation curve (acc1 alone); None: after the last
    cell: Sequence[str] = ("", "")  # row and column of the claim where it is a table

    def __post_init__(self) -> None:
        if self.epoch is not None and self.column != "acc1":
            raise ValueError(f"an outcome of an epoch is acc1, not {self.column}")


@dataclass(frozen=True, kw_only=True)
class Claim(Entry):
    """An entry of claims.yaml. `unit` and `note` are for readers; the rest decides the verdict."""

    id: str
    source: str  # document and place: section, table, line, cell
    statement: str
    claimed: Annotated[
        Scalar | Sequence[Number] | Mapping[str, Annotated[Mapping[str, Scalar], Field(min_length=1)]],
        WrapValidator(_say_what_a_value_is),
    ]
    kind: Literal["result", "forecast", "property", "size", "recipe", "arithmetic"]  # of KINDS
    cost: Cost
    why: str = ""  # of what is impossible to run: the reason
    unit: str = ""
    setting: Annotated[Setting | None, BeforeValidator(_named)] = None
    comparison: Literal["about", "at least", "at most", "above", "below", "between"] = "about"  # how `claimed` is meant
    tolerance: Number | str | None = None  # "1%" is relative; default: half a unit of the last digit that is claimed
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
        self._check_cost()
        if self.kind in OF_A_RUN and self.setting is None:
            raise ValueError(f"a {self.kind} names its setting")
        if isinstance(self.tolerance, str) and not re.fullmatch(r"\d+(\.\d+)?%", self.tolerance):
            raise ValueError(f"tolerance is a number (1.0e-9, not 1e-9, to YAML) or like '5%', not {self.tolerance!r}")
        scalars = [value for *_, value in cells(self.claimed)]
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in scalars)
        if (self.comparison == "between") != _is_pair(self.claimed) or (
            self.comparison not in ("about", "between") and not numbers
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


def _is_pair(value: Value) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2


class Group(BaseModel, extra="allow"):
    """Entries, and fields that they share."""

    entries: list[dict[str, Any]]


class File(BaseModel, extra="forbid"):
    """A claims.yaml, its entries not yet read."""

    settings: dict[str, dict[str, Any]] = {}
    runs: dict[str, dict[str, Any]] = {}
    groups: Annotated[list[Group], Field(min_length=1)]


def load_claims(file: Path) -> list[Claim]:
    """The entries of a claims.yaml. ValueError, naming file and entry, for one that is not as `Claim` says."""
    content = _read(TypeAdapter(File), yaml.safe_load(file.read_text(encoding="utf-8")), f"{file}")
    of_setting, of_run, of_claim = TypeAdapter(Setting), TypeAdapter(Run), TypeAdapter(Claim)
    settings = {n: _read(of_setting, {"name": n, **fields}, f"{file}, {n}") for n, fields in content.settings.items()}
    runs = {n: _read(of_run, {"name": n, **fields}, f"{file}, {n}") for n, fields in content.runs.items()}
    for run in runs.values():
        for name in run.meets:
            if name not in settings:
                raise ValueError(f"{file}, {run.name}: there is no setting called {name}")
    used: set[str] = set()
    named = {"setting": settings, "run": runs, "used": used}
    claims = [
        _read(of_claim, {**(group.model_extra or {}), **entry}, f"{file}, {entry.get('id', f'entry {number}')}", named)
        for group in content.groups
        for number, entry in enumerate(group.entries, 1)
    ]
    ids = [c.id for c in claims]
    if doubled := {i for i in ids if ids.count(i) > 1}:
        raise ValueError(f"{file}: more than one claim is called {min(doubled)}")
    if unused := (settings.keys() | runs.keys()) - used.union(*(run.meets for run in runs.values())):
        raise ValueError(f"{file}: no claim names the setting or run {min(unused)}")
    return claims


def _read(adapter: TypeAdapter[T], fields: Any, where: str, named: Mapping[str, Any] | None = None) -> T:
    """A mapping of YAML -> the class, nested ones included. ValueError, in one line, for what it is not."""
    try:
        return adapter.validate_python(fields, context=named)
    except ValidationError as e:
        says = [": ".join(filter(None, [".".join(map(str, d["loc"])), d["msg"]])) for d in e.errors()]
        raise ValueError(" ".join(f"{where}: {'; '.join(says)}".split())) from e
