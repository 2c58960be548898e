"""QAViT's claims: the file is whole, the verdicts are the findings, and a wrong implementation turns its claim."""

import importlib.resources
from pathlib import Path

import pytest
import torch
from torch import nn

import qavit.config
import qavit.model
from qavit import checks, property_checks
from vit_core.ledger.claims import load_claims
from vit_core.ledger.verdicts import CANNOT_RUN, CONTRADICTED, ERROR, FAILS, HOLDS, HOLDS_IF, NOT_RUN, judge

CLAIMS = load_claims(Path(str(importlib.resources.files("qavit"))) / "claims.yaml")

FINDINGS = {
    FAILS: {"linformer-reduces", "landmarks"},
    HOLDS_IF: {"parallel", "bank-communicates"},
    CONTRADICTED: {
        "memory", "batches-per-second", "parameters", "flops", "gateway", "defaults",
        "crop-at-native-size", "hours-of-epochs", "hours-range", "matches-the-diagrams", "linformer-everywhere",
        "cross-attention-writes",
    },
    CANNOT_RUN: {"example-output", "inference", "example-throughput", "epoch-seconds", "hours"},
}  # fmt: skip


@pytest.fixture
def fresh_models():
    """Checks keep the models that they share: none may outlive a planted mistake."""

    def clear():
        checks._shape.cache_clear()
        property_checks._tiny.cache_clear()

    clear()
    yield
    clear()


def verdict_of(name):
    (found,) = judge([c for c in CLAIMS if c.id == f"qavit-{name}"], checks.CHECKS)
    return found


def test_every_id_starts_with_the_paper_and_every_check_is_used():
    assert all(c.id.startswith("qavit-") for c in CLAIMS)
    named = {c.check for c in CLAIMS} | {r.check for c in CLAIMS for r in c.readings}
    named |= {e.check for c in CLAIMS for e in c.evidence}
    parts = {"branches", "window_tokens", "dilations", "channel_groups"}  # of `structure`
    assert set(checks.CHECKS) == {n for n in named if n in checks.CHECKS} | parts


def test_the_verdicts_are_the_findings():
    verdicts = judge(CLAIMS, checks.CHECKS)
    assert [(v.claim.id, v.error) for v in verdicts if v.verdict == ERROR] == []
    found = {kind: {v.claim.id.removeprefix("qavit-") for v in verdicts if v.verdict == kind} for kind in FINDINGS}
    assert found == FINDINGS
    assert {v.verdict for v in verdicts} == {HOLDS, NOT_RUN, *FINDINGS}


def test_no_accuracy_of_ours_stands_in_for_the_papers():
    results = judge([c for c in CLAIMS if c.kind == "result"], checks.CHECKS)
    assert {v.verdict for v in results} == {NOT_RUN, CANNOT_RUN, CONTRADICTED}


# ── planted mistakes: (claim, what is replaced, by what) ──────────────────────────────────────────────────────────


class WideFFN(qavit.model.CCFFFN):
    def __init__(self, dim, hidden, grid, drop):
        super().__init__(dim, 4 * dim, grid, drop)


class FullConvolution(qavit.model.CCFFFN):
    def __init__(self, *args):
        super().__init__(*args)
        self.dwconv = nn.Conv2d(self.dwconv.in_channels, self.dwconv.in_channels, 3, padding=1)


class WideConvolution(qavit.model.CCFFFN):
    def __init__(self, *args):
        super().__init__(*args)
        self.dwconv = nn.Conv2d(self.dwconv.in_channels, self.dwconv.in_channels, 5, padding=2, groups=128)


class SigmoidFusion(qavit.model.HybridFusion):
    def forward(self, branches):
        weights = self.fusion_weights.sigmoid().repeat_interleave(branches[0].shape[-1])
        return torch.cat(branches, dim=-1) * weights


class ConstantFusion(qavit.model.HybridFusion):
    def forward(self, branches):
        return torch.cat(branches, dim=-1) / 4


class LinearFusion(qavit.model.HybridFusion):
    def forward(self, branches):
        weights = self.fusion_weights / self.fusion_weights.sum()
        return torch.cat(branches, dim=-1) * weights.repeat_interleave(branches[0].shape[-1])


class OneNarrowBranch(qavit.model.QuadAttentionBlock):
    def __init__(self, config, drop_path):
        super().__init__(config, drop_path)
        self.compress_cga = nn.Linear(config.embed_dim, config.embed_dim // 8)


class FewerKeys(qavit.model.MultiScaleDilatedAttention):
    def __init__(self, *args, **fields):
        super().__init__(*args, **{**fields, "linformer_k": 32})


class MixedGroups(qavit.model.ChannelGroupAttention):
    def forward(self, x, bank):
        return super().forward(x.roll(1, dims=-1) + x.mean(-1, keepdim=True), bank)


class SelfAttention(qavit.model.BankCrossAttention):
    def forward(self, x, bank):
        return super().forward(x + x.mean(1, keepdim=True), bank)


def batch_statistics(self, x, pre_logits=False):
    x = x.mean(dim=1)
    return self.head(x - x.mean(dim=0))


def only_the_first(self, x, pre_logits=False):
    return self.head(x.mean(dim=1))[:1]


def noisy(self, x, pre_logits=False):
    return self.head(x.mean(dim=1)) + 1e-6 * torch.rand(len(x), self.num_classes)


PLANTED = [
    ("constraints", qavit.model, "CCFFFN", WideFFN),
    ("structure", qavit.model, "CCFFFN", FullConvolution),
    ("structure", qavit.model, "CCFFFN", WideConvolution),
    ("fusion", qavit.model, "HybridFusion", SigmoidFusion),
    ("fusion", qavit.model, "HybridFusion", ConstantFusion),
    ("fusion", qavit.model, "HybridFusion", LinearFusion),
    ("constraints", qavit.model, "QuadAttentionBlock", OneNarrowBranch),
    ("constraints", qavit.model, "MultiScaleDilatedAttention", FewerKeys),
    ("constraints", qavit.config.SIZES, "small", {"embed_dim": 384, "num_heads": 6, "mlp_ratio": 1.0}),
    ("structure", qavit.model, "ChannelGroupAttention", MixedGroups),
    ("cross-attention", qavit.model, "BankCrossAttention", SelfAttention),
    ("batch-independent", qavit.model.QAViT, "forward_head", batch_statistics),
    ("outputs", qavit.model.QAViT, "forward_head", only_the_first),
    ("deterministic", qavit.model.QAViT, "forward_head", noisy),
    ("structure", qavit.config.SIZES, "tiny", {"window_size": 14}),
    ("widths", qavit.config.SIZES, "tiny", {"num_heads": 8}),
    ("widths", qavit.config.SIZES, "small", {"embed_dim": 384, "num_heads": 6, "depth": 12}),
    ("constraints", qavit.config.SIZES, "tiny", {"compress_ratio": 8}),
    ("constraints", qavit.config.SIZES, "tiny", {"bottleneck_ratio": 4}),
    ("constraints", qavit.config.SIZES, "tiny", {"linformer_k": 32}),
    ("structure", qavit.config.SIZES, "tiny", {"dilation_factors": (1, 2, 4)}),
    ("structure", qavit.config.SIZES, "tiny", {"global_bank_size": 8}),
]


def plant(monkeypatch, owner, name, wrong):
    if isinstance(owner, dict):
        monkeypatch.setitem(owner, name, wrong)
    else:
        monkeypatch.setattr(owner, name, wrong)


@pytest.mark.parametrize(("claim", "owner", "name", "wrong"), PLANTED, ids=[p[0] for p in PLANTED])
def test_a_wrong_implementation_turns_its_claim(monkeypatch, fresh_models, claim, owner, name, wrong):
    plant(monkeypatch, owner, name, wrong)
    found = verdict_of(claim)
    assert found.verdict == FAILS, found.error or found.measured


def test_wrong_figures_are_contradicted(monkeypatch):
    """Sums of published figures are computed, and not typed in."""
    for name, check in (("images-per-second", "images_per_second"), ("example-division", "example_throughput")):
        value = checks.CHECKS[check]()
        wrong = {k: {"images/s": 2 * v["images/s"]} for k, v in value.items()} if isinstance(value, dict) else 2 * value
        monkeypatch.setitem(checks.CHECKS, check, lambda wrong=wrong: wrong)
        assert verdict_of(name).verdict == CONTRADICTED
