"""Accuracy on disturbed images: Gaussian noise, and a rectangle cut out of each image.

All is drawn from (seed, number of the batch): every model sees the same, given the same --batch-size.
Shapes: images (B, 3, S, S), normalised by mean and std.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from vit_core.data import BatchLoader

NOISE_SIGMA = 0.05  # of pixel values in [0, 1]
OCCLUDED_SHARES = (0.1, 0.2, 0.3)  # of the area

Disturbance = Callable[[Tensor, torch.Generator], Tensor]


def gaussian_noise(sigma: float, mean: Sequence[float], std: Sequence[float]) -> Disturbance:
    """Noise on the pixel values, which stay in [0, 1]."""
    m, s = (torch.tensor(v)[:, None, None] for v in (mean, std))

    def disturb(images: Tensor, generator: torch.Generator) -> Tensor:
        noise = sigma * torch.randn(images.shape, generator=generator).to(images.device)
        scale, shift = s.to(images.device), m.to(images.device)
        return ((images * scale + shift + noise).clamp(0, 1) - shift) / scale

    return disturb


def occlusion(share: float) -> Disturbance:
    """A rectangle of `share` of the area, aspect 1/2 … 2, anywhere inside the image, filled with the mean colour."""

    def disturb(images: Tensor, generator: torch.Generator) -> Tensor:
        B, _, H, W = images.shape
        aspect = 2 ** (2 * torch.rand(B, generator=generator) - 1)
        height = (share * H * W * aspect).sqrt().round().clamp(1, H).long()
        width = (share * H * W / height).round().clamp(1, W).long()
        top = (torch.rand(B, generator=generator) * (H - height + 1)).long()
        left = (torch.rand(B, generator=generator) * (W - width + 1)).long()
        rows, columns = torch.arange(H), torch.arange(W)
        in_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])  # (B, H)
        in_columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])  # (B, W)
        hidden = in_rows[:, None, :, None] & in_columns[:, None, None, :]
        return images.masked_fill(hidden.to(images.device), 0.0)  # 0 is the mean of a normalised image

    return disturb


def disturbances(mean: Sequence[float], std: Sequence[float]) -> dict[str, Disturbance]:
    """Those that the paper speaks of, by name."""
    named = {f"Gaussian noise, σ {NOISE_SIGMA:g}": gaussian_noise(NOISE_SIGMA, mean, std)}
    return named | {f"occlusion, {share:.0%} of the area": occlusion(share) for share in OCCLUDED_SHARES}


def disturbed(loader: BatchLoader, disturb: Disturbance, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of `loader`, disturbed."""
    for number, (images, targets) in enumerate(loader.epoch()):
        generator = torch.Generator().manual_seed(seed + 1_000_003 * number)
        yield disturb(images, generator), targets
