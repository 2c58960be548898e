"""clear-vit's claims: the verdicts as they were found, and that a wrong implementation does not pass."""

import dataclasses
import importlib.resources
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import clear_vit.model
from clear_vit import checks, variant_checks
from clear_vit.model import DiffSimilarityAttention
from vit_core.claims import Verdict, judge, load_claims

CLAIMS = load_claims(Path(str(importlib.resources.files("clear_vit"))) / "claims.yaml")
BY_ID = {c.id: c for c in CLAIMS}
FAILS = {"clear-suppression-neighbours", "clear-suppression-surround", "clear-rope-unlike-standard"}
HOLDS_IF = {"clear-accuracies-are-shares-of-the-images", "clear-diff-similarity-not-raw-features"}


@pytest.fixture(autouse=True)
def _nothing_kept():
    checks._tiny.cache_clear()
    yield
    checks._tiny.cache_clear()


def verdict(claim: str) -> Verdict:
    return judge([BY_ID[claim]], checks.CHECKS)[0]


def test_ids_and_checks():
    assert all(c.id.startswith("clear-") for c in CLAIMS)
    asked = {c.check for c in CLAIMS} | {r.check for c in CLAIMS for r in c.readings}
    assert checks.CHECKS.keys() <= asked, "a check that no claim asks for"


def test_verdicts():
    found = {v.claim.id: v for v in judge([c for c in CLAIMS if c.cost == "instant"], checks.CHECKS)}
    assert not {i: v.error for i, v in found.items() if v.verdict == "error"}
    assert {i for i, v in found.items() if v.verdict == "fails"} == FAILS
    assert {i for i, v in found.items() if v.verdict == "holds if"} == HOLDS_IF
    assert all(v.how for v in found.values()), "each check says how it measures"
    assert all(v.verdict == "not run" for v in judge([c for c in CLAIMS if c.cost != "instant"], {}))


def test_figures_behind_the_verdicts():
    values = {i: verdict(i).measured.value for i in FAILS | {"clear-accuracies-are-shares-of-the-images"}}
    assert values["clear-accuracies-are-shares-of-the-images"] == 3
    assert values["clear-suppression-neighbours"] == pytest.approx(90.826, abs=1e-3)
    assert values["clear-suppression-surround"] == pytest.approx(100 * 480 / 1860)  # two of eight, less at the border
    assert 0 < values["clear-rope-unlike-standard"] < 1e-13


Patch = pytest.MonkeyPatch


def narrow_models(patch: Patch) -> None:
    models_with(patch, embed_dim=180)


def models_with(patch: Patch, **fields: Any) -> None:
    create = timm.create_model
    patch.setattr(timm, "create_model", lambda name, **given: create(name, **{**given, **fields}))


def one_deeper(patch: Patch) -> None:
    create = timm.create_model
    depth = lambda name: {"depth": 13} if name.endswith("suppression") else {}  # noqa: E731
    patch.setattr(timm, "create_model", lambda name, **given: create(name, **given, **depth(name)))


def preset_with(patch: Patch, change: Callable[[str], dict[str, Any]]) -> None:
    recipe = checks.RECIPE
    presets = lambda given: {**recipe.presets(given), **change(given["model"])}  # noqa: E731
    patch.setattr(checks, "RECIPE", dataclasses.replace(recipe, presets=presets))


def wrap(patch: Patch, module: Any, name: str, wrong: Callable[..., Any]) -> None:
    """wrong: (the right function, its arguments) -> something else."""
    right = getattr(module, name)
    patch.setattr(module, name, lambda *args, **kwargs: wrong(right, *args, **kwargs))


def keys_turned_backwards(right, qk, table, **kwargs):
    back = torch.stack([table[0], -table[1]])
    return torch.stack([right(qk, table)[:, :, 0], right(qk, back)[:, :, 1]], 2)


def halves_as_pairs(right, qk, table, **kwargs):
    mixed = qk.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
    return right(mixed, table).unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def all_tokens_turned(right, qk, table, **kwargs):
    return right(qk, torch.cat([table[:, -1:], table[:, 1:]], 1))


WRONG: dict[str, tuple[str, Callable[[Patch], None]]] = {
    "width": ("clear-hidden-dimension", narrow_models),
    "size": ("clear-parameters-baseline", narrow_models),
    "depth": ("clear-layers", lambda p: models_with(p, depth=8)),
    "heads": ("clear-heads", lambda p: models_with(p, num_heads=6)),
    "one variant is deeper": ("clear-fixed-backbone", one_deeper),
    "no dropout": ("clear-pos-dropout-on-embedding", lambda p: models_with(p, pos_dropout=0.0)),
    "dropout on tokens": ("clear-pos-dropout-on-embedding", lambda p: models_with(p, pos_drop_rate=0.1)),
    "dropout in attention": ("clear-pos-dropout-on-embedding", lambda p: models_with(p, attn_drop_rate=0.1)),
    "learning rate": ("clear-setting-learning-rate", lambda p: preset_with(p, lambda _: {"lr": 1e-3})),
    "a variant's own recipe": (
        "clear-identical-settings",
        lambda p: preset_with(p, lambda m: {"epochs": 100 if m == "rope" else 90}),
    ),
    "scale of scores": (
        "clear-vanilla-attention",
        lambda p: wrap(p, clear_vit.model, "attention", lambda f, q, k, v, drop: f(2 * q, k, v, drop)),
    ),
    "difference to the next": (
        "clear-diff-similarity-formula",
        lambda p: p.setattr(DiffSimilarityAttention, "difference", lambda _, t: t - t.roll(-1, 2)),
    ),
    "raw features": (
        "clear-diff-similarity-not-raw-features",
        lambda p: p.setattr(DiffSimilarityAttention, "difference", lambda _, t: t),
    ),
    "added, not subtracted": (
        "clear-suppression-formula",
        lambda p: wrap(p, clear_vit.model, "suppressed_attention", lambda f, q, k, v, w, d: f(q, k, v, -w, d)),
    ),
    "a scalar lambda": (
        "clear-diff-entropy-formula",
        lambda p: p.setattr(clear_vit.model, "token_entropy", lambda x: torch.full(x.shape[:2], 0.8).double()),
    ),
    "entropy in bits": (
        "clear-entropy-formula",
        lambda p: wrap(p, variant_checks, "token_entropy", lambda f, x: f(x) / math.log(2)),
    ),
    "lambda that is not used": (
        "clear-entropy-modulates",
        lambda p: wrap(p, variant_checks, "differential_attention", lambda f, q, k, v, lam: f(q, k, v, lam.round())),
    ),
    "keys turned backwards": (
        "clear-rope-relative",
        lambda p: wrap(p, variant_checks, "rotate", keys_turned_backwards),
    ),
    "other pairs": ("clear-rope-mixed", lambda p: wrap(p, variant_checks, "rotate", halves_as_pairs)),
    "class token turned": ("clear-rope-class-token", lambda p: wrap(p, variant_checks, "rotate", all_tokens_turned)),
    "no position embedding": (
        "clear-best-combines-both",
        lambda p: models_with(p, pos_embed="none"),
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_implementation_fails(mistake, monkeypatch):
    claim, plant = WRONG[mistake]
    assert verdict(claim).verdict in ("holds", "holds if")
    checks._tiny.cache_clear()
    plant(monkeypatch)
    found = verdict(claim)
    assert (found.verdict, found.error) == ("fails", "")
