"""Deletion and insertion curves (Petsiuk et al., RISE, BMVC 2018, https://arxiv.org/abs/1806.07421) of saliency maps.

Deletion removes the patches of an image, most important first; the class probability should drop early, so a small
area under the curve is good. Insertion starts from an image without content and adds the patches back; a large area is
good. A random order of the patches is the control that both must beat.

Shapes: B images of h × w pixels, maps (B, H, W), n = H · W patches, S steps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_core.explain.evaluation_mode import evaluation_mode

BASELINES = ("mean", "blur")


@dataclass(frozen=True)
class Curves:
    """Probability of the class (B, S + 1) after each step, for both directions; areas (B,) in [0, 1]."""

    shares: Tensor  # (S + 1,) fraction of patches removed or added back, 0 to 1
    deletion: Tensor
    insertion: Tensor

    @property
    def deletion_area(self) -> Tensor:
        return torch.trapezoid(self.deletion, self.shares, dim=1)

    @property
    def insertion_area(self) -> Tensor:
        return torch.trapezoid(self.insertion, self.shares, dim=1)


def deletion_insertion(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    steps: int = 16,
    baseline: str | Tensor = "mean",
    forward: Callable[[Tensor], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Curves:
    """Curves of each image, with patches ordered by its map.

    Args:
        images: (B, C, h, w), normalized; h and w are multiples of the map's.
        maps: (B, H, W); the largest value is the most important.
        targets: classes (B,).
        steps: steps per curve, from 1 to n; each changes about the same number of patches.
        baseline: replacement of a patch: the image's "mean" color, its "blur", or images of the same shape.
        forward: images -> logits, if `model(images)` does not return logits.
        generator: a CPU generator for the order of positions with equal values, such as those where Grad-CAM is zero.
            Default: raster order, which favors the top left.
    Raises: ValueError for incompatible shapes, steps out of range or an unknown baseline.
    """
    B, _, h, w = images.shape
    if maps.ndim != 3 or len(maps) != B or h % maps.shape[1] or w % maps.shape[2]:
        raise ValueError(f"maps of shape {tuple(maps.shape)} do not tile images of shape {tuple(images.shape)}")
    n = maps[0].numel()
    if not 1 <= steps <= n:
        raise ValueError(f"steps must lie in [1, {n}], the number of patches; got {steps}")
    empty = _baseline(images, baseline)
    shuffled = torch.arange(n).expand(B, n) if generator is None else torch.rand(B, n, generator=generator).argsort(1)
    shuffled = shuffled.to(maps.device)
    order = shuffled.gather(1, maps.flatten(1).gather(1, shuffled).argsort(stable=True, dim=1, descending=True))
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(n, device=maps.device).expand(B, n))
    rank = rank.view(B, 1, *maps.shape[1:])
    curves: tuple[list[Tensor], list[Tensor]] = [], []
    counts = [round(n * s / steps) for s in range(steps + 1)]
    with torch.no_grad(), evaluation_mode(model):
        for count in counts:
            chosen = (rank < count).to(images.dtype)
            chosen = F.interpolate(chosen, (h, w), mode="nearest")  # sharp patch borders
            for curve, shown in zip(curves, (1 - chosen, chosen), strict=True):
                logits = (forward or model)(torch.lerp(empty, images, shown))
                curve.append(logits.float().softmax(1).gather(1, targets[:, None])[:, 0])
    shares = torch.tensor(counts, device=images.device) / n
    return Curves(shares, *(torch.stack(c, 1) for c in curves))


def _baseline(images: Tensor, baseline: str | Tensor) -> Tensor:
    if isinstance(baseline, Tensor):
        if baseline.shape != images.shape:
            raise ValueError(f"baseline must have the images' shape {tuple(images.shape)}, got {tuple(baseline.shape)}")
        return baseline
    if baseline == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images)
    if baseline == "blur":  # kernel of half the side: removes all shapes
        from torchvision.transforms.v2.functional import gaussian_blur

        side = min(images.shape[-2:])
        return gaussian_blur(images, [2 * (side // 4) + 1] * 2, [side / 8] * 2)
    raise ValueError(f"baseline must be one of {', '.join(BASELINES)}, or a tensor of images; got {baseline!r}")
