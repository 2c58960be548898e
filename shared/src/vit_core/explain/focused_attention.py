"""Focused Attention Percentage (FAP): overlap of the highest attention with the highest Grad-CAM values.

For each image, A is the top 15% of positions of the attention map, G the top 15% of the Grad-CAM map of the true class,
and FAP = |A ∩ G| / |G| in percent. k = round(share · n) of n positions are selected, at least one.

Ties: if several positions share the k-th largest value, each belongs to the set fractionally, so that the fractions add
up to k. This is the expectation over all ways to break the tie, without randomness or dependence on the position. So a
constant map scores exactly the chance level k / n on every image.

Shapes: B images, maps (B, H, W), n = H · W positions.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_core.data import BatchLoader
from vit_core.explain.class_token import class_token_attention
from vit_core.explain.grad_cam import grad_cam
from vit_core.explain.grids import Grid
from vit_core.training.distributed import all_sum

AttentionMaps = Callable[[nn.Module, Tensor], Tensor]
SHARE = 0.15


def focused_attention(
    attention: Tensor, cam: Tensor, share: float = SHARE, *, threshold: float | None = None
) -> Tensor:
    """FAP of each image, (B,) in percent; NaN if the CAM is zero everywhere, because G is undefined then.

    Args:
        attention: (B, H', W'), resampled to the CAM's grid if it differs (bilinear, with antialiasing).
        cam: (B, H, W), non-negative.
        threshold: select positive values of at least this fraction of the map's maximum, instead of a fixed share.
    Raises: ValueError for invalid shapes, NaN or infinity in a map, and share or threshold outside (0, 1].
    """
    _check(attention, cam, share, threshold)
    A = _selected(resample(attention, cam.shape[1:]), share, threshold)
    G = _selected(cam, share, threshold)
    fap = 100.0 * (A * G).sum(1) / G.sum(1).clamp_min(1e-12)
    return fap.masked_fill(~cam.flatten(1).any(1), torch.nan)


def top_places(maps: Tensor, share: float = SHARE) -> Tensor:
    """Membership of each position in the top `share` of its map: (B, H, W) -> (B, H, W), 0 or 1, fractional if tied."""
    return _selected(maps, share, None).view_as(maps)


def chance_level(places: int, share: float = SHARE) -> float:
    """Expected FAP of a random set of k positions, in percent: 100 k / n, independent of G."""
    return 100.0 * _count(places, share) / places


def random_control(
    cam: Tensor,
    share: float = SHARE,
    generator: torch.Generator | None = None,
    *,
    threshold: float | None = None,
    attention: Tensor | None = None,
) -> Tensor:
    """FAP (B,) of random attention maps: the values of `attention` shuffled within each image, or uniform noise.

    Needs a CPU generator. With a fixed share both are equivalent; with a threshold, shuffled maps select the same
    number of positions as the original maps.
    """
    rank = torch.rand(cam.shape, generator=generator).to(cam.device)
    if attention is not None:
        values = resample(attention, cam.shape[1:]).flatten(1)
        rank = values.gather(1, rank.flatten(1).argsort(1)).view_as(cam)
    return focused_attention(rank, cam, share, threshold=threshold)


@dataclass(frozen=True, kw_only=True)
class FocusSummary:
    fap: float  # percent, mean over the images whose CAM is not empty; NaN if there are none
    standard_error: float  # of that mean, in percentage points
    chance: float  # percent, expected FAP of a random map
    random: float  # percent, measured FAP of random maps on the same CAMs
    num_images: int  # all images, including those with an empty CAM
    empty_cams: int  # images whose Grad-CAM is zero everywhere; excluded from all means
    share: float  # fraction of positions selected, unless threshold is set
    threshold: float | None

    def __str__(self) -> str:
        empty = f"; {self.empty_cams} with an empty Grad-CAM are excluded" if self.empty_cams else ""
        return (
            f"FAP {self.fap:.1f}% ± {self.standard_error:.1f} (chance {self.chance:.1f}%, random maps "
            f"{self.random:.1f}%, {self.num_images} images{empty})"
        )


def measure_focus(
    model: nn.Module,
    loader: BatchLoader | Iterable[tuple[Tensor, Tensor]],
    attention_maps: AttentionMaps | None = None,
    *,
    layer: nn.Module | str | None = None,
    grid: Grid | None = None,
    forward: Callable[[Tensor], Tensor] | None = None,
    share: float = SHARE,
    threshold: float | None = None,
    seed: int = 0,
) -> FocusSummary:
    """FAP over the batches (images, true classes) of a loader; a BatchLoader is evaluated over all ranks.

    Args:
        attention_maps: (model, images) -> (B, H, W). Default: `class_token_attention`.
        layer, grid, forward: as for `grad_cam`.
        seed: random seed of the random control.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    # number of images, number with a non-empty CAM, and over the latter: Σ FAP, Σ FAP², Σ random, Σ chance
    sums = torch.zeros(6, dtype=torch.float64, device=device)
    for images, targets in loader.epoch() if isinstance(loader, BatchLoader) else loader:
        images, targets = images.to(device), targets.to(device)
        attention = (attention_maps or class_token_attention)(model, images)
        cam = grad_cam(model, images, targets, layer, grid=grid, forward=forward)
        fap = focused_attention(attention, cam, share, threshold=threshold)
        control = random_control(cam, share, generator, threshold=threshold, attention=attention)
        selected = _selected(resample(attention, cam.shape[1:]), share, threshold)
        terms = torch.stack([torch.ones_like(fap), fap, fap**2, control, 100.0 * selected.mean(1)])
        counted = ~fap.isnan()
        sums[0] += len(images)
        sums[1:] += terms[:, counted].double().sum(1)
    seen, counted, total, squares, random, chance = all_sum(sums).tolist()
    mean = total / counted if counted else math.nan
    variance = max(0.0, squares - counted * mean**2) / (counted - 1) if counted > 1 else math.nan
    return FocusSummary(
        fap=mean,
        standard_error=math.sqrt(variance / counted) if counted else math.nan,
        chance=chance / counted if counted else math.nan,
        random=random / counted if counted else math.nan,
        num_images=int(seen),
        empty_cams=int(seen - counted),
        share=share,
        threshold=threshold,
    )


def resample(maps: Tensor, grid: Iterable[int]) -> Tensor:
    """(B, H', W') -> (B, H, W): bilinear interpolation with antialiasing."""
    size = tuple(grid)
    if maps.shape[1:] == size:
        return maps
    return F.interpolate(maps[:, None].float(), size, mode="bilinear", align_corners=False, antialias=True)[:, 0]


def _count(places: int, share: float) -> int:
    return max(1, round(share * places))


def _selected(maps: Tensor, share: float, threshold: float | None) -> Tensor:
    """Membership of each position in the selected set, (B, n) in [0, 1]."""
    values = maps.flatten(1).float()
    if threshold is not None:
        return ((values >= threshold * values.amax(1, keepdim=True)) & (values > 0)).float()
    k = _count(values.shape[1], share)
    kth = values.topk(k).values[:, -1:]
    above, tied = (values > kth).float(), (values == kth).float()
    return above + tied * (k - above.sum(1, keepdim=True)) / tied.sum(1, keepdim=True)


def _check(attention: Tensor, cam: Tensor, share: float, threshold: float | None) -> None:
    if attention.ndim != 3 or cam.ndim != 3 or len(attention) != len(cam):
        raise ValueError(f"maps must be (B, H, W) with the same B, got {tuple(attention.shape)} and {tuple(cam.shape)}")
    if not 0 < share <= 1 or not (threshold is None or 0 < threshold <= 1):
        raise ValueError(f"share and threshold must lie in (0, 1], got {share} and {threshold}")
    if not (attention.isfinite().all() and cam.isfinite().all()):
        raise ValueError("the maps contain NaN or infinity")
