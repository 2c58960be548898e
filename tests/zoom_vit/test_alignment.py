"""The alignment study: groups, controls, intervals and what is concluded from them."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from zoom_vit import IMPORTANCES, importance_map
from zoom_vit.alignment import (
    Judgment,
    groups,
    interval,
    judge,
    noise_entropy,
    normalized_entropy,
    p_value,
    ranked,
    summarize,
    verdict,
)
from zoom_vit.importance import see

from .test_model import images, vit


def judgment(**fields):
    return Judgment(**{"importance": "cls_attention", "keep_ratio": 0.25, "prune_layer": 1, **fields})


def test_entropy_of_known_maps():
    single = torch.zeros(4, 4)
    single[2, 1] = 5.0
    half = torch.zeros(4, 4)
    half[:2] = 1.0
    maps = torch.stack([torch.full((4, 4), 3.0), single, half, 100 + half, 1e-30 * single])
    expected = [1.0, 0.0, math.log(8) / math.log(16), math.log(8) / math.log(16), 0.0]
    assert normalized_entropy(maps).tolist() == pytest.approx(expected)


def test_noise_entropy_is_that_of_noise():
    for side, tolerance in ((8, 0.005), (14, 0.002)):
        noise = torch.rand(4000, side, side, generator=torch.Generator().manual_seed(0))
        assert float(normalized_entropy(noise).mean()) == pytest.approx(noise_entropy(side * side), abs=tolerance)


@pytest.mark.parametrize("judged_by", ["pixels", "tokens"])
@pytest.mark.parametrize("judged_at", ["last", "pruned"])
@torch.no_grad()
def test_groups_are_what_they_are_said_to_be(judged_by, judged_at):
    """Image by image, written out."""
    model, x, targets = vit(), images(12), torch.arange(12) % 5
    by = judgment(judged_by=judged_by, judged_at=judged_at)
    columns = judge(model, x, targets, by)
    maps = importance_map(model, x, "cls_attention")
    if judged_at == "pruned":
        maps = IMPORTANCES["cls_attention"](see(model, x, 1)).view(12, 4, 4)
    for i in range(12):
        kept = []
        for heat in (maps[i], -maps[i]):
            if judged_by == "tokens":
                logits = model.forward_pruned(x[i : i + 1], 0.25, 1, heat[None])[0]
            else:
                top = torch.zeros(16).scatter(0, heat.flatten().topk(4).indices, 1.0).view(4, 4)
                shown = top.repeat_interleave(8, 0).repeat_interleave(8, 1).bool()
                mean = x[i].mean((1, 2), keepdim=True)
                logits = model(torch.where(shown, x[i], mean)[None])
            kept.append(float(logits.softmax(1)[0, targets[i]]))
        assert bool(columns["aligned"][i]) == (kept[0] > kept[1])
    assert_close(columns["entropy"], normalized_entropy(maps))
    assert 0 < columns["aligned"].sum() < 12
    dense = model(x).softmax(1)
    assert_close(columns["dense_confidence"], 100 * dense.amax(1))
    assert_close(columns["dense_true_class"], 100 * dense[range(12), targets])
    pruned = model.forward_pruned(x, 0.25, 1, "cls_attention")
    assert torch.equal(columns["pruned_class"], pruned.logits.argmax(1))
    assert torch.equal(columns["pruned_correct"], 100.0 * (pruned.logits.argmax(1) == targets))
    top = maps.flatten(1).topk(4).indices
    both = [len(set(a) & set(b)) for a, b in zip(top.tolist(), pruned.kept.tolist(), strict=True)]
    assert_close(columns["overlap"], torch.tensor(both) * 25.0)
    if judged_at == "pruned":
        assert (columns["overlap"] == 100).all()


def test_tied_places_are_ranked_by_chance_and_none_twice():
    maps, noise = torch.zeros(50, 4, 4), torch.rand(50, 4, 4, generator=torch.Generator().manual_seed(0))
    maps[:, 2, 1] = 1.0
    ranks = ranked(maps, noise)
    assert (ranks.sort(1).values == torch.arange(16)).all()
    assert (ranks.argmax(1) == 9).all()
    assert len(set(ranks.argmin(1).tolist())) > 8


def test_groups_follow_the_threshold():
    columns = {"entropy": np.array([0.5, 0.5, 0.9]), "aligned": np.array([True, False, True])}
    assert groups(columns, 0.8).tolist() == [0, 1, 2]
    assert groups(columns, 1.0).tolist() == [0, 1, 0]
    assert groups(columns, 0.0).tolist() == [2, 2, 2]


def test_the_seed_is_the_controls():
    model, x, targets = vit(), images(12), torch.arange(12) % 5
    first, other = (judge(model, x, targets, judgment(seed=s)) for s in (0, 1))
    assert not torch.equal(first["random_confidence"], other["random_confidence"])
    assert torch.equal(first["pruned_confidence"], other["pruned_confidence"])


@pytest.mark.parametrize("fields", [{"keep_ratio": 0.6}, {"keep_ratio": 0.0}, {"judged_by": "x"}, {"judged_at": "x"}])
def test_judgments_that_cannot_be(fields):
    with pytest.raises(ValueError, match=r"keep_ratio|judged"):
        judgment(**fields)


def table(n, group, lucky, dense, pruned, random):
    """group: into GROUPS, which a threshold of 0.8 gives back."""
    group = np.resize(group, n)
    columns = {"entropy": np.where(group == 2, 0.9, 0.5), "aligned": group == 0, "lucky": np.resize(lucky, n)}
    for measure in ("correct", "confidence", "true_class"):
        for kind, values in (("dense", dense), ("pruned", pruned), ("random", random)):
            columns[f"{kind}_{measure}"] = np.resize(np.asarray(values, float), n)
    return columns


def test_a_summary_of_known_columns():
    # good: +2, inverted: −1, diffuse: 0 on average; random pruning costs 3 everywhere
    columns = table(600, [0, 1, 2, 0, 1, 2], [True, False], [50] * 6, [52, 49, 55, 52, 49, 45], [47] * 6)
    rows = {row["group"]: row for row in summarize(columns, 0.8)}
    assert rows["good"]["images"] == 200
    assert rows["good"]["share"] == pytest.approx(100 / 3)
    assert rows["good"]["pruned_confidence"] == [2.0, 2.0, 2.0]
    assert rows["inverted"]["beyond_correct"] == [2.0, 2.0, 2.0]
    assert rows["inverted"]["contrast_correct"] == [3.0, 3.0, 3.0]
    mean, low, high = rows["diffuse"]["pruned_true_class"]
    assert mean == 0
    assert -1.0 < low < -0.4 < 0.4 < high < 1.0  # 5 · 1.96 / √200 = 0.69
    assert rows["all"]["random_confidence"] == [-3.0, -3.0, -3.0]
    assert rows["placebo good"]["images"] + rows["placebo inverted"]["images"] == 400, "the diffuse ones are left out"
    assert rows["placebo good"]["pruned_confidence"] == [-3.0, -3.0, -3.0]
    assert rows["placebo good"]["contrast_confidence"] == [5.0, 5.0, 5.0]
    line = verdict(list(rows.values()), "confidence")
    assert line == "confidence: good: gain, inverted: loss, diffuse: undecided: the claim holds"


@pytest.mark.parametrize(
    ("pruned", "random", "expected"),
    [
        ([52, 52, 49], [47], "good: gain, inverted: gain, diffuse: loss: the claim fails"),
        ([49, 49, 49], [47], "good: loss, inverted: loss, diffuse: loss: the claim fails"),
        ([50, 49, 49], [47], "good: undecided, inverted: loss, diffuse: loss: the result is inconclusive"),
        ([52, 49, 49], [53], "inconclusive (no larger gain than random pruning, the placebo's good group)"),
        ([52, 49, 49], [47], "the claim holds"),
    ],
)
def test_the_verdict_is_computed(pruned, random, expected):
    rows = summarize(table(300, [0, 1, 2], [True, False], [50], pruned, random), 0.8)
    assert expected in verdict(rows, "correct")


def test_a_wide_interval_of_another_group_is_no_proof():
    """Good +0.2 on many images, inverted +1 but on few and wildly spread: nothing was shown."""
    columns = table(3000, [0] * 59 + [1], [True, False], [50], [50.2], [50])
    inverted = np.flatnonzero(groups(columns, 0.8) == 1)
    columns["pruned_correct"][inverted] = 51 + 12 * np.resize([1, -1], len(inverted))
    line = verdict(summarize(columns, 0.8), "correct")
    assert "inverted: undecided" in line
    assert "inconclusive (no larger gain than the inverted group)" in line


def test_a_gain_among_three_groups_is_corrected():
    """Good +5 in 24 of 1,000 images and -5 in 10: p is about 0.02, but of three groups it is tested at 0.05/3."""
    change = np.zeros(1000)
    change[:24], change[24 : 10 + 24] = 5, -5
    columns = table(3000, [0, 1, 2], [True, False], [50], [50], [50])
    columns["pruned_correct"][groups(columns, 0.8) == 0] += change
    rows = {row["group"]: row for row in summarize(columns, 0.8)}
    assert rows["good"]["pruned_correct"][1] > 0, "its own interval leaves zero out"
    assert 1 / 60 < rows["good"]["p_correct"] < 0.05
    assert "good: undecided" in verdict(list(rows.values()), "correct")


def test_p_values():
    assert p_value(np.full(2000, 3.0)) == p_value(np.full(2000, -3.0)) == 0.001
    assert p_value(np.zeros(2000)) == 1
    assert p_value(np.linspace(-1, 3, 2000)) == pytest.approx(0.5, abs=0.01)


def test_groups_of_few_images_decide_nothing():
    rows = summarize(table(50, [1], [True], [50], [51], [49]), 0.8)
    assert rows[0] == {"group": "good", "images": 0, "share": 0.0}
    assert verdict(rows, "correct").startswith("accuracy: good: too few images, inverted: gain")
    alone = summarize(table(200, [0], [True, False], [50], [51], [49]), 0.8)
    assert "inconclusive" in verdict(alone, "correct"), "there is nothing to compare with"
    single = summarize(table(1, [0], [True], [50], [51], [49]), 0.8)
    assert "good: too few images" in verdict(single, "correct")


def test_the_interval_covers_the_mean():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        values = rng.exponential(1.0, 80)
        mean, low, high = interval(values, 400, rng)
        assert mean == pytest.approx(values.mean())
        covered += low <= 1.0 <= high
    assert 175 <= covered <= 199  # of 190
