"""clear-vit's claims: the verdicts as they were found, and that a mistake turns them."""

import dataclasses
import importlib.resources
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import clear_vit.model
from clear_vit import checks, variant_checks
from vit_core.ledger.claims import load_claims
from vit_core.ledger.verdicts import CANNOT_RUN, CONTRADICTED, FAILS, HOLDS, NOT_RUN, Verdict, judge

CLAIMS = load_claims(Path(str(importlib.resources.files("clear_vit"))) / "claims.yaml")
BY_ID = {c.id.removeprefix("clear-"): c for c in CLAIMS}
FINDINGS = {  # all others hold
    CONTRADICTED: {"identical-settings", "rope-unlike-standard"},
    NOT_RUN: {"table", "order", "best-gain", "entropy-gain", "local-not-global"},
    CANNOT_RUN: {"entropy-texture", "suppression-quality", "pos-dropout", "diff-similarity", "diff-entropy"},
}


@pytest.fixture(autouse=True)
def _nothing_kept():
    checks._tiny.cache_clear()
    yield
    checks._tiny.cache_clear()


def verdict(claim: str) -> Verdict:
    return judge([BY_ID[claim]], checks.CHECKS)[0]


def test_ids_and_checks():
    assert all(c.id.startswith("clear-") for c in CLAIMS)
    asked = {c.check for c in CLAIMS} | {e.check for c in CLAIMS for e in c.evidence}
    assert checks.CHECKS.keys() <= asked, "a check that no claim asks for"


def test_verdicts():
    found = dict(zip(BY_ID, judge(CLAIMS, checks.CHECKS), strict=True))
    assert not {i: v.error for i, v in found.items() if v.error}
    assert {kind: {i for i, v in found.items() if v.verdict == kind} for kind in FINDINGS} == FINDINGS
    assert {v.verdict for v in found.values()} == {HOLDS, *FINDINGS}
    assert all(v.how for v in found.values() if v.claim.cost == "instant" and v.claim.check)


def is_share(cell: float, images: int) -> bool:
    """Whether a percentage is a whole number of images, to three decimals; to two where the third is zero."""
    decimals = 2 if round(1000 * cell) % 10 == 0 else 3
    nearest = round(cell / 100 * images)
    return abs(100 * nearest / images - cell) < 0.51 * 10**-decimals


def test_rows_1_and_2_were_not_evaluated_as_the_others():
    """Rows 3 to 7 are shares of 4,864 images and of no other number; three cells of rows 1 and 2 are not."""
    cells = {variant: [is_share(c, 4864) for c in pair] for variant, pair in checks.CLAIMED.items()}
    rows = list(cells.values())
    assert rows[2:] == [[True, True]] * 5
    assert rows[:2] == [[False, False], [True, False]]
    last = [cell for pair in list(checks.CLAIMED.values())[2:] for cell in pair]
    assert [n for n in range(1, 5001) if all(is_share(cell, n) for cell in last)] == [4864]
    assert not is_share(44.97, 5000)


Patch = pytest.MonkeyPatch


def models_with(patch: Patch, **fields: Any) -> None:
    create = timm.create_model
    patch.setattr(timm, "create_model", lambda name, **given: create(name, **{**given, **fields}))


def wrap(patch: Patch, module: Any, name: str, wrong: Callable[..., Any]) -> None:
    """wrong: (the right function, its arguments) -> something else."""
    right = getattr(module, name)
    patch.setattr(module, name, lambda *args, **kwargs: wrong(right, *args, **kwargs))


def keys_turned_backwards(right, qk, table, **kwargs):
    back = torch.stack([table[0], -table[1]])
    return torch.stack([right(qk, table)[:, :, 0], right(qk, back)[:, :, 1]], 2)


WRONG: dict[str, tuple[str, Callable[[Patch], None], str]] = {
    "heads": ("suppression-kernels", lambda p: models_with(p, num_heads=6), FAILS),
    "scale of scores": (
        "baseline",
        lambda p: wrap(p, clear_vit.model, "attention", lambda f, q, k, v, drop: f(2 * q, k, v, drop)),
        FAILS,
    ),
    "added, not subtracted": (
        "suppression-formula",
        lambda p: wrap(p, clear_vit.model, "suppressed_attention", lambda f, q, k, v, w, d: f(q, k, v, -w, d)),
        FAILS,
    ),
    "keys turned backwards": (
        "rope-relative",
        lambda p: wrap(p, variant_checks, "rotate", keys_turned_backwards),
        FAILS,
    ),
    "no position embedding": ("best-combines-both", lambda p: models_with(p, pos_embed="none"), FAILS),
    "width": ("parameters", lambda p: models_with(p, embed_dim=180), FAILS),
    "fixed positions": (
        "learnable-positions",
        lambda p: wrap(p, checks, "_tiny", lambda f, v: f(v).requires_grad_(False)),
        FAILS,
    ),
    "another best row": (
        "best-of-the-table",
        lambda p: p.setitem(checks.CLAIMED, "rope", (57.0, 80.407)),
        CONTRADICTED,
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_turns_its_claim(mistake, monkeypatch):
    claim, plant, says = WRONG[mistake]
    assert verdict(claim).verdict == HOLDS
    checks._tiny.cache_clear()
    monkeypatch.setattr(checks, "_tiny", checks._tiny)
    plant(monkeypatch)
    found = verdict(claim)
    assert (found.verdict, found.error) == (says, "")


def test_rotation_is_no_other_than_independent_even_without_the_originals_code():
    """Measured, too: the scores of relative rotation are those of independent rotation, but for rounding."""
    alone = dataclasses.replace(BY_ID["rope-unlike-standard"], evidence=())
    found = judge([alone], checks.CHECKS)[0]
    assert found.verdict == FAILS
    assert 0 < found.found[0].measured.value < 1e-13
