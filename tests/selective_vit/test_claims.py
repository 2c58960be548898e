"""SelectiveViT's claims: the verdicts as they were found, and that a wrong figure or a wrong attention turns them."""

import dataclasses
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from selective_vit import checks
from selective_vit.attention import selective_attention
from vit_core.ledger.claims import load_claims
from vit_core.ledger.verdicts import judge

CLAIMS = {c.id: c for c in load_claims(Path(str(files("selective_vit"))) / "claims.yaml")}
HOLD = {
    "selective-gain",
    "selective-method",
    "selective-pdf-formula",
    "selective-no-parameters",
    "selective-every-block",
    "selective-dataset",
    "selective-recipe",
    "selective-pdf-recipe",
    "selective-threshold",
    "selective-compatible",
}
CONTRADICTED = {
    "selective-accuracy-by-epoch",
    "selective-formula",
    "selective-tracker",
    "selective-grad-cam-places",
    "selective-two-maps",
    "selective-comparison-saved",
    "selective-overlays",
    "selective-epochs",
    "selective-pdf-threshold",
    "selective-pretrained",
}
NOT_RUN = {
    "selective-gain-trained",
    "selective-best-threshold",
    "selective-large-threshold-harms",
    "selective-sparsity",
    "selective-pdf-accuracy",
    "selective-no-loss",
    "selective-object-focused",
    "selective-overhead",
}
CANNOT_BE_RUN = {"selective-background"}
Patch = pytest.MonkeyPatch


def verdict(claim: str) -> Any:
    return judge([CLAIMS[claim]], checks.CHECKS)[0]


def test_verdicts_are_the_findings():
    found = {v.claim.id: v for v in judge(list(CLAIMS.values()), checks.CHECKS)}
    assert {i: v.error for i, v in found.items() if v.error} == {}
    expected = [
        dict.fromkeys(ids, word)
        for ids, word in (
            (HOLD, "holds"),
            (CONTRADICTED, "contradicted"),
            (NOT_RUN, "not run"),
            (CANNOT_BE_RUN, "cannot be run"),
        )
    ]
    assert {i: v.verdict for i, v in found.items()} == {i: word for part in expected for i, word in part.items()}
    assert all(i.startswith("selective-") for i in CLAIMS)
    table = {(c.row, c.column): c.verdict for c in found["selective-accuracy-by-epoch"].cells}
    assert table == {("epoch 10", "ViT-Base"): "holds", ("epoch 10", "SelectiveViT"): "fails"}


def test_every_check_is_used_and_says_how_it_measures():
    used = {c.check for c in CLAIMS.values() if c.cost == "instant"} | {
        e.check for c in CLAIMS.values() for e in c.evidence
    }
    assert checks.CHECKS.keys() <= used
    assert all(check.__doc__ for check in checks.CHECKS.values())


def test_what_was_measured_near_a_setting_gives_no_verdict():
    """Another size and start than either training of the paper, and times of a CPU."""
    runs = {m.run.name: set(m.run.meets) for c in CLAIMS.values() for m in c.measured}
    assert runs == {"micro-sweep": set(), "first-step": set(), "timed-original": set()}


# ── planted mistakes ─────────────────────────────────────────────────────────────────────────────────────────────


def attention(wrong: Callable[..., Tensor]) -> Callable[[Patch], None]:
    """Another attention in the place of ours."""
    return lambda patch: patch.setattr(checks, "selective_attention", wrong)


def softmax(q, k):
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)


def not_normalized(q, k, v, tau, selection):
    weights = softmax(q, k)
    return (weights * (weights > tau)) @ v


def leaky(q, k, v, tau, selection):
    weights = softmax(q, k)
    w = weights * (weights > tau) + 0.01 * weights
    return w / w.sum(-1, keepdim=True) @ v


def twice_the_threshold(q, k, v, tau, selection):
    return selective_attention(q, k, v, 2 * tau, selection)


def without_scale(q, k, v, tau, selection):
    return selective_attention(q * q.shape[-1] ** 0.5, k, v, tau, selection)


def figure(name: str, value: object) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(checks, name, value)


@pytest.mark.parametrize(
    ("claim", "plant", "expected"),
    [
        ("selective-method", attention(not_normalized), "fails"),
        ("selective-method", attention(leaky), "fails"),
        ("selective-method", attention(twice_the_threshold), "fails"),
        ("selective-method", attention(without_scale), "fails"),
        ("selective-gain", figure("README", {**checks.README, 70: (85.47, 88.11)}), "contradicted"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_attention_or_figure_turns_the_verdict(claim, plant, expected, monkeypatch):
    plant(monkeypatch)
    found = verdict(claim)
    assert (found.verdict, found.error) == (expected, "")


def test_documents_that_agree_contradict_nothing(monkeypatch):
    """If PDF and curve had the README's figure of epoch 10, its table would be a claim that nobody has checked."""
    monkeypatch.setattr(checks, "PDF", (80.6, 81.8))
    claim = CLAIMS["selective-accuracy-by-epoch"]
    agreeing = [e for e in claim.evidence if e.value is None]
    (found,) = judge([dataclasses.replace(claim, evidence=agreeing)], checks.CHECKS)
    assert found.verdict == "not run"


@pytest.mark.parametrize(
    ("claim", "value", "expected"),
    [
        ("selective-epochs", 70, "holds"),
        ("selective-formula", 0.0, "holds"),
        ("selective-tracker", 12, "holds"),
        ("selective-pretrained", 0, "holds"),
        ("selective-overlays", True, "holds"),
        ("selective-no-parameters", 48, "contradicted"),
        ("selective-every-block", 6, "contradicted"),
        ("selective-recipe", {"training": {"learning rate": 3e-5}}, "contradicted"),
        ("selective-pdf-recipe", {"training": {"early stopping": False}}, "contradicted"),
        ("selective-pdf-formula", 0.01, "contradicted"),
    ],
)
def test_another_artifact_turns_the_verdict(claim, value, expected):
    changed = [dataclasses.replace(e, value=value) for e in CLAIMS[claim].evidence if e.value is not None]
    (found,) = judge([dataclasses.replace(CLAIMS[claim], evidence=changed)], checks.CHECKS)
    assert (found.verdict, found.error) == (expected, "")
