"""Visualization of maps: a heat map over its image, and figures of several maps.

Cell (i, j) of an h × w map covers patch (i, j) of the image, with row i from the top and column j from the left.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_core.explain.figure_text import figure_text

COLORS = "inferno"


def denormalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalized images (…, C, H, W) -> the original values in [0, 1]."""
    as_channels = [torch.tensor(v, dtype=images.dtype, device=images.device)[:, None, None] for v in (mean, std)]
    return (images * as_channels[1] + as_channels[0]).clamp(0, 1)


def overlay(
    image: Tensor,
    heat: Tensor,
    *,
    alpha: float = 0.5,
    colors: str = COLORS,
    limits: tuple[float, float] | None = None,
    gray: bool = False,
) -> Tensor:
    """Blend an image (3, H, W) with a color-mapped heat map (h, w) -> float32 (3, H, W) in [0, 1], on the CPU.

    Args:
        image: uint8, or float in [0, 1].
        alpha: opacity of the map: 0 shows only the image, 1 only the map.
        colors: name of a matplotlib colormap.
        limits: values at the two ends of the colormap. Default: minimum and maximum of the map.
        gray: convert the image to grayscale first, so that all color comes from the map.
    Raises: ValueError for other shapes, alpha out of range, and image values outside [0, 1].
    """
    from matplotlib import colormaps

    image = _picture(image)
    if heat.ndim != 2 or not 0 <= alpha <= 1:
        raise ValueError(f"expected a map (h, w) and alpha in [0, 1], got {tuple(heat.shape)} and {alpha}")
    low, high = limits or _limits([heat])
    values = ((heat.detach().float().cpu() - low) / max(high - low, 1e-12)).clamp(0, 1)
    if gray:
        image = image.mean(0, keepdim=True).expand(3, -1, -1)
    size = (image.shape[1], image.shape[2])
    fine = F.interpolate(values[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    color = torch.from_numpy(colormaps[colors](fine.numpy())[..., :3]).float().permute(2, 0, 1)
    return (1 - alpha) * image + alpha * color


def figure_of_maps(
    image: Tensor,
    maps: Mapping[str, Tensor] | Sequence[tuple[str, Tensor | None]],
    path: str | Path,
    *,
    title: str | None = None,
    image_title: str = "image",
    shared_scale: bool = False,
    columns: int = 4,
    alpha: float = 0.5,
    colors: str = COLORS,
) -> Path:
    """Write the image and its overlays (on grayscale) as a grid of titled panels. Suffix of `path`: png, svg or pdf.

    Args:
        image: (3, H, W) as for `overlay`.
        maps: title -> (h, w), or pairs of the two; None shows the image again, for example at the start of a row.
        path: output file; its folder is created.
        shared_scale: use one color scale for all maps, so that panels are comparable; otherwise one per panel.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    picture = _picture(image)
    panels = list(maps.items() if isinstance(maps, Mapping) else maps)
    columns = min(columns, len(panels) + 1)
    rows = math.ceil((len(panels) + 1) / columns)
    height = 2.5 * picture.shape[1] / picture.shape[2]
    # Without pyplot: no global state, no window; savefig takes Agg for PNG.
    figure = Figure(figsize=(3.3 * columns, (height + 0.5) * rows + (0.4 if title else 0)), layout="compressed")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for ax in axes:
        ax.axis("off")
    heats = [heat for _, heat in panels if heat is not None]
    common = _limits(heats) if shared_scale and heats else None
    axes[0].imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes[0].set_title(figure_text(image_title), fontsize=10)
    for ax, (name, heat) in zip(axes[1:], panels, strict=False):
        ax.set_title(figure_text(textwrap.fill(name, 32)), fontsize=10)
        if heat is None:
            ax.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
            continue
        low, high = common or _limits([heat])
        shown = overlay(picture, heat, alpha=alpha, colors=colors, limits=(low, high), gray=True)
        ax.imshow(shown.permute(1, 2, 0).numpy(), interpolation="nearest")
        if not common:  # a color bar as tall as the picture
            scale = ScalarMappable(Normalize(low, high), colors)
            bar = figure.colorbar(scale, cax=ax.inset_axes((1.03, 0, 0.05, 1)), format="%.3g")
            bar.ax.tick_params(labelsize=8)
    if common:
        scale = ScalarMappable(Normalize(*common), colors)
        figure.colorbar(scale, ax=axes, fraction=0.03, pad=0.02, shrink=0.9).ax.tick_params(labelsize=8)
    if title:
        figure.suptitle(figure_text(title), fontsize=11)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    return path


def _picture(image: Tensor) -> Tensor:
    """uint8 or float (3, H, W) -> float32 in [0, 1] on the CPU."""
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"expected an image (3, H, W), got {tuple(image.shape)}")
    values = image.detach().cpu().float() / (255.0 if image.dtype == torch.uint8 else 1.0)
    if values.min() < -1e-4 or values.max() > 1 + 1e-4:
        raise ValueError("image values must lie in [0, 1]: call denormalize first")
    return values.clamp(0, 1)


def _limits(maps: list[Tensor]) -> tuple[float, float]:
    return min(float(m.min()) for m in maps), max(float(m.max()) for m in maps)
