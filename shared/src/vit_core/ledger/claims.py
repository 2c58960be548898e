"""A paper's claims: the entries of a package's claims.yaml. See docs/adding_a_paper.md for examples.

A claim is a sentence or number in the paper, its README, its notebook or its logs. The file has three parts:

    settings  name -> the paper's experimental setting, and which measurements count for it; one rule for all its claims
    runs      name -> one measurement with its provenance, and the settings that it meets
    groups    entries, and fields shared by several entries

The file contains no verdicts; vit_core.ledger.verdicts computes them.
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
Table = Mapping[str, Mapping[str, Scalar | Sequence[Number]]]  # row -> column -> value, or one value per seed
Value = Scalar | Sequence[Number] | Table
Checks = Mapping[str, Callable[[], Value]]
T = TypeVar("T")

Cost = Literal["instant", "cpu-minutes", "gpu-minutes", "gpu-hours", "impossible"]
COSTS = get_args(Cost)
KINDS = {
    "result": "Results of a training or a timing: accuracy, speed, memory.",
    "forecast": "Expected results of a training or a timing: forecasts, goals, hypotheses.",
    "property": "Formulas, invariances and behaviors of the model or method.",
    "size": "Parameters, multiply-adds, widths, depths.",
    "recipe": "What the paper says it does, compared with what its code does.",
    "arithmetic": "Computed from the paper's own numbers; nothing is measured.",
}
OF_A_RUN = ("result", "forecast")  # decided by a training or a timing
OF_THE_CODE = ("property", "size", "recipe")  # decided by the original's code


def _say_what_a_value_is(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Replace pydantic's messages, one per type of the union, by a single one."""
    try:
        return validate(value)
    except ValidationError:
        raise ValueError(f"expected a value, numbers, or a table row -> column -> value, got {value!r}") from None


def _named(value: Any, info: ValidationInfo) -> Any:
    """The setting or run of that name in the file."""
    if not isinstance(value, str):
        return value
    assert info.context is not None
    if value not in info.context[info.field_name]:
        raise ValueError(f"there is no {info.field_name} called {value}")
    info.context["used"].add(value)
    return info.context[info.field_name][value]


class Entry:
    """Base of the classes read from YAML: unknown fields are errors."""

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True)
class Setting(Entry):
    """The conditions under which the paper obtained a number."""

    name: str
    what: str  # data, resolution, model size, epochs
    counts: str  # which measurements count for this setting


@dataclass(frozen=True, kw_only=True)
class Run(Entry):
    """A measurement and its provenance."""

    name: str
    what: str
    by: Literal["ours", "original"]  # original: the original's own code, run here
    meets: Sequence[str]  # the settings that it counts for
    command: str
    commit: str  # of the code that was run
    date: Annotated[str, BeforeValidator(lambda date: str(date) if isinstance(date, datetime.date) else date)]
    machine: str


@dataclass(frozen=True, kw_only=True)
class Measured(Entry):
    """A value measured by a run, and where it is recorded."""

    run: Annotated[Run, BeforeValidator(_named)]
    value: Annotated[Value, WrapValidator(_say_what_a_value_is)]  # with several seeds: one value per seed
    seed: StrictInt | Sequence[StrictInt] | None  # None: deterministic, or a timing
    results: str  # the file under results/ that contains it
    interval: Sequence[Number] | None = None  # 95% interval, if not computed over seeds
    cell: Mapping[str, Any] | None = None  # in CSV or JSON files; see tests/workspace/test_claims_of_results.py
    quote: str | None = None  # in a text file: the passage that states it


@dataclass(frozen=True, kw_only=True)
class Evidence(Entry):
    """What an artifact of the original says: its code, a log, a notebook's output, a table, a figure."""

    where: str
    says: str  # one sentence, with the numbers
    # In the claim's form and unit; may cover only part of a table. None: shown, but does not affect the verdict.
    value: Annotated[Value | None, WrapValidator(_say_what_a_value_is)] = None
    check: str | None = None  # function that computes it from the published numbers
    commit: str | None = None  # of the original
    command: str | None = None  # command that produced it, if the original's code was run

    def __post_init__(self) -> None:
        if self.value is not None and self.check is not None:
            raise ValueError("evidence must have a value or a check, not both")

    @property
    def decides(self) -> bool:
        return self.value is not None or self.check is not None


@dataclass(frozen=True, kw_only=True)
class Reading(Entry):
    """Another reading of the claim's setting, under which the number may hold."""

    when: str  # completes "holds if …"
    check: str | None = None  # function of an instant reading
    measured: Measured | None = None
    repair: StrictBool = False  # measured with our fix to the model: shown, but does not make the paper's claim hold

    def __post_init__(self) -> None:
        if (self.check is None) == (self.measured is None):
            raise ValueError("a reading must have either a check or a measured value")


@dataclass(frozen=True, kw_only=True)
class Scaled(Entry):
    """A test of the claim's direction at a smaller scale: rows against a baseline over at least three paired seeds."""

    model: str  # model and dataset
    sound: str  # why a comparison at this size is meaningful: what the baseline reaches here and elsewhere
    run: Annotated[Run, BeforeValidator(_named)]
    seeds: Annotated[Sequence[StrictInt], Field(min_length=3)]
    baseline: Sequence[Number]  # one value per seed
    rows: Mapping[str, Sequence[Number]]
    expected: Annotated[Mapping[str, Literal["above", "below"]], Field(min_length=1)]  # than the baseline
    results: str

    def __post_init__(self) -> None:
        if any(len(values) != len(self.seeds) for values in (self.baseline, *self.rows.values())):
            raise ValueError("baseline and rows must have one value for each seed")
        if not self.expected.keys() <= self.rows.keys():
            raise ValueError("expected must only name measured rows")


@dataclass(frozen=True, kw_only=True)
class Outcome(Entry):
    """Where to find a claimed value in a run of the paper's own recipe (`reproduce --preset paper`)."""

    training: str  # name of a `Training`
    row: str
    column: Literal["acc1", "acc5"]  # in percent of the evaluation images
    epoch: StrictInt | None = None  # of the validation curve (acc1 only); None: after the last epoch
    cell: Sequence[str] = ("", "")  # row and column of the claim if it is a table

    def __post_init__(self) -> None:
        if self.epoch is not None and self.column != "acc1":
            raise ValueError(f"an outcome with an epoch must have column acc1, got {self.column}")


@dataclass(frozen=True, kw_only=True)
class Claim(Entry):
    """An entry of claims.yaml. `unit` and `note` are for readers; the other fields determine the verdict."""

    id: str
    source: str  # document and position: section, table, line, cell
    statement: str
    claimed: Annotated[
        Scalar | Sequence[Number] | Mapping[str, Annotated[Mapping[str, Scalar], Field(min_length=1)]],
        WrapValidator(_say_what_a_value_is),
    ]
    kind: Literal["result", "forecast", "property", "size", "recipe", "arithmetic"]  # of KINDS
    cost: Cost
    why: str = ""  # the reason, if cost is "impossible"
    unit: str = ""
    setting: Annotated[Setting | None, BeforeValidator(_named)] = None
    comparison: Literal["about", "at least", "at most", "above", "below", "between"] = "about"  # how `claimed` is meant
    tolerance: Number | str | None = None  # "1%" is relative; default: half a unit of the last claimed digit
    check: str = ""  # instant claims: a function of the package; others: a description of the measurement
    command: str | None = None  # required unless the claim is instant
    parity: str = ""  # the test that shows that our model equals the original's in what the check measures
    evidence: Sequence[Evidence] = ()
    readings: Sequence[Reading] = ()
    measured: Sequence[Measured] = ()
    scaled: Sequence[Scaled] = ()
    outcomes: Sequence[Outcome] = ()  # for a table, one per cell
    note: str = ""

    def __post_init__(self) -> None:
        self._check_cost()
        if self.kind in OF_A_RUN and self.setting is None:
            raise ValueError(f"a {self.kind} must name its setting")
        if isinstance(self.tolerance, str) and not re.fullmatch(r"\d+(\.\d+)?%", self.tolerance):
            raise ValueError(
                f"tolerance must be a number (in YAML 1.0e-9, not 1e-9) or a percentage like '5%', "
                f"got {self.tolerance!r}"
            )
        scalars = [value for *_, value in cells(self.claimed)]
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in scalars)
        if (self.comparison == "between") != _is_pair(self.claimed) or (
            self.comparison not in ("about", "between") and not numbers
        ):
            raise ValueError(f"comparison {self.comparison!r} cannot be used with the claimed value {self.claimed!r}")
        places = sorted((row, column) for row, column, _ in cells(self.claimed))
        if self.outcomes and sorted(tuple(outcome.cell) for outcome in self.outcomes) != places:
            raise ValueError("outcomes must have exactly one entry for each claimed cell")

    def _check_cost(self) -> None:
        if (self.cost == "impossible") != bool(self.why):
            raise ValueError("why is required if cost is impossible, and not allowed otherwise")
        if self.cost == "impossible" and (self.command or self.check or self.measured):
            raise ValueError("a claim with cost impossible must not have a check, command or measured value")
        decided = any(e.decides for e in self.evidence)
        if self.cost == "instant":
            if self.measured or self.command is not None:
                raise ValueError("an instant claim must not have a command or a measured value")
            if not self.check and not decided:
                raise ValueError("an instant claim needs a check, or evidence with a value or check")
            if self.check and self.kind in OF_THE_CODE and not self.parity:
                raise ValueError("a check of our model needs parity: the test that it equals the original's")
            if self.check and self.kind in OF_A_RUN:
                raise ValueError(f"a {self.kind} must be measured by a run, not by an instant check")
        elif self.cost != "impossible" and not (self.check and self.command):
            raise ValueError("a claim that is not instant needs check (how it is measured) and command")

    def allowance(self, claimed: float) -> float:
        """The tolerance around a claimed value, in its unit."""
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
    """(row, column, value) of each cell of a table; any other value is a single cell with empty names."""
    if isinstance(value, Mapping):
        for row, columns in value.items():
            for column, cell in columns.items():
                yield row, column, cell
    else:
        yield "", "", value


def _is_pair(value: Value) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2


class Group(BaseModel, extra="allow"):
    """Entries and their shared fields."""

    entries: list[dict[str, Any]]


class File(BaseModel, extra="forbid"):
    """A claims.yaml whose entries are not parsed yet."""

    settings: dict[str, dict[str, Any]] = {}
    runs: dict[str, dict[str, Any]] = {}
    groups: Annotated[list[Group], Field(min_length=1)]


def load_claims(file: Path) -> list[Claim]:
    """The entries of a claims.yaml. ValueError, naming file and entry, for an invalid one."""
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
        raise ValueError(f"{file}: duplicate claim id {min(doubled)}")
    if unused := (settings.keys() | runs.keys()) - used.union(*(run.meets for run in runs.values())):
        raise ValueError(f"{file}: no claim uses the setting or run {min(unused)}")
    return claims


def _read(adapter: TypeAdapter[T], fields: Any, where: str, named: Mapping[str, Any] | None = None) -> T:
    """Parse a YAML mapping into a class, including nested ones. One-line ValueError if it is invalid."""
    try:
        return adapter.validate_python(fields, context=named)
    except ValidationError as e:
        says = [": ".join(filter(None, [".".join(map(str, d["loc"])), d["msg"]])) for d in e.errors()]
        raise ValueError(" ".join(f"{where}: {'; '.join(says)}".split())) from e
