"""The ZoomViT study's claims: the verdicts as they were found, and that a wrong figure or a wrong model turns them."""

import dataclasses
import importlib.resources
from collections.abc import Callable
from pathlib import Path

import pytest

from vit_core.ledger.claims import load_claims
from vit_core.ledger.verdicts import Verdict, judge
from zoom_vit import checks
from zoom_vit.importance import see, token_norm
from zoom_vit.model import PrunedOutput, ZoomViT

CLAIMS = load_claims(Path(str(importlib.resources.files("zoom_vit"))) / "claims.yaml")
BY_ID = {c.id: c for c in CLAIMS}
INSTANT = {
    "zoom-intent-is-efficient": "holds",
    "zoom-from-scratch": "contradicted",
    "zoom-baseline-parts": "holds",
    "zoom-map-aggregates": "contradicted",
    "zoom-crop": "holds",
    "zoom-prune-recipe": "holds",
    "zoom-prune-not-simple-removal": "holds",
    "zoom-map-is-what-prunes": "contradicted",
    "zoom-own-changes": "contradicted",
    "zoom-own-diffuse-is-uncertain": "contradicted",
    "zoom-paper-parameters": "contradicted",
}
Patch = pytest.MonkeyPatch


def verdict(claim: str) -> Verdict:
    return judge([BY_ID[claim]], checks.CHECKS)[0]


def test_ids_and_checks():
    assert all(c.id.startswith("zoom-") for c in CLAIMS)
    asked = {c.check for c in CLAIMS} | {e.check for c in CLAIMS for e in c.evidence}
    assert checks.CHECKS.keys() <= asked, "a check that no claim asks for"


def test_verdicts_of_what_is_checked_anew():
    found = {v.claim.id: v for v in judge([c for c in CLAIMS if c.cost == "instant"], checks.CHECKS)}
    assert {i: v.verdict for i, v in found.items()} == INSTANT, {i: v.error for i, v in found.items() if v.error}
    assert all(v.how for v in found.values() if v.claim.check), "each check says how it measures"
    assert found["zoom-intent-is-efficient"].cells[0].found == pytest.approx(0.643, abs=1e-3)
    changed = {c.row: c.verdict for c in found["zoom-own-changes"].cells}
    assert changed == {"good": "holds", "inverted": "fails", "diffuse": "holds"}


def test_verdicts_of_what_was_run():
    found = {v.claim.id: v.verdict for v in judge([c for c in CLAIMS if c.cost != "instant"], {})}
    for out_of_reach in ("zoom-three-images", "zoom-own-good-is-correct", "zoom-paper-accuracy"):
        assert found.pop(out_of_reach) == "cannot be run"
    at_their_setting = {"zoom-cifar10-accuracy", "zoom-cifar10-loss", "zoom-prune-speed-up"}
    assert {i: found.pop(i) for i in at_their_setting} == AT_THEIR_SETTING
    assert set(found.values()) == {"not run"}


AT_THEIR_SETTING = {
    "zoom-cifar10-accuracy": "undecided",
    "zoom-cifar10-loss": "undecided",
    "zoom-prune-speed-up": "holds",
}


def test_one_run_counts_for_all_claims_of_a_setting_or_for_none():
    """The 64-pixel copy of Flowers-102 gives no verdict, whatever was measured on it."""
    runs = [(c, m.run) for c in CLAIMS for m in c.measured]
    assert {r.name for c, r in runs if c.setting is not None and c.setting.name == "flowers-5-epochs"}
    for claim, run in runs:
        assert claim.setting is not None
        assert (claim.setting.name in run.meets) == (claim.setting.name != "flowers-5-epochs"), claim.id


def another_keep_ratio(patch: Patch) -> None:
    right = ZoomViT.forward_pruned
    patch.setattr(ZoomViT, "forward_pruned", lambda self, x, keep, *args, **kw: right(self, x, 1.0, *args, **kw))


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


def removed_at_the_end(patch: Patch) -> None:
    """Attention is not computed anew: all blocks see all tokens, and then some are dropped."""

    def wrong(self, images, keep, *args, **kw):
        tokens = self.forward_features(images)
        kept = token_norm(see(self, images, 6)).topk(58).indices
        return PrunedOutput(self.forward_head(tokens), kept, 58, 196)

    patch.setattr(ZoomViT, "forward_pruned", wrong)


def published(**images: checks.Published) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(checks, "IMAGES", checks.IMAGES | images)


WRONG: dict[str, tuple[str, Callable[[Patch], None], str]] = {
    "layer": ("zoom-prune-recipe", another_layer, "fails"),
    "the least important": ("zoom-prune-recipe", the_least_important, "fails"),
    "pruned in name only": ("zoom-prune-recipe", nothing_removed, "fails"),
    "nothing is saved": ("zoom-intent-is-efficient", another_keep_ratio, "fails"),
    "removed at the end": ("zoom-prune-not-simple-removal", removed_at_the_end, "fails"),
    "a good image that loses": (
        "zoom-own-changes",
        published(good=checks.Published(3.46, 84, 3.29, 71)),
        "contradicted",
    ),
    "an inverted image that gains": (
        "zoom-own-changes",
        published(inverted=checks.Published(3.1, 23, 3.19, 25)),
        "holds",
    ),
    "a diffuse image of low confidence": (
        "zoom-own-diffuse-is-uncertain",
        published(diffuse=checks.Published(2.53, 6, 2.19, 6)),
        "holds",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_another_model_or_figure_turns_the_verdict(mistake, monkeypatch):
    claim, plant, expected = WRONG[mistake]
    plant(monkeypatch)
    found = verdict(claim)
    assert (found.verdict, found.error) == (expected, "")
    if expected == "contradicted":
        assert [c.row for c in found.cells if c.verdict == "fails"] == ["good", "inverted"]
    else:
        assert expected != INSTANT[claim]


@pytest.mark.parametrize(
    ("claim", "value", "expected"),
    [
        ("zoom-from-scratch", True, "holds"),
        ("zoom-map-aggregates", {"importance map": {"gradients": True}}, "holds"),
        ("zoom-baseline-parts", {"baseline": {"transformer blocks": 8}}, "contradicted"),
        ("zoom-crop", False, "contradicted"),
        ("zoom-prune-recipe", {"token pruning": {"blocks with all tokens": 12}}, "contradicted"),
        ("zoom-map-is-what-prunes", 100, "holds"),
        ("zoom-own-good-is-correct", True, "cannot be run"),
        ("zoom-paper-parameters", 22.7, "holds"),
        ("zoom-prune-not-simple-removal", 0.0, "contradicted"),
    ],
)
def test_what_the_originals_code_does_decides(claim, value, expected):
    entry = BY_ID[claim]
    planted = dataclasses.replace(entry, evidence=[dataclasses.replace(entry.evidence[0], value=value)])
    assert judge([planted], checks.CHECKS)[0].verdict == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([53.1, 53.3, 53.2], "holds"),
        ([51.0, 53.0, 55.0], "undecided"),
        ([49.8, 49.9, 50.0], "fails"),
        (53.17, "undecided"),
    ],
)
def test_a_result_is_judged_by_the_interval_over_its_seeds(values, expected):
    entry = BY_ID["zoom-cifar10-accuracy"]
    seeds = [0, 1, 2] if isinstance(values, list) else 0
    planted = dataclasses.replace(entry.measured[0], value=values, seed=seeds)
    assert judge([dataclasses.replace(entry, measured=[planted])], {})[0].verdict == expected
