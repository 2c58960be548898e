"""Corruptions for measuring robustness: Gaussian noise, and an occluding rectangle in each image.

Random numbers depend only on (seed, batch index): with the same --batch-size, every model sees the same images.
Shapes: images (B, 3, S, S), normalized by mean and std.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from vit_core.data import BatchLoader

NOISE_SIGMA = 0.05  # for pixel values in [0, 1]
OCCLUDED_SHARES = (0.1, 0.2, 0.3)  # shares of the area

Disturbance = Callable[[Tensor, torch.Generator], Tensor]


def gaussian_noise(sigma: float, mean: Sequence[float], std: Sequence[float]) -> Disturbance:
    """Add noise to the pixel values and clamp them to [0, 1]."""
    m, s = (torch.tensor(v)[:, None, None] for v in (mean, std))

    def disturb(images: Tensor, generator: torch.Generator) -> Tensor:
        noise = sigma * torch.randn(images.shape, generator=generator).to(images.device)
        scale, shift = s.to(images.device), m.to(images.device)
        return ((images * scale + shift + noise).clamp(0, 1) - shift) / scale

    return disturb


def occlusion(share: float) -> Disturbance:
    """Fill a random rectangle with the mean color: `share` of the area, aspect ratio 1/2 … 2, inside the image."""

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
        return images.masked_fill(hidden.to(images.device), 0.0)  # 0 is the mean of a normalized image

    return disturb


def disturbances(mean: Sequence[float], std: Sequence[float]) -> dict[str, Disturbance]:
    """The corruptions that the paper mentions, by name."""
    named = {f"Gaussian noise, σ {NOISE_SIGMA:g}": gaussian_noise(NOISE_SIGMA, mean, std)}
    return named | {f"occlusion, {share:.0%} of the area": occlusion(share) for share in OCCLUDED_SHARES}


def disturbed(loader: BatchLoader, disturb: Disturbance, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of `loader`, corrupted."""
    for number, (images, targets) in enumerate(loader.epoch()):
        generator = torch.Generator().manual_seed(seed + 1_000_003 * number)
        yield disturb(images, generator), targets
