"""A claims.yaml is read whole, and what is not as it should be is named."""

import copy

import pytest
import yaml

from vit_core.ledger.claims import load_claims

FILE = {
    "settings": {"cifar": {"what": "CIFAR-10, 10 epochs", "counts": "the published images"}},
    "runs": {
        "copy": {
            "by": "ours", "what": "a JPEG copy", "meets": ["cifar"], "command": "x-train", "commit": "abc",
            "date": "2026-11-26", "machine": "m",
        }
    },
    "groups": [
        {
            "source": "Table 1", "kind": "size", "cost": "instant", "parity": "tests/x/test_parity.py",
            "entries": [
                {"id": "a", "statement": "So it is.", "claimed": {"Tiny": {"depth": 12}}, "check": "it",
                 "readings": [{"when": "small", "check": "small"}]},
                {"id": "b", "statement": "And so.", "claimed": "ReLU", "source": "Section 2", "check": "activation"},
            ],
        },
        {
            "source": "Table 2", "kind": "result", "cost": "gpu-hours", "setting": "cifar",
            "entries": [
                {"id": "c", "statement": "Good.", "claimed": [1, 2], "comparison": "between", "check": "train it",
                 "command": "x-train", "evidence": [{"where": "log", "says": "no log exists"}],
                 "measured": [{"run": "copy", "value": [1.0, 1.5], "seed": [0, 1], "results": "r.csv"}],
                 "scaled": [{"model": "micro", "sound": "good", "run": "copy", "seeds": [0, 1, 2],
                             "baseline": [1, 2, 3], "rows": {"rope": [2, 3, 4]},
                             "expected": {"rope": "above"}, "results": "s.csv"}]},
            ],
        },
    ],
}  # fmt: skip


def write(tmp_path, content):
    file = tmp_path / "claims.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return file


def test_a_file_is_read_whole(tmp_path):
    first, second, third = load_claims(write(tmp_path, FILE))
    assert (first.source, second.source) == ("Table 1", "Section 2"), "an entry overrides its group"
    assert first.readings[0].when == "small"
    assert third.setting.counts == "the published images"
    assert third.measured[0].run.what == "a JPEG copy"
    assert third.measured[0].run.meets == ["cifar"]
    assert third.evidence[0].says == "no log exists"
    assert third.scaled[0].rows == {"rope": [2, 3, 4]}


def test_a_bare_date_is_text(tmp_path):
    text = yaml.safe_dump(FILE).replace("'2026-11-26'", "2026-11-26")
    assert "date: 2026-11-26" in text
    assert load_claims(write(tmp_path, text))[2].measured[0].run.date == "2026-11-26"


A, C = ("groups", 0, "entries", 0), ("groups", 1, "entries", 0)


@pytest.mark.parametrize(
    ("place", "change", "says"),
    [
        (A, {"verdict": "holds"}, "claims.yaml, a: verdict: Unexpected"),  # never typed in
        (A, {"cost": "cheap"}, "cost: Input should be 'instant', 'cpu-minutes', "),
        (A, {"kind": "specification"}, "kind: Input should be 'result', 'forecast', "),
        (A, {"comparison": "near"}, "comparison: Input should be 'about', "),
        (A, {"comparison": "between"}, "cannot be used with the claimed value"),
        (A, {"comparison": "above", "claimed": {"T": {"d": "x"}}}, "cannot be used with the claimed value"),
        (A, {"claimed": {"T": 12}}, "or a table row -> column -> value, got {'T': 12}"),
        (A, {"claimed": {"T": {"d": [1]}}}, "or a table row -> column -> value"),
        (A, {"claimed": None}, "claimed: Value error, expected a value, numbers"),
        (A, {"command": "x"}, "an instant claim must not have a command"),
        (A, {"parity": ""}, "a check of our model needs parity"),
        (A, {"check": ""}, "needs a check, or evidence with a value or check"),
        (A, {"kind": "result", "setting": "cifar"}, "a result must be measured by a run"),
        (A, {"tolerance": "1e-9"}, "tolerance must be a number"),
        (A, {"tolerance": True}, "tolerance.float: Input should be a valid number"),
        (A, {"statement": None}, "statement: Input should be a valid string"),
        (A, {"readings": [{"when": "x"}]}, "either a check or a measured value"),
        (A, {"readings": [{"check": "x"}]}, "readings.0.when: Field required"),
        (A, {"readings": "none"}, "readings: 'str' instances are not allowed"),
        (A, {"why": "no weights"}, "why is required if cost is impossible"),
        (A, {"evidence": [{"where": "x", "says": "y", "value": 1, "check": "z"}]}, "a value or a check, not both"),
        (C, {"cost": "impossible"}, "why is required if cost is impossible"),
        (C, {"cost": "impossible", "why": "no weights"}, "must not have a check, command or measured value"),
        (C, {"command": None}, "needs check (how it is measured) and command"),
        (C, {"setting": None}, "a result must name its setting"),
        (C, {"setting": "imagenet"}, "there is no setting called imagenet"),
        (C, {"measured": [{"run": "gone", "value": 1, "seed": 0, "results": "r"}]}, "there is no run called gone"),
        (C, {"measured": [{"run": "copy", "value": 1, "results": "r"}]}, "measured.0.seed: Field required"),
        (C, {"outcomes": [{"training": "t", "row": "r", "column": "loss"}]}, "outcomes.0.column: Input should be"),
        (
            C,
            {"outcomes": [{"training": "t", "row": "r", "column": "acc1", "cell": ["x", "y"]}]},
            "exactly one entry for each claimed cell",
        ),
        ((*C, "scaled", 0), {"seeds": [0, 1]}, "scaled.0.seeds: Value should have at least 3 items"),
        ((*C, "scaled", 0), {"baseline": [1, 2]}, "one value for each seed"),
        ((*C, "scaled", 0), {"expected": {"ape": "above"}}, "expected must only name measured rows"),
        ((*C, "scaled", 0), {"expected": {"rope": "better"}}, "expected.rope: Input should be 'above' or 'below'"),
        (("settings", "cifar"), {"counts": None}, "claims.yaml, cifar: counts: Input should be a valid string"),
        (("settings",), {"other": {"what": "x", "counts": "y"}}, "no claim uses the setting or run other"),
        (("runs", "copy"), {"by": "a friend"}, "claims.yaml, copy: by: Input should be 'ours' or 'original'"),
        (("runs", "copy"), {"meets": ["cifar", "moon"]}, "claims.yaml, copy: there is no setting called moon"),
        (("groups", 0), {"entries": "none"}, "claims.yaml: groups.0.entries: Input should be a valid list"),
        (("groups", 0), {"entries": ["x"]}, "groups.0.entries.0: Input should be a valid dictionary"),
        ((*A[:3], 1), {"id": "a"}, "duplicate claim id a"),
        ((), {"claims": []}, "claims: Extra inputs are not permitted"),
        (A, {"statement": 12}, "statement: Input should be a valid string"),  # nothing is converted
        (A, {"claimed": [1, True]}, "claimed: Value error, expected a value, numbers"),
        (C, {"measured": [{"run": "copy", "value": ["1"], "seed": 0, "results": "r"}]}, "measured.0.value: "),
        (C, {"measured": [{"run": "copy", "value": 1, "seed": True, "results": "r"}]}, "measured.0.seed.int: "),
        ((), {"groups": []}, "groups: List should have at least 1 item"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, place, change, says):
    content = copy.deepcopy(FILE)
    entry = content
    for key in place:
        entry = entry[key]
    entry.update(change)
    with pytest.raises(ValueError, match=r"claims\.yaml") as caught:
        load_claims(write(tmp_path, content))
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
