"""Verdicts: computed from claimed and measured values, and only from these."""

import dataclasses
import random

import pytest
import torch
import yaml

from vit_core.claims import Claim, Measured, Reading, judge, load_claims


def claim(**fields):
    common = {"id": "x", "source": "Table 1", "statement": "It is so.", "claimed": 2.47, "cost": "instant"}
    return Claim(**{**common, "check": "it", **fields})


def verdict_of(value, *, others=None, **fields):
    (verdict,) = judge(
        [claim(**fields)], {"it": lambda: value, **{k: (lambda v=v: v) for k, v in (others or {}).items()}}
    )
    return verdict


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
)  # fmt: skip
def test_a_value_is_judged_by_comparison_and_tolerance(fields, holding, failing):
    assert [verdict_of(v, **fields).verdict for v in holding] == ["holds"] * len(holding)
    assert [verdict_of(v, **fields).verdict for v in failing] == ["fails"] * len(failing)


def test_another_reading_makes_it_hold_if():
    readings = [Reading(when="at depth 12", check="deep"), Reading(when="at depth 2", check="flat")]
    verdict = verdict_of(13.05, readings=readings, others={"deep": 12.0, "flat": 2.4694})
    assert (verdict.verdict, verdict.condition) == ("holds if", "at depth 2")
    assert verdict.measured.value == 13.05, "the claim's own setting is shown"
    assert list(verdict.under) == [("at depth 12", 12.0), ("at depth 2", 2.4694)]
    assert verdict_of(2.47, readings=readings, others={"deep": 1, "flat": 1}).verdict == "holds"
    assert verdict_of(13.05, readings=readings, others={"deep": 1, "flat": 1}).verdict == "fails"


def test_a_repair_of_ours_is_shown_and_does_not_save_the_claim():
    readings = [Reading(when="our bank", check="ours", repair=True)]
    verdict = verdict_of(78, claimed=0, readings=readings, others={"ours": 0})
    assert (verdict.verdict, verdict.condition) == ("fails", "")
    assert list(verdict.under) == [("our bank", 0)]


def test_arithmetic_is_not_called_measured():
    verdict = verdict_of(2.5, kind="arithmetic")
    assert (verdict.measured.seed, verdict.measured.results) == (None, "computed from the paper's own figures")


def test_without_a_measurement_nothing_holds():
    expensive = {"cost": "gpu-hours", "check": "train it", "command": "uv run x-train"}
    assert verdict_of(0, **expensive).verdict == "not run"
    measured = Measured(value=[2.46, 2.48], commit="abc", date="2026-11-21", seed=[0, 1], machine="a", results="x.csv")
    verdict = verdict_of(0, **expensive, measured=measured)
    assert (verdict.verdict, verdict.measured.commit) == ("holds", "abc")
    assert verdict_of(0, **expensive, measured=measured, claimed=3.0).verdict == "fails"
    seeds = dataclasses.replace(measured, value=[2.0, 2.94])
    assert verdict_of(0, **expensive, measured=seeds).verdict == "holds", "of several seeds the mean"


def test_a_check_that_breaks_is_an_error_and_the_others_are_judged():
    def broken():
        """It breaks."""
        raise ZeroDivisionError("of nothing")

    found = judge([claim(check="broken"), claim(check="gone"), claim(check="tensor"), claim()],
                  {"broken": broken, "it": lambda: 2.47, "tensor": lambda: torch.ones(())})  # fmt: skip
    assert [v.verdict for v in found] == ["error", "error", "error", "holds"]
    assert found[0].error == "ZeroDivisionError: of nothing"
    assert "no check called gone" in found[1].error
    assert "Tensor, no plain value" in found[2].error


def test_instant_measurements_name_where_and_how_and_leave_the_random_state_alone():
    def drawn() -> float:
        """Mean of a draw,
        by torch.

        More for readers of the code.
        """
        return float(torch.rand(3).mean())

    torch.manual_seed(random.randrange(1000))
    before = torch.get_rng_state()
    first, second = (judge([claim(check="drawn")], {"drawn": drawn})[0] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.measured.value == second.measured.value, "a check has a seed of its own"
    assert first.how == "Mean of a draw, by torch."
    assert first.measured.seed == 0
    assert all((first.measured.commit, first.measured.date, first.measured.machine))


ENTRY = {
    "id": "a", "source": "Table 1", "statement": "So it is.", "claimed": 1.5, "cost": "instant", "check": "it",
    "readings": [{"when": "small", "check": "small"}],
}  # fmt: skip
MEASURED = {"value": 1, "commit": "c", "date": "2026-11-21", "seed": 0, "machine": "m", "results": "r"}


def write(tmp_path, *entries):
    file = tmp_path / "claims.yaml"
    file.write_text(yaml.safe_dump(list(entries)))
    return file


def test_a_file_is_read_whole(tmp_path):
    expensive = {
        "cost": "gpu-hours", "command": "x", "id": "b", "readings": [], "claimed": [1, 2], "comparison": "between",
        "measured": {**MEASURED, "value": [1.0, 1.5], "seed": [0, 1]}, "related": {"statement": "near"},
    }  # fmt: skip
    first, second = load_claims(write(tmp_path, ENTRY, {**ENTRY, **expensive}))
    assert first.readings[0].when == "small"
    assert second.measured.value == [1.0, 1.5]
    assert second.related.statement == "near"
    file = tmp_path / "dates.yaml"  # a bare date is a date to YAML
    file.write_text("- {id: a, source: s, statement: t, claimed: 1, cost: gpu-hours, check: c, command: x, measured: "
                    "{value: 1, commit: c, date: 2026-11-21, seed: null, machine: m, results: r}}")  # fmt: skip
    assert load_claims(file)[0].measured.date == "2026-11-21"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"verdict": "holds"}, "has no field verdict"),  # never typed in
        ({"cost": "cheap"}, "cost is one of instant, cpu-minutes, gpu-hours"),
        ({"comparison": "near"}, "comparison is one of"),
        ({"comparison": "between"}, "does not compare with 1.5"),
        ({"claimed": [1, 2]}, "does not compare with"),
        ({"claimed": True, "comparison": "above"}, "does not compare with True"),
        ({"measured": MEASURED}, "an instant claim has a check"),
        ({"command": "x"}, "an instant claim has a check"),
        ({"cost": "gpu-hours"}, "by which command"),
        ({"source": None}, "source cannot be None"),
        ({"readings": [{"when": "x"}]}, "a check or a measured value"),
        ({"readings": [{"when": "x", "check": "y", "measured": MEASURED}]}, "a check or a measured value"),
        ({"readings": [{"check": "x"}]}, "lacks when"),
        ({"statement": 3}, "statement cannot be 3"),
        ({"tolerance": "1e-9"}, "tolerance is a number"),
    ],
)  # fmt: skip
def test_an_entry_that_cannot_be_is_named(tmp_path, change, says):
    with pytest.raises(ValueError, match=rf"claims\.yaml, a: .*{says}"):
        load_claims(write(tmp_path, {**ENTRY, **change}))


def test_a_file_that_is_no_list_or_names_a_claim_twice(tmp_path):
    with pytest.raises(ValueError, match="more than one claim is called a"):
        load_claims(write(tmp_path, ENTRY, ENTRY))
    with pytest.raises(ValueError, match=r"entry 1: .*needs a mapping"):
        load_claims(write(tmp_path, "a"))
    (tmp_path / "claims.yaml").write_text("a: b")
    with pytest.raises(ValueError, match="holds no list"):
        load_claims(tmp_path / "claims.yaml")
