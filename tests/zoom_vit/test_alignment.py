"""The alignment study: groups, controls, intervals and what is concluded from them."""

import math

import numpy as np
import pytest
import torch

from zoom_vit import importance_map
from zoom_vit.alignment import (
    GROUPS,
    Judgement,
    interval,
    judge,
    noise_entropy,
    normalised_entropy,
    summarise,
    verdict,
)

from .test_model import images, vit

BY = Judgement(importance="cls_attention", keep_ratio=0.25, prune_layer=1)


def test_entropy_of_known_maps():
    single = torch.zeros(4, 4)
    single[2, 1] = 5.0
    half = torch.zeros(4, 4)
    half[:2] = 1.0
    maps = torch.stack([torch.full((4, 4), 3.0), single, half, 100 + half, 1e-30 * single])
    expected = [1.0, 0.0, math.log(8) / math.log(16), math.log(8) / math.log(16), 0.0]
    assert normalised_entropy(maps).tolist() == pytest.approx(expected)


def test_noise_entropy_is_that_of_noise():
    for side, tolerance in ((8, 0.005), (14, 0.002)):
        noise = torch.rand(4000, side, side, generator=torch.Generator().manual_seed(0))
        assert float(normalised_entropy(noise).mean()) == pytest.approx(noise_entropy(side * side), abs=tolerance)


@pytest.mark.parametrize("judged_by", ["pixels", "tokens"])
@torch.no_grad()
def test_groups_are_what_they_are_said_to_be(judged_by):
    """Image by image, written out."""
    model, x, targets = vit(), images(12), torch.arange(12) % 5
    by = Judgement(importance="cls_attention", keep_ratio=0.25, prune_layer=1, judged_by=judged_by)
    columns = judge(model, x, targets, by)
    maps = importance_map(model, x, "cls_attention")
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
        diffuse = float(normalised_entropy(maps[i : i + 1])) > noise_entropy(16)
        expected = "diffuse" if diffuse else "good" if kept[0] > kept[1] else "inverted"
        assert GROUPS[columns["group"][i]] == expected
    assert len(set(columns["group"].tolist())) > 1
    dense = model(x).softmax(1)
    torch.testing.assert_close(columns["dense_confidence"], 100 * dense.amax(1))
    torch.testing.assert_close(columns["dense_true_class"], 100 * dense[range(12), targets])
    pruned = model.forward_pruned(x, 0.25, 1, "cls_attention").logits
    assert torch.equal(columns["pruned_class"], pruned.argmax(1))
    assert torch.equal(columns["pruned_correct"], 100.0 * (pruned.argmax(1) == targets))


def test_the_threshold_and_the_seed_can_be_set():
    model, x, targets = vit(), images(12), torch.arange(12) % 5
    none, every = (
        judge(
            model, x, targets, Judgement(importance="token_norm", keep_ratio=0.25, prune_layer=1, entropy_threshold=t)
        )
        for t in (1.0, 0.0)
    )
    assert (none["group"] != 2).all()
    assert (every["group"] == 2).all()
    other = judge(model, x, targets, Judgement(importance="token_norm", keep_ratio=0.25, prune_layer=1, seed=1))
    assert not torch.equal(other["random_confidence"], none["random_confidence"])
    assert torch.equal(other["dense_confidence"], none["dense_confidence"])


def table(n, group, placebo, dense, pruned, random):
    columns = {"group": np.resize(group, n), "placebo": np.resize(placebo, n)}
    for measure in ("correct", "confidence", "true_class"):
        for kind, values in (("dense", dense), ("pruned", pruned), ("random", random)):
            columns[f"{kind}_{measure}"] = np.resize(np.asarray(values, float), n)
    return columns


def test_a_summary_of_known_columns():
    # good: +2, inverted: −1, diffuse: 0 on average; random pruning costs 3 everywhere
    columns = table(600, [0, 1, 2, 0, 1, 2], [0, 1], [50] * 6, [52, 49, 55, 52, 49, 45], [47] * 6)
    rows = {row["group"]: row for row in summarise(columns)}
    assert rows["good"]["images"] == 200
    assert rows["good"]["share"] == pytest.approx(100 / 3)
    assert rows["good"]["pruned_confidence"] == [2.0, 2.0, 2.0]
    assert rows["inverted"]["beyond_correct"] == [2.0, 2.0, 2.0]
    mean, low, high = rows["diffuse"]["pruned_true_class"]
    assert mean == 0
    assert -1.0 < low < -0.4 < 0.4 < high < 1.0  # 5 · 1.96 / √200 = 0.69
    assert rows["all"]["random_confidence"] == [-3.0, -3.0, -3.0]
    assert rows["placebo good"]["pruned_confidence"] == [-3.0, -3.0, -3.0]
    line = verdict(list(rows.values()), "confidence")
    assert line == "confidence: good: gain, inverted: loss, diffuse: undecided: the claim holds"


@pytest.mark.parametrize(("pruned", "random", "expected"), [
    ([52, 52, 49], [47], "good: gain, inverted: gain, diffuse: loss: the claim does not hold"),
    ([49, 49, 49], [47], "good: loss, inverted: loss, diffuse: loss: the claim does not hold"),
    ([52, 49, 49], [51], "the claim holds, but +1.00 of the +2.00 points of the good group are the placebo's, too"),
])  # fmt: skip
def test_the_verdict_is_computed(pruned, random, expected):
    rows = summarise(table(300, [0, 1, 2], [0, 1], [50], pruned, random))
    assert expected in verdict(rows, "correct")


def test_groups_without_images():
    rows = summarise(table(50, [1], [0], [50], [51], [49]))
    assert rows[0] == {"group": "good", "images": 0, "share": 0.0}
    assert "good: no image" in verdict(rows, "correct")
    assert "does not hold" in verdict(rows, "correct")


def test_the_interval_covers_the_mean():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        values = rng.exponential(1.0, 80)
        mean, low, high = interval(values, 400, rng)
        assert mean == pytest.approx(values.mean())
        covered += low <= 1.0 <= high
    assert 175 <= covered <= 199  # of 190
