"""The claims of HTHTA-ViT++: their verdicts are pinned, and a wrong implementation turns its claim to "fails"."""

import dataclasses
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from hthta_vit import checks, count_checks
from hthta_vit.model import AttentionPooling, ClassTokenFusion, HTHTAViT, SequenceModel
from vit_core.claims import judge, load_claims

CLAIMS = {c.id: c for c in load_claims(Path(str(files("hthta_vit"))) / "claims.yaml")}

# The findings. Every instant claim that is in neither list holds.
FAILS = {
    "hthta-flops": 21.38,
    "hthta-flops-saved": -21.76,
    "hthta-tables-vit-accuracy": 89.2,
    "hthta-tables-vit-fap": 51.3,
    "hthta-tables-full-fap": 76.5,
    "hthta-small-parts": 19.48,
    "hthta-class-specific-maps": 0.0,
}
HOLDS_IF = {
    "hthta-parameters": "the GRU has one layer",
    "hthta-parameters-convnext": "the classifier has ImageNet's 1,000 classes",
    "hthta-gamma-config": "the shipped configuration file is given (--config cifar100)",
}


@pytest.fixture(autouse=True)
def built_anew():
    """Models and counts are kept between checks: a planted mistake must not meet, nor leave, an earlier one."""
    for module in (checks, count_checks):
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


def test_verdicts_are_the_findings():
    assert all(i.startswith("hthta-") for i in CLAIMS)
    verdicts = {v.claim.id: v for v in judge(list(CLAIMS.values()), checks.CHECKS)}
    assert {i: v.error for i, v in verdicts.items() if v.error} == {}
    instant = {i: v for i, v in verdicts.items() if v.claim.cost == "instant"}
    assert {i: v.condition for i, v in instant.items() if v.verdict == "holds if"} == HOLDS_IF
    failed = {i: v.measured.value for i, v in instant.items() if v.verdict == "fails"}
    assert failed == pytest.approx(FAILS, abs=0.006)
    assert {v.verdict for i, v in instant.items() if i not in FAILS and i not in HOLDS_IF} == {"holds"}
    assert {v.verdict for i, v in verdicts.items() if i not in instant} == {"not run"}


def test_every_check_is_used_and_says_how_it_measures():
    readings = [r.check for c in CLAIMS.values() for r in c.readings if r.check]
    assert {c.check for c in CLAIMS.values() if c.cost == "instant"} | set(readings) == set(checks.CHECKS)
    assert all(check.__doc__ for check in checks.CHECKS.values())


# ── planted mistakes ─────────────────────────────────────────────────────────────────────────────────────────────


def default(name, value):
    """Another default of the model."""
    return lambda patch: patch.setitem(HTHTAViT.__init__.__kwdefaults__, name, value)


def method(owner, forward):
    return lambda patch: patch.setattr(owner, "forward", forward)


def preset(**values):
    """Another hyperparameter of the recipe."""
    wrong = dataclasses.replace(checks.RECIPE, presets=lambda given: {**checks_presets(given), **values})
    return lambda patch: patch.setattr(checks, "RECIPE", wrong)


checks_presets = checks.RECIPE.presets


def sigmoid_pooling(self, h):
    """σ where the formula has tanh."""
    e = (self.proj(h).sigmoid().unflatten(-1, (self.heads, -1)) * self.score).sum(-1)
    alpha = e.softmax(1).transpose(1, 2)
    return (alpha @ h).flatten(1), alpha


def softmax_over_heads(self, h):
    e = (self.proj(h).tanh().unflatten(-1, (self.heads, -1)) * self.score).sum(-1)
    alpha = e.softmax(-1).transpose(1, 2)
    return (alpha @ h).flatten(1), alpha


def exchanged_gates(self, cls, contexts):
    p = self.projection(contexts)
    return (1 - self.gamma) * cls + self.gamma * p + self.beta * cls * p


def without_class_token(self, cls, contexts):
    return self.projection(contexts)


def counted_twice(patch):
    """Floating-point operations where the table counts multiply-adds."""
    ours = count_checks.multiply_adds
    patch.setattr(count_checks, "multiply_adds", lambda work: 2 * ours(work))


def forward_only(self, x):
    states = self.bigru(x)
    ahead, back = states.chunk(2, -1)
    return self.projection(torch.cat([ahead, torch.zeros_like(back)], -1))


def no_sequence(self, x):
    """Each token by itself, through a Linear."""
    return self.projection(torch.cat([x, x], -1))


@pytest.mark.parametrize(
    ("claim", "plant"),
    [
        ("hthta-pooling-formula", method(AttentionPooling, sigmoid_pooling)),
        ("hthta-attention-sum", method(AttentionPooling, softmax_over_heads)),
        ("hthta-fusion-formula", method(ClassTokenFusion, exchanged_gates)),
        ("hthta-both-cues", method(ClassTokenFusion, without_class_token)),
        ("hthta-bidirectional", method(SequenceModel, forward_only)),
        ("hthta-gru", method(SequenceModel, no_sequence)),
        ("hthta-order-matters", method(SequenceModel, no_sequence)),
        ("hthta-head-width", default("pool_head_dim", 64)),
        ("hthta-parameters-pooling", default("pool_head_dim", 64)),
        ("hthta-parameters-fusion-projection", default("pool_heads", 4)),
        ("hthta-parameters", default("components", "bigru")),
        ("hthta-flops-vit", counted_twice),
        ("hthta-gamma", default("gamma", 0.6)),
        ("hthta-lr", preset(lr=2e-4)),
        ("hthta-warmup", preset(warmup_steps=None)),
        ("hthta-weight-decay", preset(weight_decay=0.012)),
        ("hthta-lead-cifar100", lambda patch: patch.setitem(checks.BENCHMARK["HTHTA-ViT++"], "CIFAR-100", 93.2)),
        ("hthta-gain-fusion", lambda patch: patch.setitem(checks.ABLATION, checks.FULL, (93.2, 76.5))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_implementation_fails(claim, plant, monkeypatch):
    def verdict():
        (found,) = judge([CLAIMS[claim]], checks.CHECKS)
        return found.verdict

    assert verdict() in ("holds", "holds if")
    plant(monkeypatch)
    for cached in (count_checks._on_meta, count_checks.gmacs):
        cached.cache_clear()
    assert verdict() == "fails"
