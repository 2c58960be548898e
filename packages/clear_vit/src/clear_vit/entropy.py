"""Shannon entropy of patches, H = −Σ p log p, as a share of the largest there can be: 0 to 1.

The README says "patch-dependent Shannon entropy H(x) = −Σ p(x) log p(x)" and not what p is. Two readings:
`token_entropy`, of the block's normalised token, and `pixel_entropy`, of the patch's grey levels.
"""

import math

import torch
from torch import Tensor


def token_entropy(tokens: Tensor) -> Tensor:
    """p = softmax over the channels: (…, D) -> (…) in [0, 1]. Of a LayerNorm's output it starts near 1 − 0.5/log D."""
    p = tokens.to(torch.promote_types(tokens.dtype, torch.float32)).softmax(-1)
    return torch.special.entr(p).sum(-1) / math.log(tokens.shape[-1])


def pixel_entropy(images: Tensor, patch_size: tuple[int, int], bins: int = 32) -> Tensor:
    """p = histogram of the patch's grey levels: images (B, C, H, W) -> (B, N) in [0, 1], patches in raster order.

    A grey level is the mean over the channels; the bins divide the range that it has in the image. So one mean and one
    standard deviation that normalise all channels change nothing; different ones weigh the channels a little
    differently. The largest entropy is that of as many levels as there are bins, or pixels if these are fewer.
    """
    with torch.no_grad():
        grey = images.float().mean(1)  # (B, H, W)
        low, high = grey.amin((1, 2), keepdim=True), grey.amax((1, 2), keepdim=True)
        level = ((grey - low) / (high - low).clamp_min(1e-12) * bins).long().clamp(0, bins - 1)
        height, width = patch_size
        rows, columns = grey.shape[1] // height, grey.shape[2] // width
        patches = (
            level.view(-1, rows, height, columns, width).transpose(2, 3).flatten(3).flatten(1, 2)
        )  # (B, N, pixels)
        counts = torch.zeros(*patches.shape[:2], bins, device=images.device)
        p = counts.scatter_add_(2, patches, torch.ones_like(patches, dtype=counts.dtype)) / patches.shape[2]
        entropy = torch.special.entr(p).sum(-1) / math.log(max(2, min(bins, patches.shape[2])))
        return entropy.clamp(0, 1) + 0.0  # rounding, and no −0


def with_class_token(entropy: Tensor) -> Tensor:
    """(B, N) of the patches -> (B, 1 + N): the class token, which has no patch, takes their mean."""
    return torch.cat([entropy.mean(1, keepdim=True), entropy], 1)
