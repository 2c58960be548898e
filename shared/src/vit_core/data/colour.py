"""Colour operations with one strength for each image, and the colour jitter made of them.

Images are float32 (n, 3, H, W) in [0, 1]; strengths are (n,). Each operation is that of
`torchvision.transforms.functional` on one image.
"""

import torch
from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as torchvision and PIL


def grey(images: Tensor) -> Tensor:
    """Luminance, (n, 1, H, W)."""
    red, green, blue = images.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).unsqueeze(1)


def blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """factor · images + (1 − factor) · other, clamped to [0, 1]."""
    return torch.lerp(other.expand_as(images), images, factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Black at 0, unchanged at 1."""
    return (images * factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Grey at 0, unchanged at 1."""
    return blend(images, grey(images), factor)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """The mean luminance at 0, unchanged at 1."""
    # In two steps: the order of one long sum over all pixels depends on how many images there are.
    return blend(images, grey(images).mean(3, keepdim=True).mean(2, keepdim=True), factor)


def adjust_sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Smoothed by a 3×3 kernel at 0, unchanged at 1; the outermost pixels stay."""
    H, W = images.shape[2:]
    if H < 3 or W < 3:
        return images
    rows = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
    inner = images[:, :, 1:-1, 1:-1]
    smooth = images.clone()
    # The kernel is ones with 5 in the centre, over 13.
    smooth[:, :, 1:-1, 1:-1] = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner) / 13
    return blend(images, smooth, factor)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` of a full circle, in [−0.5, 0.5]."""
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # Where the image is grey the differences are zero too, and so is the hue.
    per_sixth = chroma.clamp(min=1e-12).reciprocal_()
    sixths = torch.where(
        value == red,
        (green - blue) * per_sixth,
        torch.where(value == green, (blue - red) * per_sixth + 2, (red - green) * per_sixth + 4),
    )
    sixths += 6 * shift.view(-1, 1, 1)
    # Channel n is V − C · clamp(min(k, 4 − k), 0, 1), k = (n + sixths) mod 6, for n = 5, 3, 1.
    k = sixths.unsqueeze(1) + images.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)
    k -= (k / 6).floor_().mul_(6)
    # min(k, 4 − k) = 2 − |k − 2|
    share = k.sub_(2).abs_().neg_().add_(2).clamp_(0, 1)
    return value.unsqueeze(1) - share.mul_(chroma.unsqueeze(1))


_JITTER = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def draw_jitter(count: int, strength: float, hue: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Factors (count, 4) and order (count, 4) of brightness, contrast, saturation, hue, as in ColorJitter."""
    spread = torch.rand(count, 4, generator=generator)
    order = torch.rand(count, 4, generator=generator).argsort(1)
    low = max(0.0, 1 - strength)
    factors = low + (1 + strength - low) * spread
    factors[:, 3] = hue * (2 * spread[:, 3] - 1)
    return factors, order


def jitter(images: Tensor, factors: Tensor, order: Tensor, strength: float, hue: float) -> Tensor:
    """Apply to each image its four operations in its own order; `factors` and `order` are on the CPU."""
    images = images.clone()
    for step in range(4):
        for op, adjust in enumerate(_JITTER):
            chosen = (order[:, step] == op).nonzero().squeeze(1)
            if len(chosen) and (hue if adjust is adjust_hue else strength):
                where = chosen.to(images.device)
                images[where] = adjust(images[where], factors[chosen, op].to(images.device))
    return images
