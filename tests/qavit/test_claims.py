"""QAViT's claims: the file is whole, the verdicts are the findings, and a wrong implementation turns its claim."""

import dataclasses
import importlib.resources
from pathlib import Path

import pytest
import torch
from torch import nn

import qavit.bank
import qavit.config
import qavit.model
import qavit.recipe
import vit_core.attention
import vit_core.optimisation
import vit_core.run_folder
from qavit import checks, property_checks, recipe_checks
from vit_core.claims import ERROR, FAILS, HOLDS, HOLDS_IF, NOT_RUN, judge, load_claims

CLAIMS = load_claims(Path(str(importlib.resources.files("qavit"))) / "claims.yaml")

FINDINGS = {
    FAILS: {
        "swa-shorter", "channel-wise", "gateway-multi-layer", "quick-start-hours", "run-hours", "multi-scale",
        "batch-independent-training", "gradient-flow", "gateway-learns",
    },
    HOLDS_IF: {
        "tiny-parameters", "small-parameters", "bank-linformer", "parallel", "bottleneck-efficient",
        "bank-communicates", "initial-lr",
    },
}  # fmt: skip
MENDED = {"multi-scale", "batch-independent-training", "gradient-flow", "gateway-learns"}  # by our own repairs


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


def repaired(name):
    """The verdict under our repair."""
    (claim,) = (c for c in CLAIMS if c.id == f"qavit-{name}")
    (reading,) = (r for r in claim.readings if r.repair)
    (found,) = judge([dataclasses.replace(claim, check=reading.check, readings=())], checks.CHECKS)
    return found


def test_every_id_starts_with_the_paper_and_every_check_is_used():
    assert all(c.id.startswith("qavit-") for c in CLAIMS)
    used = {c.check for c in CLAIMS} | {r.check for c in CLAIMS for r in c.readings}
    assert set(checks.CHECKS) <= used


def test_the_verdicts_are_the_findings():
    instant = [c for c in CLAIMS if c.cost == "instant"]
    verdicts = judge(instant, checks.CHECKS)
    assert [(v.claim.id, v.error) for v in verdicts if v.verdict == ERROR] == []
    assert all(v.how for v in verdicts)
    found = {kind: {v.claim.id.removeprefix("qavit-") for v in verdicts if v.verdict == kind} for kind in FINDINGS}
    assert found == FINDINGS
    assert {v.verdict for v in verdicts} == {HOLDS, *FINDINGS}


def test_our_repairs_mend_what_the_original_does():
    assert {c.id.removeprefix("qavit-") for c in CLAIMS if any(r.repair for r in c.readings)} == MENDED
    assert {name: repaired(name).verdict for name in MENDED} == dict.fromkeys(MENDED, HOLDS)


def test_what_needs_a_gpu_has_no_verdict():
    slow = [c for c in CLAIMS if c.cost != "instant"]
    assert slow
    assert {v.verdict for v in judge(slow, checks.CHECKS)} == {NOT_RUN}


# ── planted mistakes: (claim, what is replaced, by what) ──────────────────────────────────────────────────────────


class WideFFN(qavit.model.CCFFFN):
    def __init__(self, config):
        super().__init__(config.replace(mlp_ratio=4.0))


class FullConvolution(qavit.model.CCFFFN):
    def __init__(self, config):
        super().__init__(config)
        self.dwconv = nn.Conv2d(self.dwconv.in_channels, self.dwconv.in_channels, 3, padding=1)


class WideConvolution(qavit.model.CCFFFN):
    def __init__(self, config):
        super().__init__(config)
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
    def __init__(self, config):
        super().__init__(config.replace(linformer_k=32))


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
    return self.head(x.mean(dim=1))[:128]


def noisy(self, x, pre_logits=False):
    return self.head(x.mean(dim=1)) + 1e-6 * torch.rand(len(x), self.num_classes)


def unscaled(q, k, v, dropout_p=0.0):
    return (q @ k.mT).softmax(-1) @ v


def linear_schedule(self, step):
    share = step / (self.config.epochs * self.steps_per_epoch)
    self.optimizer.param_groups[0]["lr"] = self._base[0] * (1 - share)


PLANTED = [
    ("mlp-ratio", qavit.model, "CCFFFN", WideFFN),
    ("dwconv-depthwise", qavit.model, "CCFFFN", FullConvolution),
    ("dwconv-reach", qavit.model, "CCFFFN", WideConvolution),
    ("fusion-softmax", qavit.model, "HybridFusion", SigmoidFusion),
    ("fusion-softmax", qavit.model, "HybridFusion", ConstantFusion),
    ("fusion-softmax", qavit.model, "HybridFusion", LinearFusion),
    ("compress-ratio", qavit.model, "QuadAttentionBlock", OneNarrowBranch),
    ("linformer-k", qavit.model, "MultiScaleDilatedAttention", FewerKeys),
    ("mlp-ratio", qavit.config.SIZES, "small", {"embed_dim": 384, "num_heads": 6, "mlp_ratio": 1.0}),
    ("batch-of-256", qavit.model.QAViT, "forward_head", only_the_first),
    ("channel-groups", qavit.model, "ChannelGroupAttention", MixedGroups),
    ("cross-attention", qavit.model, "BankCrossAttention", SelfAttention),
    ("batch-independent", qavit.model.QAViT, "forward_head", batch_statistics),
    ("deterministic", qavit.model.QAViT, "forward_head", noisy),
    ("fallback-correct", vit_core.attention.F, "scaled_dot_product_attention", unscaled),
    ("schedule-formula", vit_core.optimisation.Schedule, "set_step", linear_schedule),
    ("warmup-start", vit_core.optimisation.Schedule, "set_step", linear_schedule),
    ("tracked", recipe_checks, "METRICS", vit_core.run_folder.METRICS[:-3]),
    ("window", qavit.config.SIZES, "tiny", {"window_size": 14}),
    ("tiny-num-heads", qavit.config.SIZES, "tiny", {"num_heads": 8}),
    ("compress-ratio", qavit.config.SIZES, "tiny", {"compress_ratio": 8}),
    ("bottleneck-ratio", qavit.config.SIZES, "tiny", {"bottleneck_ratio": 4}),
    ("linformer-k", qavit.config.SIZES, "tiny", {"linformer_k": 32}),
    ("dilations", qavit.config.SIZES, "tiny", {"dilation_factors": (1, 2, 4)}),
    ("tiny-cifar-lr", qavit.recipe.PUBLISHED, ("tiny", False), (256, 1e-4, 0.05, 20)),
    ("small-imagenet-warmup", qavit.recipe.PUBLISHED, ("small", True), (256, 8e-4, 0.05, 20)),
    ("tiny-cifar-weight-decay", qavit.recipe.PUBLISHED, ("tiny", False), (256, 1e-3, 0.052, 20)),
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


class BlindGateway(qavit.bank.GlobalTokenBank):
    """Functional writes that pass no gradient on."""

    def write(self, bank, tokens, norm):
        with torch.no_grad():
            return super().write(bank, tokens, norm)


class SharedWrites(qavit.bank.GlobalTokenBank):
    """The functional bank, averaged over the batch after all."""

    def _delta(self, tokens, over_batch=False):
        return super()._delta(tokens, over_batch=True)


UNDER_ANOTHER_READING = [
    ("tiny-parameters", qavit.model, "CCFFFN", WideFFN),
    ("small-parameters", qavit.config.SIZES, "small", {"embed_dim": 384, "num_heads": 6, "global_bank_size": 96}),
]
UNDER_OUR_REPAIR = [
    ("gradient-flow", qavit.model, "GlobalTokenBank", BlindGateway),
    ("gateway-learns", qavit.model, "GlobalTokenBank", BlindGateway),
    ("batch-independent-training", qavit.model, "GlobalTokenBank", SharedWrites),
]


@pytest.mark.parametrize(
    ("claim", "owner", "name", "wrong"), UNDER_ANOTHER_READING, ids=[p[0] for p in UNDER_ANOTHER_READING]
)
def test_a_wrong_implementation_does_not_hold_under_the_other_reading(
    monkeypatch, fresh_models, claim, owner, name, wrong
):
    plant(monkeypatch, owner, name, wrong)
    found = verdict_of(claim)
    assert found.verdict == FAILS, found.error or found.measured


@pytest.mark.parametrize(("claim", "owner", "name", "wrong"), UNDER_OUR_REPAIR, ids=[p[0] for p in UNDER_OUR_REPAIR])
def test_a_wrong_implementation_of_our_repair_mends_nothing(monkeypatch, fresh_models, claim, owner, name, wrong):
    plant(monkeypatch, owner, name, wrong)
    found = repaired(claim)
    assert found.verdict == FAILS, found.error or found.measured


def test_a_stretched_sequence_that_is_cut_after_all_turns_the_scales(monkeypatch, fresh_models):
    whole = qavit.model.MultiScaleDilatedAttention.__init__

    def cut(self, config):
        whole(self, config.replace(msda_truncate=True))

    monkeypatch.setattr(qavit.model.MultiScaleDilatedAttention, "__init__", cut)
    assert repaired("multi-scale").verdict == FAILS
