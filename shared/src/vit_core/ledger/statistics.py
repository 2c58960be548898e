"""Significance of differences between rows: paired differences over seeds, t intervals, Holm correction.

All rows with the same seed use the same initialization and data order, so rows are compared seed by seed. With two or
three seeds the intervals are wide (t = 12.7 and 4.3), as they should be for so few runs.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

LEVEL = 0.95
UNBOUNDED = (float("-inf"), float("inf"))


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences with its interval; `p` from the two-sided paired t-test, Holm-adjusted where noted."""

    mean: float
    low: float
    high: float
    p: float
    n: int

    @property
    def differs(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        """ "+3.22 (+2.38 … +4.06)"; a single pair has no interval."""
        interval = f"({self.low:+.2f} … {self.high:+.2f})" if self.n > 1 else "(one seed: no interval)"
        return f"{self.mean:+.2f} {interval}"


def mean_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """t interval of the mean of independent values; unbounded for fewer than two."""
    if len(values) < 2:
        return UNBOUNDED
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * spread / len(values) ** 0.5
    return mean - half, mean + half


def paired_difference(treatment: Sequence[float], baseline: Sequence[float], level: float = LEVEL) -> Difference:
    """treatment - baseline, with the same seed at the same position. ValueError for different or zero lengths."""
    if len(treatment) != len(baseline) or not treatment:
        raise ValueError(
            f"paired differences need one value per seed in both rows, got {len(treatment)} and {len(baseline)} values"
        )
    differences = [a - b for a, b in zip(treatment, baseline, strict=True)]
    mean = statistics.fmean(differences)
    low, high = mean_interval(differences, level)
    if len(differences) < 2:
        p = 1.0
    elif low == high:  # all differences are equal: zero variance
        p = float(mean == 0)
    else:
        p = float(stats.ttest_1samp(differences, 0).pvalue)
    return Difference(mean, low, high, p, len(differences))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Scandinavian Journal of Statistics 6, 1979), in the order given."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def corrected_differences(
    pairs: Mapping[str, tuple[Sequence[float], Sequence[float]]], level: float = LEVEL
) -> dict[str, Difference]:
    """The paired difference of each pair (treatment, baseline), Holm-corrected for the number of pairs.

    Each interval has the level at which Holm's procedure tests its pair, so it excludes zero exactly if the adjusted p
    is below 1 - level.
    """
    raw = {name: paired_difference(*pair).p for name, pair in pairs.items()}
    adjusted = dict(zip(raw, holm(list(raw.values())), strict=True))
    found: dict[str, Difference] = {}
    tests = len(raw)
    for name in sorted(raw, key=raw.__getitem__):
        alpha = (1 - level) / tests
        difference = paired_difference(*pairs[name], level=1 - alpha)
        found[name] = dataclasses.replace(difference, p=adjusted[name])
        if raw[name] < alpha:  # rejected: the next is tested at a larger alpha, until the first non-rejection
            tests -= 1
    return {name: found[name] for name in pairs}


def differences_to_baseline(
    rows: Mapping[str, Mapping[int, float]], baseline: str, level: float = LEVEL
) -> dict[str, Difference]:
    """Each row against the baseline over the seeds that both have, corrected for the number of rows.

    rows: row -> seed -> value. Rows that share no seed with the baseline are left out.
    """
    pairs = {}
    for row, values in rows.items():
        seeds = sorted(values.keys() & rows[baseline].keys())
        if row != baseline and seeds:
            pairs[row] = ([values[s] for s in seeds], [rows[baseline][s] for s in seeds])
    return corrected_differences(pairs, level)
