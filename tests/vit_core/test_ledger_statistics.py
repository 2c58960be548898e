"""Intervals, paired differences and Holm's correction, against scipy and worked examples."""

import random

import pytest
from scipy import stats

from vit_core.ledger.statistics import differences_to_baseline, holm, mean_interval, paired_difference


def test_the_interval_of_a_mean_is_scipys():
    values = [52.15, 51.53, 53.1, 52.4]
    wanted = stats.t.interval(0.95, 3, loc=sum(values) / 4, scale=stats.sem(values))
    assert mean_interval(values) == pytest.approx(wanted)
    assert mean_interval([52.15]) == (float("-inf"), float("inf")), "one run has no interval"


def test_a_paired_difference_is_scipys_paired_t_test():
    treatment, baseline = [52.9, 53.1, 52.7], [49.7, 49.5, 49.9]
    found = paired_difference(treatment, baseline)
    wanted = stats.ttest_rel(treatment, baseline)
    interval = wanted.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(wanted.pvalue)
    assert found.differs
    assert found.n == 3


def test_pairing_takes_out_what_the_seeds_share():
    """Seeds differ by 10 points, the rows by 1 in each seed: paired, the difference is found."""
    baseline = [40.0, 50.0, 60.0]
    found = paired_difference([41.1, 50.9, 61.0], baseline)
    assert found.differs
    low, _ = mean_interval(baseline)
    assert low < 41, "and by the spread of the rows alone it would not be"


def test_few_seeds_say_little():
    assert not paired_difference([52.0], [40.0]).differs
    assert not paired_difference([50.4, 50.0], [49.0, 49.6]).differs, "+0.4 and +1.4: with two seeds t is 12.7"
    assert paired_difference([1.0, 2.0], [1.0, 2.0]).p == 1.0
    with pytest.raises(ValueError, match="2 and 1 values"):
        paired_difference([1.0, 2.0], [1.0])


def test_holm_on_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_an_interval_leaves_zero_out_exactly_where_holm_rejects():
    rng = random.Random(0)
    both = set()
    for _ in range(200):
        rows = {"baseline": {s: rng.gauss(50, 1) for s in range(4)}}
        for row in range(5):
            shift = rng.choice([0, 0, 2, 4])
            rows[f"row {row}"] = {s: v + shift + rng.gauss(0, 0.6) for s, v in rows["baseline"].items()}
        for difference in differences_to_baseline(rows, "baseline").values():
            assert difference.differs == (difference.p < 0.05)
            both.add(difference.differs)
    assert both == {True, False}


def test_many_comparisons_of_nothing_rarely_show_a_difference():
    """Six rows that are all the baseline: uncorrected about a quarter of the tables would show something."""
    rng = random.Random(1)
    tables = 0
    for _ in range(400):
        rows = {f"{r}": {s: rng.gauss(0, 1) for s in range(5)} for r in range(7)}
        tables += any(d.differs for d in differences_to_baseline(rows, "0").values())
    assert tables / 400 < 0.08


def test_rows_are_compared_over_the_seeds_that_both_have():
    rows = {"dense": {0: 1.0, 1: 2.0}, "sparse": {1: 2.5, 2: 9.0}, "other": {3: 1.0}}
    found = differences_to_baseline(rows, "dense")
    assert found.keys() == {"sparse"}
    assert (found["sparse"].mean, found["sparse"].n) == (0.5, 1)
    assert str(found["sparse"]) == "+0.50 (one seed: no interval)"
