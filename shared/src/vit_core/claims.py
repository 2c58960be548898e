"""What a paper claims beside what was measured: the entries of a package's claims.yaml, and the verdicts.

A verdict is computed from the claimed and the measured value, never written down:

    holds             the measured value is within the entry's tolerance
    holds if …        it is not, but under another reading of the setting, which the entry names, it is
    fails             it is not under any reading
    not run           nothing was measured at the claim's setting
    error             the check itself ended in an exception, which the report shows

An instant claim is measured each time, by a function of the package; every other entry names the command that would
measure it and, where that was run, the value with commit, date, seed and machine. docs/adding_a_paper.md has examples.
"""

import dataclasses
import datetime
import math
import re
import statistics
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
import yaml

from vit_core.run_folder import environment

Value = float | int | bool | str | Sequence[float]
Checks = Mapping[str, Callable[[], Value]]

COSTS = ("instant", "cpu-minutes", "gpu-hours")
# What a claim is about. Only the first two say what a paper found or promises; the others are there to be complete.
KINDS = ("result", "property", "size", "setting", "arithmetic", "specification")
COMPARISONS = ("about", "at least", "at most", "above", "below", "between")
HOLDS, HOLDS_IF, FAILS, NOT_RUN, ERROR = VERDICTS = ("holds", "holds if", "fails", "not run", "error")
SEED = 0  # of every instant check


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A value that a command gave, and where it is recorded."""

    value: Value  # of several seeds: one value each
    commit: str
    date: str
    seed: int | Sequence[int] | None  # None: nothing is drawn, or timings
    machine: str
    results: str  # the file under results/ that holds it
    cell: Mapping[str, Any] | None = None  # of a CSV or JSON file: which; see tests/workspace/test_claims.py
    quote: str | None = None  # of a text: the words in it that say so


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
class Related:
    """What was measured near the claim's setting, but not at it: it gives no verdict."""

    statement: str  # with the figures
    results: str | None = None  # where they are
    quote: str | None = None  # the words, or a figure, in that file


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where a run of the paper's own recipe (`reproduce --preset paper`) has the value that is claimed."""

    training: str  # name of a `Training`
    row: str
    column: str  # acc1 or acc5, in percent of the evaluation images
    epoch: int | None = None  # of the validation curve (acc1 alone); None: after the last

    def __post_init__(self) -> None:
        if self.column not in ("acc1", "acc5") or (self.epoch is not None and self.column != "acc1"):
            raise ValueError(f"an outcome is acc1 or acc5, by epoch acc1 alone; not {self.column!r}")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """An entry of claims.yaml. `unit`, `setting` and `note` are for readers; the rest decides the verdict.

    kind: a `result` of training or timing; a `property` of the model or method; a `size`; a `setting` of the recipe,
    which holds where the package's preset has it; `arithmetic` on figures that the paper itself gives, where nothing is
    measured; a `specification`, which is ours after the original's code and not a sentence of the paper.
    """

    id: str
    source: str  # which part of the paper, README or table
    statement: str
    claimed: Value
    cost: str
    kind: str = "property"
    unit: str = ""
    setting: str = ""
    comparison: str = "about"  # how `claimed` is meant
    tolerance: float | str | None = None  # "1%" is relative; default: half a unit of the last digit that is claimed
    check: str = ""  # instant: a function of the package; else how it is measured, in words
    command: str | None = None  # of what is not instant
    readings: Sequence[Reading] = ()
    measured: Measured | None = None
    outcome: Outcome | None = None
    related: Related | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.cost not in COSTS:
            raise ValueError(f"cost is one of {', '.join(COSTS)}, not {self.cost!r}")
        if self.kind not in KINDS:
            raise ValueError(f"kind is one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.comparison not in COMPARISONS:
            raise ValueError(f"comparison is one of {', '.join(COMPARISONS)}, not {self.comparison!r}")
        if self.cost == "instant":
            if not self.check or self.measured is not None or self.command is not None:
                raise ValueError("an instant claim has a check, and neither a command nor a measured value of its own")
        elif not self.check or not self.command:
            raise ValueError("a claim that is not instant says how it is measured (check) and by which command")
        if isinstance(self.tolerance, str) and not re.fullmatch(r"\d+(\.\d+)?%", self.tolerance):
            raise ValueError(f"tolerance is a number (1.0e-9, not 1e-9, to YAML) or like '5%', not {self.tolerance!r}")
        is_number = isinstance(self.claimed, int | float) and not isinstance(self.claimed, bool)
        is_pair = isinstance(self.claimed, Sequence) and not isinstance(self.claimed, str) and len(self.claimed) == 2
        if (self.comparison == "between") != is_pair or (self.comparison in COMPARISONS[1:5] and not is_number):
            raise ValueError(f"{self.comparison!r} does not compare with {self.claimed!r}")

    def holds_for(self, measured: Measured) -> bool:
        """Of several seeds their mean is judged; of several other values, such as one a block, each must agree."""
        value = measured.value
        if isinstance(value, Sequence) and not isinstance(value, str):
            seeds = isinstance(measured.seed, Sequence)
            return bool(value) and all(map(self._agrees, [statistics.fmean(value)] if seeds else value))
        return self._agrees(value)

    def _agrees(self, value: float | int | bool | str) -> bool:
        if isinstance(self.claimed, bool | str):
            return type(value) is type(self.claimed) and value == self.claimed
        if isinstance(value, str | bool) or not math.isfinite(value):
            return False
        if isinstance(self.claimed, Sequence):
            low, high = (float(c) for c in self.claimed)
            return low <= value <= high
        claimed = float(self.claimed)
        allowed = self.allowance() + 1e-9 * abs(claimed)  # 0.7 + 0.1 is less than 0.8
        return {
            "about": abs(value - claimed) <= allowed, "at least": value >= claimed - allowed,
            "at most": value <= claimed + allowed, "above": value > claimed, "below": value < claimed,
        }[self.comparison]  # fmt: skip

    def allowance(self) -> float:
        """How far a value may be from the claimed one, in its unit."""
        assert isinstance(self.claimed, int | float)
        if isinstance(self.tolerance, str):
            return abs(float(self.claimed)) * float(self.tolerance.removesuffix("%")) / 100
        if self.tolerance is not None:
            return float(self.tolerance)
        if self.comparison != "about" or isinstance(self.claimed, int):
            return 0.0
        exponent = Decimal(repr(self.claimed)).as_tuple().exponent
        assert isinstance(exponent, int)
        return 0.5 * 10.0**exponent


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim with what was measured."""

    claim: Claim
    verdict: str  # one of VERDICTS
    measured: Measured | None = None  # of the claim itself, or of the reading under which it holds
    condition: str = ""  # "holds if" this
    under: Sequence[tuple[str, Value]] = ()  # what the other readings gave
    how: str = ""  # of an instant check: the first line of its function's docstring
    error: str = ""


def load_claims(file: Path) -> list[Claim]:
    """The entries of a claims.yaml. ValueError, naming file and entry, for one that is not as `Claim` says."""
    entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(entries, list):
        raise ValueError(f"{file} holds no list of claims")
    claims: list[Claim] = []
    for number, entry in enumerate(entries, 1):
        name = entry.get("id", f"entry {number}") if isinstance(entry, dict) else f"entry {number}"
        try:
            claims.append(_read(Claim, entry))
        except (TypeError, ValueError) as e:
            raise ValueError(f"{file}, {name}: {e}") from e
    doubled = {c.id for c in claims if [d.id for d in claims].count(c.id) > 1}
    if doubled:
        raise ValueError(f"{file}: more than one claim is called {min(doubled)}")
    return claims


Trained = Callable[[Outcome], Measured | None]  # what this run's own training reached


def judge(
    claims: Sequence[Claim],
    checks: Checks,
    on_claim: Callable[[Claim], None] | None = None,
    trained: Trained = lambda outcome: None,
) -> list[Verdict]:
    """The verdict of each claim, the instant ones measured now.

    on_claim: called before each. trained: what this run's own trainings by the paper's recipe reached, which goes
    before what is recorded.
    """
    where = environment()
    now = {
        "commit": where["git_commit"] or "no checkout", "date": f"{datetime.date.today()}", "seed": SEED,
        "machine": where["machine"], "results": "measured by this run",
    }  # fmt: skip
    verdicts = []
    for claim in claims:
        if on_claim is not None:
            on_claim(claim)
        reached = trained(claim.outcome) if claim.outcome else None
        if reached:
            claim = dataclasses.replace(claim, measured=reached)
        verdicts.append(_judge(claim, checks, now))
    return verdicts


def _judge(claim: Claim, checks: Checks, now: Mapping[str, Any]) -> Verdict:
    how = _how(checks, claim.check) if claim.cost == "instant" else claim.check
    try:
        measured = claim.measured
        if claim.cost == "instant":
            own = (
                {"seed": None, "results": "computed from the paper's own figures"} if claim.kind == "arithmetic" else {}
            )
            measured = Measured(value=_measure(checks, claim.check), **{**now, **own})
        if measured is None:
            return Verdict(claim=claim, verdict=NOT_RUN, how=how)
        if claim.holds_for(measured):
            return Verdict(claim=claim, verdict=HOLDS, measured=measured, how=how)
        under = []
        for reading in claim.readings:
            found = reading.measured
            if reading.check is not None:
                found = Measured(value=_measure(checks, reading.check), **now)
            assert found is not None
            under.append((reading.when, found.value))
            if not reading.repair and claim.holds_for(found):
                return Verdict(
                    claim=claim, verdict=HOLDS_IF, measured=measured, condition=reading.when, under=under, how=how
                )
        return Verdict(claim=claim, verdict=FAILS, measured=measured, under=under, how=how)
    except (Exception, SystemExit) as e:  # a broken check is a result, too: the other claims are still to be judged
        return Verdict(claim=claim, verdict=ERROR, how=how, error=f"{type(e).__name__}: {e}")


def _measure(checks: Checks, name: str) -> Value:
    """Run a check under a seed of its own; the caller's random state stays as it was."""
    if name not in checks:
        raise ValueError(f"the package has no check called {name}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        value = checks[name]()
    if not isinstance(value, float | int | bool | str | Sequence):
        raise TypeError(f"the check {name} gave {type(value).__name__}, no plain value")
    return value


def _how(checks: Checks, name: str) -> str:
    """The first paragraph of a check's docstring, on one line."""
    text = (checks[name].__doc__ or "") if name in checks else ""
    return " ".join(text.strip().partition("\n\n")[0].split())


def count(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """How many claims have each verdict."""
    return {name: sum(v.verdict == name for v in verdicts) for name in VERDICTS}


def _read(kind: type, entry: Any) -> Any:
    """A mapping of YAML -> the dataclass, nested ones included. TypeError, ValueError for what it is not."""
    if not isinstance(entry, dict):
        raise TypeError(f"needs a mapping, got {entry!r}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = entry.keys() - fields.keys()
    if unknown:
        raise ValueError(f"has no field {min(map(str, unknown))}")
    missing = [
        n for n, f in fields.items()
        if n not in entry and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]  # fmt: skip
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
