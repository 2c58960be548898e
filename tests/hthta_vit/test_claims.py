"""The claims of HTHTA-ViT++: their verdicts are pinned, and a wrong implementation turns its claim."""

from importlib.resources import files
from pathlib import Path

import pytest
import torch

from hthta_vit import checks, count_checks
from hthta_vit.model import AttentionPooling, ClassTokenFusion, HTHTAViT, SequenceModel
from vit_core.ledger.claims import load_claims
from vit_core.ledger.verdicts import CANNOT_RUN, CONTRADICTED, FAILS, HOLDS, HOLDS_IF, NOT_RUN, judge

CLAIMS = {c.id.removeprefix("hthta-"): c for c in load_claims(Path(str(files("hthta_vit"))) / "claims.yaml")}

FINDINGS = {  # all others hold
    FAILS: {"flops", "flops-saved", "small-parts"},
    HOLDS_IF: {"parameters"},
    CONTRADICTED: {
        "benchmark", "ablation", "latency-overhead", "from-scratch", "cifar10-classes",
        "recipe", "config-is-read", "fusion-start", "files",
        "report-and-matrix", "up-to",
    },
    NOT_RUN: {"each-part-helps", "noise", "fap", "class-relevant", "latency", "tiny-imagenet-images"},
    CANNOT_RUN: {"tiny-imagenet-steps", "generalization", "model-of-the-results"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def built_anew():
    """Models and counts are kept between checks: a planted mistake must not meet, nor leave, an earlier one."""
    for module in (checks, count_checks):
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


def test_verdicts_are_the_findings():
    assert all(c.id.startswith("hthta-") for c in CLAIMS.values())
    verdicts = dict(zip(CLAIMS, judge(list(CLAIMS.values()), checks.CHECKS), strict=True))
    assert {i: v.error for i, v in verdicts.items() if v.error} == {}
    assert {kind: {i for i, v in verdicts.items() if v.verdict == kind} for kind in FINDINGS} == FINDINGS
    assert {v.verdict for v in verdicts.values()} == {HOLDS, *FINDINGS}
    measured = {i: verdicts[i].found[0].measured.value for i in ("parameters", "flops-saved", "small-parts")}
    assert measured == pytest.approx({"parameters": 110.08, "flops-saved": -21.76, "small-parts": 19.48}, abs=0.006)


def test_every_check_is_used_and_says_how_it_measures():
    used = {c.check for c in CLAIMS.values()} | {r.check for c in CLAIMS.values() for r in c.readings}
    used |= {e.check for c in CLAIMS.values() for e in c.evidence}
    assert set(checks.CHECKS) <= used
    assert all(check.__doc__ for check in checks.CHECKS.values())


# ── planted mistakes ─────────────────────────────────────────────────────────────────────────────────────────────


def default(name, value):
    """Another default of the model."""
    return lambda patch: patch.setitem(HTHTAViT.__init__.__kwdefaults__, name, value)


def method(owner, forward):
    return lambda patch: patch.setattr(owner, "forward", forward)


def sigmoid_pooling(self, h):
    """σ where the formula has tanh."""
    e = (self.proj(h).sigmoid().unflatten(-1, (self.heads, -1)) * self.score).sum(-1)
    alpha = e.softmax(1).transpose(1, 2)
    return (alpha @ h).flatten(1), alpha


def exchanged_gates(self, cls, contexts):
    p = self.projection(contexts)
    return (1 - self.gamma) * cls + self.gamma * p + self.beta * cls * p


def counted_twice(patch):
    """Floating-point operations where the table counts multiply-adds."""
    ours = count_checks.multiply_adds
    patch.setattr(count_checks, "multiply_adds", lambda work: 2 * ours(work))


def forward_only(self, x):
    states, _ = self.bigru(x)
    ahead, back = states.chunk(2, -1)
    return self.projection(torch.cat([ahead, torch.zeros_like(back)], -1))


def figure(name, value):
    """Another published figure."""
    return lambda patch: patch.setattr(checks, name, value)


@pytest.mark.parametrize(
    ("claim", "plant", "says"),
    [
        ("pooling-formula", method(AttentionPooling, sigmoid_pooling), FAILS),
        ("fusion-formula", method(ClassTokenFusion, exchanged_gates), FAILS),
        ("both-directions", method(SequenceModel, forward_only), FAILS),
        ("parameters", default("components", "bigru"), FAILS),
        ("baselines", counted_twice, FAILS),
        ("improvements", lambda patch: patch.setitem(checks.BENCHMARK["HTHTA-ViT++"], "CIFAR-100", 93.2), CONTRADICTED),
        ("ablation-steps", lambda patch: patch.setitem(checks.ABLATION, checks.FULL, (93.2, 76.5)), CONTRADICTED),
        ("flops-ratio", figure("GFLOPS", {"ViT-B/16": 17.6, "HTHTA-ViT++": 17.0}), CONTRADICTED),
        ("macro-average", figure("RECALL", (0.9,) * 10), CONTRADICTED),
        # figures that agree after all
        ("report-and-matrix", figure("RECALL", (0.9862,) * 10), HOLDS),
        ("latency-overhead", figure("LATENCY", {"ViT-B/16": 5.6, "HTHTA-ViT++": 5.7}), NOT_RUN),
        ("up-to", lambda patch: patch.setitem(checks.BENCHMARK["HTHTA-ViT++"], "Tiny-ImageNet", 85.0), HOLDS),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_turns_the_verdict(claim, plant, says, monkeypatch):
    def verdict():
        (found,) = judge([CLAIMS[claim]], checks.CHECKS)
        return found.verdict

    assert verdict() != says
    plant(monkeypatch)
    for cached in (count_checks._on_meta, count_checks.gmacs):
        cached.cache_clear()
    assert verdict() == says
