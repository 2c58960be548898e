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
        (A, {"verdict": "holds"}, "claims.yaml, a: has no field verdict"),  # never typed in
        (A, {"cost": "cheap"}, "cost is one of instant, cpu-minutes, gpu-minutes, gpu-hours, impossible"),
        (A, {"kind": "specification"}, "kind is one of result, forecast, property, size, recipe, arithmetic"),
        (A, {"comparison": "near"}, "comparison is one of"),
        (A, {"comparison": "between"}, "does not compare with"),
        (A, {"comparison": "above", "claimed": {"T": {"d": "x"}}}, "does not compare with"),
        (A, {"claimed": {"T": 12}}, "a table is row -> column -> value"),
        (A, {"claimed": {"T": {"d": [1]}}}, "a table is row -> column -> value"),
        (A, {"claimed": None}, "claimed cannot be None"),
        (A, {"command": "x"}, "an instant claim has neither a command"),
        (A, {"parity": ""}, "names the test of its parity"),
        (A, {"check": ""}, "has a check, or evidence that decides"),
        (A, {"kind": "result", "setting": "cifar"}, "a result is measured by a run"),
        (A, {"tolerance": "1e-9"}, "tolerance is a number"),
        (A, {"tolerance": True}, "tolerance cannot be True"),
        (A, {"statement": None}, "statement cannot be None"),
        (A, {"readings": [{"when": "x"}]}, "a check or a measured value"),
        (A, {"readings": [{"check": "x"}]}, "lacks when"),
        (A, {"readings": "none"}, "needs a mapping, got 'none'"),
        (A, {"why": "no weights"}, "cost impossible and why belong together"),
        (A, {"evidence": [{"where": "x", "says": "y", "value": 1, "check": "z"}]}, "a value or a check, not both"),
        (C, {"cost": "impossible"}, "cost impossible and why belong together"),
        (C, {"cost": "impossible", "why": "no weights"}, "has no check, command or measured value"),
        (C, {"command": None}, "by which command"),
        (C, {"setting": None}, "a result names its setting"),
        (C, {"setting": "imagenet"}, "there is no setting called imagenet"),
        (C, {"measured": [{"run": "gone", "value": 1, "seed": 0, "results": "r"}]}, "there is no run called gone"),
        (C, {"measured": [{"run": "copy", "value": 1, "results": "r"}]}, "lacks seed"),
        (C, {"outcomes": [{"training": "t", "row": "r", "column": "loss"}]}, "an outcome is acc1 or acc5"),
        (C, {"outcomes": [{"training": "t", "row": "r", "column": "acc1", "cell": ["x", "y"]}]},
         "one outcome for each cell"),
        ((*C, "scaled", 0), {"seeds": [0, 1]}, "at least three seeds, not 2"),
        ((*C, "scaled", 0), {"baseline": [1, 2]}, "one value for each seed"),
        ((*C, "scaled", 0), {"expected": {"ape": "above"}}, "expected names rows that were measured"),
        ((*C, "scaled", 0), {"expected": {"rope": "better"}}, "expected is above or below"),
        (("settings", "cifar"), {"counts": None}, "claims.yaml, cifar: counts cannot be None"),
        (("settings",), {"other": {"what": "x", "counts": "y"}}, "no claim names the setting or run other"),
        (("runs", "copy"), {"by": "a friend"}, "by is ours or original"),
        (("runs", "copy"), {"meets": ["cifar", "moon"]}, "claims.yaml, copy: there is no setting called moon"),
        (("groups", 0), {"entries": "none"}, "a group holds entries"),
        (("groups", 0), {"entries": ["x"]}, "entry 1: needs a mapping, got 'x'"),
        ((*A[:3], 1), {"id": "a"}, "more than one claim is called a"),
        ((), {"claims": []}, "holds settings, runs and groups"),
        ((), {"groups": []}, "of groups at least one"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, place, change, says):
    content = copy.deepcopy(FILE)
    entry = content
    for key in place:
        entry = entry[key]
    entry.update(change)
    with pytest.raises(ValueError, match=r"claims\.yaml") as caught:
        load_claims(write(tmp_path, content))
    assert says in str(caught.value)
