"""The ZoomViT study's claims: the verdicts as they were found, and that a wrong implementation does not pass."""

import dataclasses
import importlib.resources
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from vit_core.claims import Verdict, judge, load_claims
from zoom_vit import checks, importance, pruning_checks, zoom
from zoom_vit.model import ZoomViT

CLAIMS = load_claims(Path(str(importlib.resources.files("zoom_vit"))) / "claims.yaml")
BY_ID = {c.id: c for c in CLAIMS}
FAILS = {
    "zoom-map-aggregates-layers", "zoom-map-uses-gradients", "zoom-prune-not-simple-removal",
    "zoom-intent-is-efficient", "zoom-own-good-often", "zoom-own-good-same-class", "zoom-own-inverted-reinforced",
}  # fmt: skip
MENDED = {"zoom-map-aggregates-layers", "zoom-map-uses-gradients"}  # by an importance of ours
MEASURED_AND_HOLDS = {
    "zoom-cifar10-accuracy", "zoom-cifar10-loss", "zoom-diffuse-group-confidence", "zoom-pruning-is-robust-accuracy",
}  # fmt: skip
NOT_RUN = {
    "zoom-flowers102-accuracy", "zoom-flowers102-loss", "zoom-prune-speed-up", "zoom-class-attention-strong",
    "zoom-box-is-a-region", "zoom-intent-performs-better", "zoom-attention-is-hijacked", "zoom-aligned-only-accuracy",
    "zoom-diffuse-group-accuracy",
    *(f"zoom-image-{n}-{what}" for n in (1143, 5238, 204) for what in ("intent", "dense", "pruned", "class-changes")),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_kept():
    forget()
    yield
    forget()


def forget() -> None:
    for cache in (pruning_checks.flowers_model, pruning_checks._pruned, pruning_checks._share):
        cache.cache_clear()


def verdict(claim: str) -> Verdict:
    return judge([BY_ID[claim]], checks.CHECKS)[0]


def test_ids_and_checks():
    assert all(c.id.startswith("zoom-") for c in CLAIMS)
    asked = {c.check for c in CLAIMS} | {r.check for c in CLAIMS for r in c.readings}
    assert checks.CHECKS.keys() <= asked, "a check that no claim asks for"


def test_verdicts():
    found = {v.claim.id: v for v in judge([c for c in CLAIMS if c.cost == "instant"], checks.CHECKS)}
    assert not {i: v.error for i, v in found.items() if v.verdict == "error"}
    assert {i for i, v in found.items() if v.verdict == "fails"} == FAILS
    assert {v.verdict for v in found.values()} == {"holds", "fails"}
    assert {i for i, v in found.items() if v.under} == MENDED
    assert all(BY_ID[i].readings[0].repair for i in MENDED)
    assert all(v.how for v in found.values()), "each check says how it measures"
    assert found["zoom-intent-is-efficient"].measured.value == pytest.approx(2.80, abs=0.01)
    assert found["zoom-prune-multiply-adds"].measured.value == pytest.approx(0.643, abs=1e-3)


def test_verdicts_of_what_was_trained():
    found = {v.claim.id: v.verdict for v in judge([c for c in CLAIMS if c.cost != "instant"], {})}
    assert {i for i, v in found.items() if v == "not run"} == NOT_RUN
    assert {i for i, v in found.items() if v == "holds"} == MEASURED_AND_HOLDS
    assert set(found.values()) == {"holds", "fails", "not run"}


def test_our_importances_do_what_is_described():
    assert verdict("zoom-map-aggregates-layers").under[0][1] == 12
    assert verdict("zoom-map-uses-gradients").under[0][1] > 1


Patch = pytest.MonkeyPatch


def test_rounding_is_no_reorganisation_of_attention(monkeypatch):
    """Kept tokens in another order: sums round differently. Another class token: the result is another."""
    right = ZoomViT._prune

    def turned(self, seen, by):
        tokens, kept = right(self, seen, by)
        return torch.cat([tokens[:, :1], tokens[:, 1:].flip(1)], 1), kept

    monkeypatch.setattr(ZoomViT, "_prune", turned)
    found = verdict("zoom-prune-not-simple-removal")
    assert (found.verdict, found.error) == ("fails", "")
    assert 0 < found.measured.value < 1e-5
    forget()
    monkeypatch.setattr(ZoomViT, "_prune", right)
    class_token_lost(monkeypatch)
    assert verdict("zoom-prune-not-simple-removal").verdict == "holds"


def models_with(patch: Patch, **fields: Any) -> None:
    create = timm.create_model
    patch.setattr(timm, "create_model", lambda name, **given: create(name, **{**given, **fields}))


def another_keep_ratio(patch: Patch) -> None:
    right = ZoomViT.forward_pruned
    patch.setattr(ZoomViT, "forward_pruned", lambda self, x, keep, *args, **kw: right(self, x, 0.5, *args, **kw))


def another_layer(patch: Patch) -> None:
    right = ZoomViT.forward_pruned
    patch.setattr(ZoomViT, "forward_pruned", lambda self, *args, **kw: right(self, *args, **{**kw, "prune_layer": 4}))


def the_least_important(patch: Patch) -> None:
    right = ZoomViT._prune
    wrong = lambda self, seen, by: right(self, seen, by._replace(importance=-by.importance))  # noqa: E731
    patch.setattr(ZoomViT, "_prune", wrong)


def nothing_removed(patch: Patch) -> None:
    right = ZoomViT._prune
    patch.setattr(ZoomViT, "_prune", lambda self, seen, by: (seen.tokens, right(self, seen, by)[1]))


def class_token_lost(patch: Patch) -> None:
    right = ZoomViT._prune

    def wrong(self, seen, by):
        tokens, kept = right(self, seen, by)
        return torch.cat([tokens.mean(1, keepdim=True), tokens[:, 1:]], 1), kept

    patch.setattr(ZoomViT, "_prune", wrong)


def sum_of_magnitudes(seen):
    block = seen.model.blocks[-1]
    return block.attn(block.norm1(seen.states[-2]))[:, seen.patches].norm(p=1, dim=-1)


def recipe_with(name: str, **values: Any) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        right = getattr(checks, name)
        wrong = dataclasses.replace(right, presets=lambda given: {**right.presets(given), **values})
        for check in values:
            patch.setitem(checks.CHECKS, f"{name.lower()}_{check}", checks._setting(wrong, check))

    return plant


WRONG: dict[str, tuple[str, Callable[[Patch], None]]] = {
    "depth": ("zoom-twelve-blocks", lambda p: models_with(p, depth=8)),
    "patch": ("zoom-map-cells-cifar", lambda p: models_with(p, patch_size=4)),
    "keep ratio": ("zoom-prune-tokens-left", another_keep_ratio),
    "cost": ("zoom-prune-multiply-adds", another_keep_ratio),
    "layer": ("zoom-prune-after-sixth", another_layer),
    "the least important": ("zoom-prune-top", the_least_important),
    "pruned in name only": ("zoom-prune-exclusively", nothing_removed),
    "class token": ("zoom-prune-class-token", class_token_lost),
    "another norm": (
        "zoom-map-formula",
        lambda p: p.setitem(importance.IMPORTANCES, "token_norm", sum_of_magnitudes),
    ),
    "smallest crop": ("zoom-crop-smallest", lambda p: p.setattr(zoom, "MIN_SHARE", 0.5)),
    "crop": ("zoom-crop-formula", lambda p: p.setattr(zoom, "MIN_SHARE", 0.5)),
    "attenuation": (
        "zoom-background-attenuation",
        lambda p: p.setattr(checks, "attenuate_background", lambda x, m: zoom.attenuate_background(x, m, 0.5)),
    ),
    "mask": ("zoom-mask-share", lambda p: p.setattr(zoom, "_count", lambda maps, keep: 98)),
    "batch size": ("zoom-cifar-batch-size", recipe_with("CIFAR", batch_size=128)),
    "optimizer": ("zoom-flowers-optimizer", recipe_with("FLOWERS", optimizer="adamw")),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_implementation_fails(mistake, monkeypatch):
    claim, plant = WRONG[mistake]
    assert verdict(claim).verdict == "holds"
    forget()
    plant(monkeypatch)
    found = verdict(claim)
    assert (found.verdict, found.error) == ("fails", "")
