"""Heat map of one number per attention head."""

from collections.abc import Sequence
from pathlib import Path


def draw_heads(
    values: Sequence[Sequence[float]],
    path: Path,
    *,
    label: str,
    title: str,
    limits: tuple[float, float],
    digits: int = 1,
) -> None:
    """Draw a heat map: columns are heads, rows are blocks, first block on top. label: name of the values."""
    from matplotlib.figure import Figure

    heads = max(map(len, values))
    figure = Figure(figsize=(2.2 + 0.55 * heads, 1.5 + 0.42 * len(values)), layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(values, cmap="viridis", aspect="auto", vmin=limits[0], vmax=limits[1])
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            is_light = value > limits[0] + 0.6 * (limits[1] - limits[0])
            color = "black" if is_light else "white"
            ax.text(j, i, f"{value:.{digits}f}", ha="center", va="center", fontsize=7, color=color)
    ax.set(xlabel="head", ylabel="block", xticks=range(heads), yticks=range(len(values)))
    figure.colorbar(image, ax=ax, label=label)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=150)
