"""The verdict of each claim, always computed from the claim and the evidence, never stored.

    contradicted       the original's own code, logs, tables or figures say otherwise
    holds              the claim agrees with a measurement at its setting, or with what the original's code does
    holds if …         not as stated, but under another reading of the setting, which the entry names
    fails              measured at its setting, and false under every reading
    undecided          measured at its setting, but the interval includes both agreeing and disagreeing values, or there
                       is only one training and so no interval
    scaled: …          not measured at its setting; a smaller model, over at least three paired seeds, agrees with its
                       direction, disagrees, or is inconclusive
    cannot be run      weights, data or hardware are not available
    not run            nothing was measured at its setting
    error              the check itself raised an exception, which the report shows

The first in this order that applies is used: the original's own artifacts take precedence over measurements made here.
"""

import dataclasses
import datetime
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from vit_core.ledger.claims import (
    OF_A_RUN,
    OF_THE_CODE,
    Checks,
    Claim,
    Evidence,
    Measured,
    Outcome,
    Run,
    Scalar,
    Scaled,
    Value,
    cells,
)
from vit_core.ledger.statistics import Difference, differences_to_baseline, mean_interval
from vit_core.training.run_folder import environment

HOLDS, HOLDS_IF, UNDECIDED, FAILS, CONTRADICTED = "holds", "holds if", "undecided", "fails", "contradicted"
AGREES, DISAGREES, OPEN = "scaled: agrees", "scaled: disagrees", "scaled: undecided"
NOT_RUN, CANNOT_RUN, ERROR = "not run", "cannot be run", "error"
VERDICTS = (HOLDS, HOLDS_IF, UNDECIDED, FAILS, CONTRADICTED, AGREES, DISAGREES, OPEN, NOT_RUN, CANNOT_RUN, ERROR)
SEED = 0  # of every instant check


@dataclass(frozen=True)
class Cell:
    """One claimed value and the value found; row and column are empty unless the claim is a table."""

    row: str
    column: str
    claimed: Scalar | Sequence[float]
    found: Scalar | Sequence[float] | None
    verdict: str  # holds, fails or undecided; "" if nothing was found


@dataclass(frozen=True, kw_only=True)
class Found:
    """A measurement shown with a claim."""

    measured: Measured
    decides: bool  # whether its run meets the claim's setting
    interval: tuple[float, float] | None = None  # 95% interval of a single number


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim with its verdict and the evidence for it."""

    claim: Claim
    verdict: str  # one of VERDICTS
    reason: str = ""  # what the verdict is based on
    cells: Sequence[Cell] = ()  # values of the measurement or artifact that the verdict is based on
    found: Sequence[Found] = ()  # all measurements, the deciding one first
    condition: str = ""  # "holds if" this
    under: Sequence[tuple[str, Value]] = ()  # values under the other readings
    differences: Mapping[str, Difference] = dataclasses.field(default_factory=dict)  # of a scaled verdict, by row
    how: str = ""  # of an instant check: the first paragraph of its function's docstring
    error: str = ""


Trained = Callable[[Sequence[Outcome]], Measured | None]  # results of this run's own trainings


def judge(
    claims: Sequence[Claim],
    checks: Checks,
    on_claim: Callable[[Claim], None] | None = None,
    trained: Trained = lambda outcomes: None,
) -> list[Verdict]:
    """The verdict of each claim; instant claims are measured now.

    on_claim: called before each claim. trained: returns results of this run's own trainings with the paper's recipe,
    which replace the recorded measurements.
    """
    now = run_of_now()
    verdicts = []
    for claim in claims:
        if on_claim is not None:
            on_claim(claim)
        reached = trained(claim.outcomes) if claim.outcomes else None
        try:
            verdicts.append(_judge(claim, checks, now, reached))
        except (Exception, SystemExit) as e:  # a broken check must not stop the other claims
            how = _how(checks, claim.check)
            verdicts.append(Verdict(claim=claim, verdict=ERROR, how=how, error=f"{type(e).__name__}: {e}"))
    return verdicts


def run_of_now() -> Run:
    """The provenance of measurements made by this process."""
    where = environment()
    return Run(
        name="now",
        what="measured by this run",
        by="ours",
        meets=(),
        command="reproduce claims",
        commit=where["git_commit"] or "no checkout",
        date=f"{datetime.date.today()}",
        machine=where["machine"],
    )


def _judge(claim: Claim, checks: Checks, now: Run, reached: Measured | None) -> Verdict:
    instant = claim.cost == "instant"
    how = _how(checks, claim.check) if instant else claim.check
    found = _measurements(claim, checks, now, reached)
    base = Verdict(claim=claim, verdict=NOT_RUN, found=found, how=how)
    agreeing: list[tuple[Evidence, list[Cell]]] = []
    against: list[tuple[Evidence, list[Cell]]] = []
    for evidence in claim.evidence:
        if not evidence.decides:
            continue
        value = evidence.value if evidence.check is None else _measure(checks, evidence.check)
        assert value is not None
        compared = _compare(claim, value, partial=True)
        (against if any(cell.verdict == FAILS for cell in compared) else agreeing).append((evidence, compared))
    if against:
        where = "; ".join(evidence.where for evidence, _ in against)
        compared = [cell for _, compared in against for cell in compared]
        return dataclasses.replace(base, verdict=CONTRADICTED, reason=where, cells=compared)
    if found and found[0].decides:
        return _by_measurement(base, found[0], checks, now)
    if agreeing and claim.kind in OF_THE_CODE:
        evidence, compared = agreeing[0]
        return dataclasses.replace(base, verdict=HOLDS, reason=evidence.where, cells=compared)
    if claim.scaled:
        return _by_scaled(base, claim.scaled[0])
    if claim.cost == "impossible":
        return dataclasses.replace(base, verdict=CANNOT_RUN, reason=claim.why)
    return base


def _measurements(claim: Claim, checks: Checks, now: Run, reached: Measured | None) -> list[Found]:
    """The measurements of a claim: deciding ones first, and among these the original's own code first."""
    if claim.cost == "instant":
        if not claim.check:
            return []
        results = "computed from the paper's own numbers" if claim.kind == "arithmetic" else "measured by this run"
        seed = None if claim.kind == "arithmetic" else SEED
        value = _measure(checks, claim.check)
        return [Found(measured=Measured(run=now, value=value, seed=seed, results=results), decides=True)]
    found = []
    for measured in claim.measured if reached is None else [reached]:
        meets = reached is not None or (claim.setting is not None and claim.setting.name in measured.run.meets)
        found.append(Found(measured=measured, decides=meets, interval=interval_of(measured)))
    return sorted(found, key=lambda f: (not f.decides, f.measured.run.by != "original"))


def interval_of(measured: Measured) -> tuple[float, float] | None:
    """95% interval of a measured number: the recorded one, or a t interval over the seeds; None if there is none."""
    if measured.interval is not None:
        low, high = measured.interval
        return low, high
    value = measured.value
    if isinstance(measured.seed, Sequence) and isinstance(value, Sequence) and len(value) > 1:
        return mean_interval([float(v) for v in value])
    return None


def _by_measurement(base: Verdict, found: Found, checks: Checks, now: Run) -> Verdict:
    claim, measured = base.claim, found.measured
    compared = _compare(claim, measured.value, measured, found.interval)
    verdict = _of_cells(compared)
    if verdict == FAILS and claim.kind == "arithmetic":
        reason = "the paper's own numbers give another value"
        return dataclasses.replace(base, verdict=CONTRADICTED, reason=reason, cells=compared)
    if verdict != FAILS:
        reason = "" if verdict == HOLDS else _why_undecided(measured)
        return dataclasses.replace(base, verdict=verdict, reason=reason, cells=compared)
    under: list[tuple[str, Value]] = []
    for reading in claim.readings:
        other = reading.measured
        if reading.check is not None:
            other = dataclasses.replace(measured, run=now, value=_measure(checks, reading.check))
        assert other is not None
        under.append((reading.when, other.value))
        if not reading.repair and _of_cells(_compare(claim, other.value, other, interval_of(other))) == HOLDS:
            return dataclasses.replace(base, verdict=HOLDS_IF, cells=compared, condition=reading.when, under=under)
    return dataclasses.replace(base, verdict=FAILS, cells=compared, under=under)


def _why_undecided(measured: Measured) -> str:
    seeds = len(measured.seed) if isinstance(measured.seed, Sequence) else 1
    if seeds == 1 and measured.interval is None:
        return "only one measurement, so there is no interval"
    return "the interval includes both agreeing and disagreeing values" + (f" (n = {seeds})" if seeds > 1 else "")


def _by_scaled(base: Verdict, scaled: Scaled) -> Verdict:
    values = {"the baseline": scaled.baseline, **scaled.rows}
    table = {row: dict(zip(scaled.seeds, seen, strict=True)) for row, seen in values.items()}
    differences = differences_to_baseline(table, "the baseline")
    signs = [
        0 if not differences[row].differs else 1 if (differences[row].mean > 0) == (wanted == "above") else -1
        for row, wanted in scaled.expected.items()
    ]
    verdict = DISAGREES if -1 in signs else AGREES if all(signs) else OPEN
    return dataclasses.replace(base, verdict=verdict, reason=scaled.model, differences=differences)


def _of_cells(compared: Sequence[Cell]) -> str:
    """Verdict of a table: it fails if any cell fails."""
    verdicts = [cell.verdict for cell in compared]
    return FAILS if FAILS in verdicts else UNDECIDED if UNDECIDED in verdicts else HOLDS


def _compare(
    claim: Claim,
    value: Value,
    measured: Measured | None = None,
    interval: tuple[float, float] | None = None,
    *,
    partial: bool = False,
) -> list[Cell]:
    """Compare cell by cell. ValueError for a missing cell (unless `partial`) or one that is not in the claim."""
    claimed = {(row, column): cell for row, column, cell in cells(claim.claimed)}
    found = {(row, column): cell for row, column, cell in cells(value)}
    missing, foreign = claimed.keys() - found.keys(), found.keys() - claimed.keys()
    if foreign or (missing and not partial):
        raise ValueError(f"the claimed and the measured table have different cells: {min(foreign or missing)}")
    return [
        Cell(row, column, claimed[row, column], cell, _decide(claim, claimed[row, column], cell, measured, interval))
        for (row, column), cell in found.items()
    ]


def _decide(
    claim: Claim,
    claimed: Scalar | Sequence[float],
    found: Scalar | Sequence[float],
    measured: Measured | None,
    interval: tuple[float, float] | None,
) -> str:
    """holds, fails or undecided. An interval, if there is one, is compared with the range of agreeing values."""
    band = _band(claim, claimed)
    if band is None or isinstance(found, str | bool):
        agree = [found] if isinstance(found, Scalar) else list(found)
        return HOLDS if agree and all(type(f) is type(claimed) and f == claimed for f in agree) else FAILS
    if measured is not None and claim.kind in OF_A_RUN:
        if interval is None and isinstance(found, Sequence) and len(found) > 1 and isinstance(measured.seed, Sequence):
            interval = mean_interval([float(f) for f in found])  # for one cell of a table
        if interval is None:
            return UNDECIDED
        inside = [_inside(band, end) for end in interval]
        low, high, _ = band
        if all(inside):
            return HOLDS
        return FAILS if not any(inside) and (interval[1] <= low or interval[0] >= high) else UNDECIDED
    values = [float(f) for f in found] if isinstance(found, Sequence) else [float(found)]
    return HOLDS if values and all(_inside(band, v) for v in values) else FAILS  # e.g. one value per block: all of them


Band = tuple[float, float, bool]  # low, high, whether the ends are excluded


def _band(claim: Claim, claimed: Scalar | Sequence[float]) -> Band | None:
    """The range of values that agree with a claimed number; None for strings and booleans."""
    if isinstance(claimed, Sequence) and not isinstance(claimed, str):
        low, high = (float(c) for c in claimed)
        return low, high, False
    if isinstance(claimed, str | bool):
        return None
    allowed = claim.allowance(claimed) + 1e-9 * abs(claimed)  # 0.7 + 0.1 is less than 0.8
    return {
        "about": (claimed - allowed, claimed + allowed, False),
        "at least": (claimed - allowed, math.inf, False),
        "at most": (-math.inf, claimed + allowed, False),
        "above": (claimed, math.inf, True),
        "below": (-math.inf, claimed, True),
    }[claim.comparison]


def _inside(band: Band, value: float) -> bool:
    low, high, strict = band
    return math.isfinite(value) and (low < value < high if strict else low <= value <= high)


def _measure(checks: Checks, name: str) -> Value:
    """Run a check with its own random seed; the caller's random state is unchanged."""
    if name not in checks:
        raise ValueError(f"the package has no check called {name}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        value = checks[name]()
    if not isinstance(value, float | int | bool | str | Sequence | Mapping):
        raise TypeError(f"the check {name} returned a {type(value).__name__}, expected a number, string, list or table")
    return value


def _how(checks: Checks, name: str) -> str:
    """The first paragraph of a check's docstring, on one line."""
    text = (checks[name].__doc__ or "") if name in checks else ""
    return " ".join(text.strip().partition("\n\n")[0].split())


def count(verdicts: Iterable[str]) -> dict[str, int]:
    """Number of occurrences of each verdict."""
    counted = Counter(verdicts)
    return {name: counted[name] for name in VERDICTS}


def in_words(counts: Mapping[str, int]) -> str:
    """How many claims were checked, and how, in one sentence: decided claims first, unmeasured ones last."""
    measured = {HOLDS: "hold", HOLDS_IF: "hold under another reading", FAILS: "fail", UNDECIDED: "undecided"}
    scaled = {AGREES: "agree", DISAGREES: "disagree", OPEN: "undecided"}
    parts = []
    for said, names in (("checked at their setting", measured), ("at a smaller scale", scaled)):
        found = [f"{counts[name]} {word}" for name, word in names.items() if counts[name]]
        if found:
            parts.append(f"{sum(counts[name] for name in names)} {said} ({', '.join(found)})")
    if counts[CONTRADICTED]:
        parts.append(f"{counts[CONTRADICTED]} contradicted by the original's own code, logs, tables or figures")
    rest = {NOT_RUN: "not run", CANNOT_RUN: "cannot be run", ERROR: "broken checks"}
    parts += [f"{counts[name]} {word}" for name, word in rest.items() if counts[name]]
    return ", ".join(parts) or "none"
