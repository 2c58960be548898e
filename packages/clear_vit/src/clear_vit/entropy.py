"""Shannon entropy of patches, H = −Σ p log p, divided by its maximum: 0 to 1.

The README says "patch-dependent Shannon entropy H(x) = −Σ p(x) log p(x)" but not what p is. Two readings:
`token_entropy`, of the block's normalized token, and `pixel_entropy`, of the patch's gray levels.
"""

import math

import torch
from torch import Tensor


def token_entropy(tokens: Tensor) -> Tensor:
    """p = softmax over the channels: (…, D) -> (…) in [0, 1]. For a LayerNorm output about 1 − 0.5/log D at first."""
    p = tokens.to(torch.promote_types(tokens.dtype, torch.float32)).softmax(-1)
    return torch.special.entr(p).sum(-1) / math.log(tokens.shape[-1])


def pixel_entropy(images: Tensor, patch_size: tuple[int, int], bins: int = 32) -> Tensor:
    """p = histogram of the patch's gray levels: images (B, C, H, W) -> (B, N) in [0, 1], patches in raster order.

    A gray level is the mean over the channels; the bins divide the range of gray levels in the image. Normalizing all
    channels with the same mean and standard deviation therefore changes nothing; with different ones per channel, the
    channels get slightly different weights. The maximum entropy is log(bins), or log(pixels) if there are fewer pixels.
    """
    with torch.no_grad():
        gray = images.float().mean(1)  # (B, H, W)
        low, high = gray.amin((1, 2), keepdim=True), gray.amax((1, 2), keepdim=True)
        level = ((gray - low) / (high - low).clamp_min(1e-12) * bins).long().clamp(0, bins - 1)
        height, width = patch_size
        rows, columns = gray.shape[1] // height, gray.shape[2] // width
        patches = (
            level.view(-1, rows, height, columns, width).transpose(2, 3).flatten(3).flatten(1, 2)
        )  # (B, N, pixels)
        counts = torch.zeros(*patches.shape[:2], bins, device=images.device)
        p = counts.scatter_add_(2, patches, torch.ones_like(patches, dtype=counts.dtype)) / patches.shape[2]
        entropy = torch.special.entr(p).sum(-1) / math.log(max(2, min(bins, patches.shape[2])))
        return entropy.clamp(0, 1) + 0.0  # remove rounding errors and −0


def with_class_token(entropy: Tensor) -> Tensor:
    """(B, N) of the patches -> (B, 1 + N): the class token, which has no patch, gets their mean."""
    return torch.cat([entropy.mean(1, keepdim=True), entropy], 1)
