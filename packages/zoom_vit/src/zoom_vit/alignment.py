"""Is the visual intent aligned, and does pruning help if it is? Measured on every image instead of three.

An image's intent is *diffuse* if the entropy of its importance map is above that of independent uniform noise.
Otherwise it is *good* if the k most important patches alone give the true class more probability than the k least
important ones alone, and *inverted* if not. "Alone" is judged by pixels (the others are replaced by the image's mean
color, and the dense model is run) or by tokens (the others are pruned). The map is taken after the last block, as in
the study's pictures, or at the pruning layer.

There are two controls. *random*: random pruning of the same images. *placebo*: random maps, used for grouping and for
pruning. Grouping images by how well they survive pruning is itself a selection. The gain of the placebo's good group is
an upper bound on this selection bias, since its grouping and its pruning use the same map.

Shapes: B images, N patches, n images in total, k = max(1, ⌊keep · N⌋).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vit_core.ledger.statistics import holm
from zoom_vit.importance import Random, as_map, see
from zoom_vit.model import ZoomViT

GROUPS = ("good", "inverted", "diffuse")
JUDGES = ("pixels", "tokens")
LAYERS = ("last", "pruned")
MEASURES = ("correct", "confidence", "true_class")  # per prediction; see `_prediction`
LABELS = {"correct": "accuracy, %", "confidence": "confidence, %", "true_class": "true class's probability, %"}
FEW = 30  # groups with fewer images are not tested
LEVEL = 0.05  # significance level, after Holm's correction for the tested groups
Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Judgment:
    """How images are judged and pruned."""

    importance: str
    keep_ratio: float  # at most 0.5, so that top and bottom patches do not overlap
    prune_layer: int
    judged_by: str = "pixels"
    judged_at: str = "last"
    seed: int = 0  # of the random control

    def __post_init__(self) -> None:
        if not 0 < self.keep_ratio <= 0.5:
            raise ValueError(
                f"keep_ratio must lie in (0, 0.5], so that top and bottom patches do not overlap; got {self.keep_ratio}"
            )
        if self.judged_by not in JUDGES or self.judged_at not in LAYERS:
            raise ValueError(
                f"judged_by must be one of {', '.join(JUDGES)} and judged_at one of {', '.join(LAYERS)}; "
                f"got {self.judged_by!r} and {self.judged_at!r}"
            )


def normalized_entropy(maps: Tensor) -> Tensor:
    """Entropy (B,) of maps (B, H, W) minus their minimum, in [0, 1]: 1 for a constant map, 0 for a single patch.

    The minimum is subtracted since norms are far from zero everywhere; otherwise all their maps would be near 1.
    """
    values = maps.flatten(1).double()
    values = values - values.amin(1, keepdim=True)
    total = values.sum(1, keepdim=True)
    entropy = torch.special.entr(values / total.clamp_min(1e-300)).sum(1) / math.log(values.shape[1])
    return torch.where(total[:, 0] > 0, entropy, 1.0)


def noise_entropy(patches: int) -> float:
    """Expected entropy of independent uniform values: 1 − (ln 2 − 1/2) / ln N, up to terms of order 1/N."""
    return 1 - (math.log(2) - 0.5) / math.log(patches)


@torch.no_grad()
def judge(model: ZoomViT, images: Tensor, targets: Tensor, by: Judgment) -> dict[str, Tensor]:
    """Measurements of each image as columns (B,); the model must be in evaluation mode.

    `entropy` of its map; `aligned`: the top patches give the true class more probability than the bottom ones; `lucky`:
    the same for the random map; `overlap`: percentage of the map's top k patches that pruning keeps. Predictions:
    `dense_…`, `pruned_…` and `random_…` for each of `MEASURES`; `…_class` is the predicted class.
    """
    seen = see(model, images)
    judged = seen if by.judged_at == "last" else seen._replace(states=seen.states[: by.prune_layer + 1])
    maps, noise = as_map(judged, by.importance), as_map(seen, Random(by.seed))
    ranks, noise_ranks = ranked(maps, noise), ranked(noise, noise)
    pruned = model.forward_pruned(images, by.keep_ratio, by.prune_layer, by.importance)
    random = model.forward_pruned(images, by.keep_ratio, by.prune_layer, noise)
    top = ranks.argsort(1, descending=True)[:, : pruned.num_kept]
    shared = (top[:, :, None] == pruned.kept[:, None, :]).any(2).float().mean(1)
    return {
        "entropy": normalized_entropy(maps),
        "aligned": _kept(model, images, targets, ranks, by) > _kept(model, images, targets, -ranks, by),
        "lucky": _kept(model, images, targets, noise_ranks, by) > _kept(model, images, targets, -noise_ranks, by),
        "overlap": 100 * shared,
        **_prediction("dense", model.forward_head(model.norm(seen.tokens)), targets),
        **_prediction("pruned", pruned.logits, targets),
        **_prediction("random", random.logits, targets),
    }


def ranked(maps: Tensor, noise: Tensor) -> Tensor:
    """Rank of each position (B, N), the largest value ranks highest; `noise` breaks ties, so no two ranks are equal."""
    shuffled = noise.flatten(1).argsort(1)
    order = shuffled.gather(1, maps.flatten(1).gather(1, shuffled).argsort(dim=1, stable=True))
    ranks = torch.arange(order.shape[1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, ranks).float()


def _kept(model: ZoomViT, images: Tensor, targets: Tensor, ranks: Tensor, by: Judgment) -> Tensor:
    """Probability (B,) of the true class when only the k patches with the highest ranks are kept."""
    if by.judged_by == "tokens":
        logits = model.forward_pruned(images, by.keep_ratio, by.prune_layer, ranks).logits
    else:
        k = max(1, int(by.keep_ratio * ranks.shape[1]))
        shown = torch.zeros_like(ranks).scatter_(1, ranks.topk(k, dim=1).indices, 1.0)
        grid = model.patch_embed.dynamic_feat_size((images.shape[2], images.shape[3]))
        mask = F.interpolate(shown.view(-1, 1, *grid), images.shape[2:], mode="nearest")
        logits = model(torch.lerp(images.mean((2, 3), keepdim=True), images, mask))
    return logits.softmax(1).gather(1, targets[:, None])[:, 0]


def _prediction(name: str, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """In percent: correct or not, probability of the predicted class, and probability of the true class."""
    p = logits.softmax(1)
    best = p.max(1)
    return {
        f"{name}_class": best.indices,
        f"{name}_correct": 100.0 * (best.indices == targets),
        f"{name}_confidence": 100 * best.values,
        f"{name}_true_class": 100 * p.gather(1, targets[:, None])[:, 0],
    }


def groups(columns: Columns, threshold: float) -> np.ndarray:
    """Indices (n,) into `GROUPS`; diffuse if the entropy is above the threshold."""
    return np.where(columns["entropy"] > threshold, 2, np.where(columns["aligned"], 0, 1))


def summarize(columns: Columns, threshold: float, resamples: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """One row per group, one for all images, and two for the placebo, with the changes caused by pruning.

    columns: of `judge`, over n images. A change is a mean difference from the dense model, in percentage points, with
    the 2.5th and 97.5th percentile of its bootstrap distribution: `pruned_correct` = [mean, low, high]. `random_…` is
    the change under random pruning, `beyond_…` the difference between the two, `contrast_…` the good group's change
    minus this group's; `p_…` is the two-sided bootstrap p-value of the change, uncorrected. The placebo's importance is
    random; its groups exclude the diffuse images, too.
    """
    rng = np.random.default_rng(seed)
    group = groups(columns, threshold)
    subsets = {name: group == i for i, name in enumerate(GROUPS)} | {"all": np.ones(len(group), bool)}
    clear = group != 2
    subsets |= {"placebo good": clear & columns["lucky"], "placebo inverted": clear & ~columns["lucky"]}
    rows: list[dict[str, Any]] = []
    good: dict[str, np.ndarray] = {}  # bootstrap means of the good group
    for name, chosen in subsets.items():
        row: dict[str, Any] = {"group": name, "images": int(chosen.sum()), "share": 100 * float(chosen.mean())}
        for measure in MEASURES if row["images"] else ():
            dense, pruned, random = (columns[f"{k}_{measure}"][chosen] for k in ("dense", "pruned", "random"))
            placebo = name.startswith("placebo")
            change = (random if placebo else pruned) - dense
            means = resampled_means(change, resamples, rng)
            row[f"dense_{measure}"] = float(dense.mean())
            row[f"pruned_{measure}"], row[f"p_{measure}"] = _interval(change.mean(), means), p_value(means)
            if not placebo:
                row[f"random_{measure}"] = interval(random - dense, resamples, rng)
                row[f"beyond_{measure}"] = interval(pruned - random, resamples, rng)
            if name == "good":
                good[measure] = means
            elif name != "all" and measure in good:
                mean = rows[0][f"pruned_{measure}"][0] - change.mean()
                row[f"contrast_{measure}"] = _interval(mean, good[measure] - means)
        rows.append(row)
    return rows


def interval(values: np.ndarray, resamples: int, rng: np.random.Generator) -> list[float]:
    """[mean, low, high]: the mean and the 95% percentile interval of its bootstrap distribution."""
    return _interval(values.mean(), resampled_means(values, resamples, rng))


def p_value(means: np.ndarray) -> float:
    """Two-sided bootstrap p-value for a mean of zero; at least 2 / number of resamples."""
    beyond = min(float((means <= 0).mean()), float((means >= 0).mean()))
    return min(1.0, 2 * max(beyond, 1 / len(means)))


def resampled_means(values: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    n = len(values)
    step = max(1, 2_000_000 // n)
    sizes = [min(step, resamples - i) for i in range(0, resamples, step)]
    return np.concatenate([values[rng.integers(n, size=(size, n))].mean(1) for size in sizes])


def _interval(mean: float, means: np.ndarray) -> list[float]:
    low, high = np.percentile(means, [2.5, 97.5])
    return [float(mean), float(low), float(high)]


def verdict(rows: Sequence[Mapping[str, Any]], measure: str) -> str:
    """One-line verdict on "pruning is beneficial only when visual intent is correctly aligned".

    holds: the good group gains, more than under random pruning, than each other group and than the placebo's good
    group, and no other group gains. fails: the good group loses, or another group gains. Otherwise it is inconclusive.
    A group gains or loses if p, with Holm's correction for the groups, is below 0.05; groups with fewer than `FEW`
    images are not tested.
    """
    by_name = {row["group"]: row for row in rows}
    signs = dict.fromkeys(GROUPS, "too few images")
    large = [name for name in GROUPS if by_name[name]["images"] >= FEW]
    for name, p in zip(large, holm([by_name[name][f"p_{measure}"] for name in large]), strict=True):
        gains = by_name[name][f"pruned_{measure}"][0] > 0
        signs[name] = "undecided" if p >= LEVEL else "gain" if gains else "loss"
    others = [name for name in GROUPS[1:] if signs[name] != "too few images"]
    missing = []
    if signs["good"] == "gain":
        if _sign(by_name["good"][f"beyond_{measure}"]) != "gain":
            missing.append("random pruning")
        for name in [*others, "placebo good"]:
            if by_name[name]["images"] and _sign(by_name[name][f"contrast_{measure}"]) != "gain":
                missing.append(f"the {name} group" if name in others else "the placebo's good group")
    if signs["good"] == "loss" or any(signs[name] == "gain" for name in others):
        result = "the claim fails"
    elif signs["good"] == "gain" and others and not missing:
        result = "the claim holds"
    else:
        beside = f" (no larger gain than {', '.join(missing)})" if missing else ""
        result = f"the result is inconclusive{beside}"
    found = ", ".join(f"{name}: {sign}" for name, sign in signs.items())
    return f"{LABELS[measure].removesuffix(', %')}: {found}: {result}"


def _sign(change: Sequence[float]) -> str:
    return "gain" if change[1] > 0 else "loss" if change[2] < 0 else "undecided"
