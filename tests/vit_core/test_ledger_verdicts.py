"""Verdicts: computed from claimed and found values, and only from these."""

import random

import pytest
import torch

from vit_core.ledger.claims import Claim, Evidence, Measured, Outcome, Reading, Run, Scaled, Setting
from vit_core.ledger.verdicts import judge

SETTING = Setting(name="cifar", what="CIFAR-10, 10 epochs", counts="the published images")


def run_of(by="ours", meets=("cifar",)):
    return Run(
        name=by, what="a run", by=by, meets=meets, command="x-train", commit="abc", date="2026-11-26", machine="a"
    )


def measured(value, seed=None, **fields):
    run = fields.pop("run", run_of())
    return Measured(run=run, value=value, seed=seed, results="x.csv", **fields)


def claim(**fields):
    common = {"id": "x", "source": "Table 1", "statement": "It is so.", "claimed": 2.47, "kind": "arithmetic"}
    cost = {"cost": "instant", "check": "it"}
    return Claim(**{**common, **cost, **fields})


def result(**fields):
    """A claim about an accuracy."""
    given = {
        "claimed": 53.2,
        "kind": "result",
        "setting": SETTING,
        "cost": "gpu-hours",
        "check": "train",
        "command": "x",
    }
    return claim(**{**given, **fields})


def size(**fields):
    return claim(**{"kind": "size", "parity": "tests/x/test_parity.py", **fields})


def verdict_of(entry, value=None, **others):
    (verdict,) = judge([entry], {"it": lambda: value, **{k: (lambda v=v: v) for k, v in others.items()}})
    return verdict


# ── exact values ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "holding", "failing"),
    [
        ({"claimed": 2.47}, [2.465, 2.475, 2.47], [2.4649, 2.4751, float("nan")]),  # half a unit of the last digit
        ({"claimed": 99.3}, [99.25, 99.35], [99.45, 99.24]),
        ({"claimed": 64}, [64, 64.0], [65, 63.9, True, "64"]),  # whole numbers are meant exactly
        ({"claimed": 1e-05}, [1.4e-5], [1.6e-5, 0.4]),
        ({"claimed": 70, "tolerance": 5}, [65, 75], [64.9, 75.1]),
        ({"claimed": 25.0, "tolerance": "20%"}, [20, 30], [19.9, 30.1]),
        ({"claimed": 0.7, "comparison": "at least"}, [0.7, 1], [0.69]),
        ({"claimed": 0.7, "comparison": "at most", "tolerance": 0.1}, [0.8, 0], [0.81]),
        ({"claimed": 0, "comparison": "above"}, [1e-9], [0, -1]),
        ({"claimed": 0, "comparison": "below"}, [-1e-9], [0, 1]),
        ({"claimed": [78, 80], "comparison": "between"}, [78, 79.5, 80], [77.9, 80.1]),
        ({"claimed": True}, [True], [False, 1]),
        ({"claimed": "cosine"}, ["cosine"], ["constant", True]),
        ({"claimed": 64}, [[64, 64]], [[64, 63], [1, 127], []]),  # one a block: each
    ],
)
def test_an_exact_value_is_judged_by_comparison_and_tolerance(fields, holding, failing):
    assert [verdict_of(size(**fields), v).verdict for v in holding] == ["holds"] * len(holding)
    assert [verdict_of(size(**fields), v).verdict for v in failing] == ["fails"] * len(failing)


def test_a_table_is_one_claim_judged_cell_by_cell():
    table = {"Tiny": {"depth": 12, "million": 2.47}, "Small": {"depth": 16, "million": 5.29}}
    found = {"Tiny": {"depth": 12, "million": 13.05}, "Small": {"depth": 16, "million": 5.29}}
    assert verdict_of(size(claimed=table), table).verdict == "holds"
    verdict = verdict_of(size(claimed=table), found)
    assert verdict.verdict == "fails"
    assert [(c.row, c.column, c.found, c.verdict) for c in verdict.cells if c.verdict != "holds"] == [
        ("Tiny", "million", 13.05, "fails")
    ]
    assert "different cells: ('Small', 'depth')" in verdict_of(size(claimed=table), {"Tiny": table["Tiny"]}).error
    assert "different cells" in verdict_of(size(claimed=table), {**table, "Base": {"depth": 1}}).error


def test_another_reading_makes_it_hold_if():
    readings = [Reading(when="at depth 12", check="deep"), Reading(when="at depth 2", check="flat")]
    verdict = verdict_of(size(readings=readings), 13.05, deep=12.0, flat=2.4694)
    assert (verdict.verdict, verdict.condition) == ("holds if", "at depth 2")
    assert verdict.found[0].measured.value == 13.05, "the claim's own setting is shown"
    assert list(verdict.under) == [("at depth 12", 12.0), ("at depth 2", 2.4694)]
    assert verdict_of(size(readings=readings), 2.47, deep=1, flat=1).verdict == "holds"
    assert verdict_of(size(readings=readings), 13.05, deep=1, flat=1).verdict == "fails"


def test_a_repair_of_ours_is_shown_and_does_not_save_the_claim():
    verdict = verdict_of(size(claimed=0, readings=[Reading(when="our bank", check="ours", repair=True)]), 78, ours=0)
    assert (verdict.verdict, verdict.condition) == ("fails", "")
    assert list(verdict.under) == [("our bank", 0)]


def test_sums_that_do_not_agree_contradict_the_papers_own_figures():
    assert verdict_of(claim(), 2.47).verdict == "holds"
    verdict = verdict_of(claim(), 2.5)
    assert (verdict.verdict, verdict.reason) == ("contradicted", "the paper's own numbers give another value")
    assert verdict.found[0].measured.results == "computed from the paper's own numbers"


# ── results of trainings ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "tolerance", "says"),
    [
        ([53.1, 53.2, 53.3], 1.0, "holds"),  # ± 0.25
        ([53.1, 53.2, 53.3], 0.1, "undecided"),  # the interval is wider than the band
        ([52.1, 51.5, 51.8], 1.0, "undecided"),  # 51.8 ± 0.75 reaches into 52.2 …
        ([50.1, 50.2, 50.3], 1.0, "fails"),
        ([53.2], 1.0, "undecided"),  # one training has no interval
        ([50.0, 56.4], 1.0, "undecided"),
    ],
)
def test_of_several_seeds_the_interval_is_held_against_the_band(value, tolerance, says):
    found = measured(value, seed=list(range(len(value))))
    assert verdict_of(result(tolerance=tolerance, measured=[found])).verdict == says


def test_an_interval_over_images_decides_too():
    below = {"claimed": 0.0, "comparison": "above"}
    assert verdict_of(result(**below, measured=[measured(0.55, interval=[0.08, 1.01])])).verdict == "holds"
    assert verdict_of(result(**below, measured=[measured(0.4, interval=[-0.6, 1.39])])).verdict == "undecided"
    assert verdict_of(result(**below, measured=[measured(-0.1, interval=[-0.12, -0.07])])).verdict == "fails"
    alone = verdict_of(result(**below, measured=[measured(5.0)]))
    assert (alone.verdict, alone.reason) == ("undecided", "only one measurement, so there is no interval")


def test_a_table_of_accuracies_is_judged_over_its_seeds():
    table = {"rope": {"acc1": 53.3}, "plain": {"acc1": 48.1}}
    found = {"rope": {"acc1": [53.2, 53.3, 53.4]}, "plain": {"acc1": [49.8, 49.9, 50.0]}}
    verdict = verdict_of(result(claimed=table, tolerance=1.0, measured=[measured(found, seed=[0, 1, 2])]))
    assert [c.verdict for c in verdict.cells] == ["holds", "fails"]
    assert verdict.verdict == "fails"


def test_only_a_run_that_meets_the_setting_decides():
    near = measured([53.1, 53.2, 53.3], seed=[0, 1, 2], run=run_of(meets=()))
    verdict = verdict_of(result(measured=[near]))
    assert verdict.verdict == "not run"
    assert [(f.measured.value, f.decides) for f in verdict.found] == [([53.1, 53.2, 53.3], False)]


def test_the_originals_own_code_decides_before_ours():
    ours = measured([50.1, 50.2, 50.3], seed=[0, 1, 2])
    theirs = measured([53.1, 53.2, 53.3], seed=[0, 1, 2], run=run_of("original"))
    verdict = verdict_of(result(tolerance=1.0, measured=[ours, theirs]))
    assert verdict.verdict == "holds"
    assert [f.measured.run.by for f in verdict.found] == ["original", "ours"]


def test_what_this_run_trained_replaces_what_is_recorded():
    entry = result(
        tolerance=1.0,
        outcomes=[Outcome(training="c", row="r", column="acc1")],
        measured=[measured([53.1, 53.2, 53.3], seed=[0, 1, 2])],
    )
    reached = measured([40.1, 40.2, 40.3], seed=[3, 4, 5])
    (verdict,) = judge([entry], {}, trained=lambda outcomes: reached)
    assert (verdict.verdict, verdict.found[0].measured.seed) == ("fails", [3, 4, 5])


# ── the original's own artifacts ──────────────────────────────────────────────────────────────────────────────────


def evidence(value=None, **fields):
    return Evidence(where="Table III", says="It says so.", value=value, **fields)


def test_an_artifact_that_disagrees_contradicts_whatever_was_measured():
    agreeing = measured([53.1, 53.2, 53.3], seed=[0, 1, 2])
    verdict = verdict_of(result(tolerance=1.0, evidence=[evidence(50.0)], measured=[agreeing]))
    assert (verdict.verdict, verdict.reason, verdict.cells[0].found) == ("contradicted", "Table III", 50.0)
    assert verdict.found[0].measured == agreeing, "and what was measured is shown"


def test_an_artifact_that_agrees_is_no_second_source_for_a_result():
    assert verdict_of(result(evidence=[evidence(53.2)])).verdict == "not run"


@pytest.mark.parametrize("kind", ["recipe", "size", "property"])
def test_what_the_code_does_decides_about_the_code(kind):
    given = {"kind": kind, "claimed": 300, "check": ""}
    assert verdict_of(claim(**given, evidence=[evidence(300)])).verdict == "holds"
    assert verdict_of(claim(**given, evidence=[evidence(200)])).verdict == "contradicted"
    assert verdict_of(claim(**given, evidence=[evidence(300), evidence(200)])).verdict == "contradicted"


def test_artifacts_may_be_computed_and_speak_of_a_part_of_a_table():
    table = {"ours": {"acc": 98.7, "FAP": 76.5}, "ViT": {"acc": 97.1, "FAP": 51.3}}
    computed = Evidence(where="Fig. 2", says="The mean of its recalls.", check="mean")
    verdict = verdict_of(result(claimed=table, evidence=[computed]), mean={"ours": {"acc": 96.8}})
    assert verdict.verdict == "contradicted"
    assert [(c.row, c.column) for c in verdict.cells] == [("ours", "acc")]


def test_all_artifacts_that_disagree_are_named():
    second = Evidence(where="Fig. 5", says="And it.", value=49.0)
    verdict = verdict_of(result(tolerance=1.0, evidence=[evidence(50.0), evidence(53.2), second]))
    assert (verdict.reason, [c.found for c in verdict.cells]) == ("Table III; Fig. 5", [50.0, 49.0])


def test_evidence_without_a_value_is_shown_and_decides_nothing():
    assert verdict_of(result(evidence=[evidence()])).verdict == "not run"


# ── scaled, not run ───────────────────────────────────────────────────────────────────────────────────────────────


def scaled(rows, expected, seeds=(0, 1, 2, 3)):
    return Scaled(
        model="micro",
        sound="trained until it is good",
        run=run_of(meets=()),
        seeds=seeds,
        baseline=[50.0, 51.0, 52.0, 53.0],
        rows=rows,
        expected=expected,
        results="s.csv",
    )


UP, FLAT = [53.1, 53.9, 55.2, 55.9], [50.5, 50.6, 52.4, 52.5]


@pytest.mark.parametrize(
    ("expected", "says"),
    [
        ({"rope": "above"}, "scaled: agrees"),
        ({"rope": "below"}, "scaled: disagrees"),
        ({"rope": "above", "flat": "above"}, "scaled: undecided"),
        ({"rope": "below", "flat": "above"}, "scaled: disagrees"),
    ],
)
def test_a_scaled_verdict_follows_from_the_corrected_intervals(expected, says):
    verdict = verdict_of(result(scaled=[scaled({"rope": UP, "flat": FLAT}, expected)]))
    assert verdict.verdict == says
    assert verdict.differences["rope"].differs
    assert not verdict.differences["flat"].differs


def test_a_measurement_at_the_setting_comes_before_a_scaled_one():
    found = measured([40.1, 40.2, 40.3], seed=[0, 1, 2])
    entry = result(tolerance=1.0, measured=[found], scaled=[scaled({"rope": UP}, {"rope": "above"})])
    assert verdict_of(entry).verdict == "fails"


def test_what_nobody_can_run_is_said():
    verdict = verdict_of(result(cost="impossible", why="the weights were never published", check="", command=None))
    assert (verdict.verdict, verdict.reason) == ("cannot be run", "the weights were never published")


# ── checks ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_check_that_breaks_is_an_error_and_the_others_are_judged():
    def broken():
        """It breaks."""
        raise ZeroDivisionError("of nothing")

    found = judge(
        [claim(check="broken"), claim(check="gone"), claim(check="tensor"), claim()],
        {"broken": broken, "it": lambda: 2.47, "tensor": lambda: torch.ones(())},
    )
    assert [v.verdict for v in found] == ["error", "error", "error", "holds"]
    assert found[0].error == "ZeroDivisionError: of nothing"
    assert "no check called gone" in found[1].error
    assert "Tensor, expected a number" in found[2].error


def test_instant_measurements_name_where_and_how_and_leave_the_random_state_alone():
    def drawn() -> float:
        """Mean of a draw,
        by torch.

        More for readers of the code.
        """
        return float(torch.rand(3).mean())

    torch.manual_seed(random.randrange(1000))
    before = torch.get_rng_state()
    first, second = (judge([size(check="drawn")], {"drawn": drawn})[0] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.found[0].measured.value == second.found[0].measured.value, "a check has a seed of its own"
    assert first.how == "Mean of a draw, by torch."
    assert first.found[0].measured.seed == 0
    run = first.found[0].measured.run
    assert all((run.commit, run.date, run.machine))
