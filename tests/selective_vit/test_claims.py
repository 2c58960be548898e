"""The claims of SelectiveViT: their verdicts are pinned, and a wrong implementation turns its claim to "fails"."""

import dataclasses
from importlib.resources import files
from pathlib import Path

import pytest

from selective_vit import checks, findings
from selective_vit.attention import selective_attention
from selective_vit.model import make_selective
from vit_core.claims import judge, load_claims
from vit_core.explain import SparsityTracker, captum_grad_cam

CLAIMS = {c.id: c for c in load_claims(Path(str(files("selective_vit"))) / "claims.yaml")}

# The findings. Every instant claim that is in neither list holds.
FAILS = {
    "selective-formula-is-notebook", "selective-sparsity-first-step", "selective-empty-rows-first-step",
    "selective-renormalised", "selective-pretrained-kept", "selective-captum-places",
}  # fmt: skip
# Of these our own repair would hold.
MENDED = {
    "selective-renormalised": "a row in which nothing passes keeps its strongest key (empty_row=argmax, our default)",
    "selective-pretrained-kept": "the layers' own modules are taken over (make_selective, without --reinit-attention)",
    "selective-captum-places": "the tokens are presented to Captum as a grid",
}


@pytest.fixture(autouse=True)
def built_anew():
    """The first step's model is kept between checks: a planted mistake must not meet, nor leave, an earlier one."""
    checks._first_step.cache_clear()


def test_verdicts_are_the_findings():
    assert all(i.startswith("selective-") for i in CLAIMS)
    verdicts = {v.claim.id: v for v in judge(list(CLAIMS.values()), checks.CHECKS)}
    assert {i: v.error for i, v in verdicts.items() if v.error} == {}
    instant = {i: v for i, v in verdicts.items() if v.claim.cost == "instant"}
    failed = {i: v.measured.value for i, v in instant.items() if v.verdict == "fails"}
    assert failed.keys() == FAILS
    assert failed["selective-formula-is-notebook"] == pytest.approx(17.4, abs=3)  # of random tensors
    assert {v.verdict for i, v in instant.items() if i not in FAILS} == {"holds"}
    assert {v.verdict for i, v in verdicts.items() if i not in instant} == {"not run"}


def repaired(claim):
    """Its value under our repair."""
    (reading,) = (r for r in CLAIMS[claim].readings if r.repair)
    (found,) = judge([dataclasses.replace(CLAIMS[claim], check=reading.check, readings=())], checks.CHECKS)
    return reading.when, found.verdict


def test_our_repairs_are_named_and_mend_what_the_original_does():
    assert {c.id for c in CLAIMS.values() if any(r.repair for r in c.readings)} == set(MENDED)
    assert {i: repaired(i) for i in MENDED} == {i: (when, "holds") for i, when in MENDED.items()}


@pytest.mark.parametrize("claim", ["selective-sparsity-first-step", "selective-empty-rows-first-step"])
def test_the_ranges_of_the_first_step_hold_for_the_mean_of_the_blocks(claim):
    values = checks.CHECKS[CLAIMS[claim].check]()
    low, high = CLAIMS[claim].claimed
    assert len(values) == 12
    assert low <= sum(values) / 12 <= high < max(values)


def test_every_check_is_used_and_says_how_it_measures():
    readings = [r.check for c in CLAIMS.values() for r in c.readings if r.check]
    assert {c.check for c in CLAIMS.values() if c.cost == "instant"} | set(readings) == set(checks.CHECKS)
    assert all(check.__doc__ for check in checks.CHECKS.values())


# ── planted mistakes ─────────────────────────────────────────────────────────────────────────────────────────────


def attention(wrong):
    """Another attention in the place of ours."""
    return lambda patch: patch.setattr(checks, "selective_attention", wrong)


def default(name, value):
    """Another default of make_selective."""
    return lambda patch: patch.setitem(make_selective.__kwdefaults__, name, value)


def preset(**values):
    """Another hyperparameter of the recipe."""
    presets = checks.RECIPE.presets
    wrong = dataclasses.replace(checks.RECIPE, presets=lambda given: {**presets(given), **values})
    return lambda patch: patch.setattr(checks, "RECIPE", wrong)


def not_renormalised(q, k, v, tau, selection):
    P = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return (P - tau).relu() @ v


def leaky(q, k, v, tau, selection):
    P = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    w = (P - tau).relu() + 0.01 * P
    return w / w.sum(-1, keepdim=True) @ v


def without_scale(q, k, v, tau, selection):
    return selective_attention(q * q.shape[-1] ** 0.5, k, v, tau, selection)


def twice_the_threshold(q, k, v, tau, selection):
    return selective_attention(q, k, v, 2 * tau, selection)


def always_new_layers(patch):
    """make_selective loses the weights, as the original did."""

    def lost(vit, *args, **fields):
        return make_selective(vit, *args, **{**fields, "reinit_attention": True})

    patch.setattr(findings, "make_selective", lost)


@pytest.mark.parametrize(
    ("claim", "plant"),
    [
        ("selective-formula", attention(not_renormalised)),
        ("selective-formula", attention(without_scale)),
        ("selective-notebook-form", attention(twice_the_threshold)),
        ("selective-zero-under-threshold", attention(leaky)),
        ("selective-keeps-over-threshold", attention(twice_the_threshold)),
        ("selective-zero-threshold", attention(without_scale)),
        ("selective-no-parameters", default("learned_threshold", "head")),
        ("selective-all-layers", default("blocks", range(6))),
        ("selective-threshold", lambda patch: patch.setattr(make_selective, "__defaults__", (0.012, "relu", "argmax"))),
        ("selective-tracker", lambda patch: patch.setattr(checks, "SparsityTracker", lambda: SparsityTracker(0.1))),
        ("selective-captum-is-grad-cam",
         lambda patch: patch.setattr(checks, "captum_grad_cam", lambda *a: captum_grad_cam(*a).mT)),
        ("selective-lr", preset(lr=3e-5)),
        ("selective-pretrained", preset(pretrained=False)),
        ("selective-loss", preset(label_smoothing=0.1)),
        ("selective-gain", lambda patch: patch.setitem(checks.RESULTS, 70, (85.47, 88.11))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_wrong_implementation_fails(claim, plant, monkeypatch):
    def verdict():
        (found,) = judge([CLAIMS[claim]], checks.CHECKS)
        return found.verdict

    assert verdict() == "holds"
    plant(monkeypatch)
    assert verdict() == "fails"


def test_a_repair_that_loses_the_weights_after_all_mends_nothing(monkeypatch):
    always_new_layers(monkeypatch)
    assert repaired("selective-pretrained-kept")[1] == "fails"
