"""Is the visual intent aligned, and does pruning help where it is? Measured on every image, not on three of them.

An image's intent is *diffuse* if its importance map is no more concentrated than noise. Otherwise it is *good* if the
most important patches alone leave more of the true class's probability than the least important ones alone, and
*inverted* if they leave less. "Alone" is judged by pixels (the others become the image's mean colour, and the dense
model looks at it) or by tokens (the others are pruned). Tokens are what the study prunes, but then the outcome that is
to be compared chooses the groups: where pruning by chance went well, the intent is called good.

Two controls say what is left of a difference. *random*: the same images under random pruning. *placebo*: random maps
judged like the real ones, good if their top patches happened to leave more. What the placebo gains in its good group is
selection, not alignment.

Shapes: B images, N patches, n images in all.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoom_vit.importance import IMPORTANCES, Random, importance_map
from zoom_vit.model import ZoomViT
from zoom_vit.zoom import zoom_mask

GROUPS = ("good", "inverted", "diffuse")
JUDGES = ("pixels", "tokens")
MEASURES = ("correct", "confidence", "true_class")  # of one prediction; see `_prediction`
LABELS = {"correct": "accuracy, %", "confidence": "confidence, %", "true_class": "true class's probability, %"}


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """How images are judged and pruned."""

    importance: str
    keep_ratio: float
    prune_layer: int
    judged_by: str = "pixels"
    entropy_threshold: float | None = None  # None: that of noise
    seed: int = 0  # of the random control


def normalised_entropy(maps: Tensor) -> Tensor:
    """How spread a map (B, H, W) over its minimum is, (B,): 1 where it is constant, 0 where it is a single patch."""
    values = maps.flatten(1).double()
    values = values - values.amin(1, keepdim=True)
    total = values.sum(1, keepdim=True)
    entropy = torch.special.entr(values / total.clamp_min(1e-300)).sum(1) / math.log(values.shape[1])
    return torch.where(total[:, 0] > 0, entropy, 1.0)


def noise_entropy(patches: int) -> float:
    """What independent uniform values are expected to have: 1 − (ln 2 − 1/2) / ln N, but for terms of order 1/N."""
    return 1 - (math.log(2) - 0.5) / math.log(patches)


def judge(model: ZoomViT, images: Tensor, targets: Tensor, by: Judgement) -> dict[str, Tensor]:
    """Each image's columns (B,): `entropy` and `group` of its map, and what the model says of it.

    `dense_…`, `pruned_…` and `random_…` for each of `MEASURES`, with `…_class` the predicted class; `group` is a number
    into `GROUPS`; `placebo` 0 or 1, the same for the random map, of which none is diffuse.
    """
    maps = importance_map(model, images, by.importance)
    noise = importance_map(model, images, Random(by.seed))
    threshold = noise_entropy(maps[0].numel()) if by.entropy_threshold is None else by.entropy_threshold
    with torch.no_grad():
        entropy = normalised_entropy(maps)
        aligned = _kept(model, images, targets, maps, by) > _kept(model, images, targets, -maps, by)
        lucky = _kept(model, images, targets, noise, by) > _kept(model, images, targets, -noise, by)
        columns = {
            "entropy": entropy,
            "group": torch.where(entropy > threshold, 2, torch.where(aligned, 0, 1)),
            "placebo": torch.where(lucky, 0, 1),
        }
        columns |= _prediction("dense", model(images), targets)
        for name, importance in (("pruned", IMPORTANCES[by.importance]), ("random", noise)):
            out = model.forward_pruned(images, by.keep_ratio, by.prune_layer, importance)
            columns |= _prediction(name, out.logits, targets)
    return columns


def _kept(model: ZoomViT, images: Tensor, targets: Tensor, maps: Tensor, by: Judgement) -> Tensor:
    """The true class's probability (B,) when only the patches are left that are at the top of the maps."""
    if by.judged_by == "tokens":
        logits = model.forward_pruned(images, by.keep_ratio, by.prune_layer, maps).logits
    else:
        mask = zoom_mask(maps, by.keep_ratio, (images.shape[2], images.shape[3]))
        logits = model(torch.lerp(images.mean((2, 3), keepdim=True), images, mask))
    return logits.softmax(1).gather(1, targets[:, None])[:, 0]


def _prediction(name: str, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """In percent: whether the class is right, the probability of the predicted class, and that of the true class."""
    p = logits.softmax(1)
    best = p.max(1)
    return {
        f"{name}_class": best.indices, f"{name}_correct": 100.0 * (best.indices == targets),
        f"{name}_confidence": 100 * best.values, f"{name}_true_class": 100 * p.gather(1, targets[:, None])[:, 0],
    }  # fmt: skip


def summarise(columns: Mapping[str, np.ndarray], resamples: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """A row a group, one for all images, and two of the placebo, with the changes that pruning makes.

    columns: of `judge`, over n images. A change is a mean difference from the dense model, in percentage points, with
    the 2.5th and 97.5th percentile of its bootstrap distribution: `pruned_correct` = [mean, low, high]. `random_…` is
    the change under random pruning, `beyond_…` the difference of the two. For the placebo, whose importance is random,
    there is only the first.
    """
    rng = np.random.default_rng(seed)
    n = len(columns["group"])
    subsets = {name: columns["group"] == i for i, name in enumerate(GROUPS)} | {"all": np.ones(n, bool)}
    subsets |= {f"placebo {name}": columns["placebo"] == i for i, name in enumerate(GROUPS[:2])}
    rows = []
    for name, chosen in subsets.items():
        row: dict[str, Any] = {"group": name, "images": int(chosen.sum()), "share": 100 * float(chosen.mean())}
        for measure in MEASURES if row["images"] else ():
            dense, pruned, random = (columns[f"{k}_{measure}"][chosen] for k in ("dense", "pruned", "random"))
            row[f"dense_{measure}"] = float(dense.mean())
            if name.startswith("placebo"):
                row[f"pruned_{measure}"] = interval(random - dense, resamples, rng)
                continue
            row[f"pruned_{measure}"] = interval(pruned - dense, resamples, rng)
            row[f"random_{measure}"] = interval(random - dense, resamples, rng)
            row[f"beyond_{measure}"] = interval(pruned - random, resamples, rng)
        rows.append(row)
    return rows


def interval(values: np.ndarray, resamples: int, rng: np.random.Generator) -> list[float]:
    """[mean, low, high]: the mean and the 95% percentile interval of its bootstrap distribution."""
    n = len(values)
    step = max(1, 2_000_000 // n)
    means = [
        values[rng.integers(n, size=(min(step, resamples - i), n))].mean(1) for i in range(0, resamples, step)
    ]  # fmt: skip
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return [float(values.mean()), float(low), float(high)]


def verdict(rows: Sequence[Mapping[str, Any]], measure: str) -> str:
    """What the intervals say of "pruning is beneficial only when visual intent is correctly aligned", in a line.

    A change is a gain or a loss where its interval leaves out zero.
    """
    by_name = {row["group"]: row for row in rows}
    signs = {}
    for name in GROUPS:
        change = by_name[name].get(f"pruned_{measure}")
        signs[name] = "no image" if change is None else _sign(change)
    holds = signs["good"] == "gain" and "gain" not in (signs["inverted"], signs["diffuse"])
    found = ", ".join(f"{name}: {sign}" for name, sign in signs.items())
    line = f"{LABELS[measure].removesuffix(', %')}: {found}: the claim {'holds' if holds else 'does not hold'}"
    placebo = by_name["placebo good"].get(f"pruned_{measure}")
    if holds and placebo is not None and _sign(placebo) == "gain":
        good = by_name["good"][f"pruned_{measure}"]
        line += f", but {placebo[0]:+.2f} of the {good[0]:+.2f} points of the good group are the placebo's, too"
    return line


def _sign(change: Sequence[float]) -> str:
    return "gain" if change[1] > 0 else "loss" if change[2] < 0 else "undecided"
