"""Coordinates of the training curves, in percent of the plot area; the template draws them as SVG."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 25)  # possible tick spacings


def curve_chart(rows: Sequence[Mapping[str, Any]], value: str = "val_acc1") -> dict[str, Any] | None:
    """Ticks and lines, sorted by final value, best first. None if there are no epochs.

    rows: as in results.json. A line is the mean over a row's seeds; with several seeds, `band` spans their range.
    """
    curves = [(number, row["label"], _by_epoch(row["seeds"], value)) for number, row in enumerate(rows)]
    curves = [c for c in curves if c[2]]
    if not curves:
        return None
    everything = [v for _, _, epochs in curves for values in epochs.values() for v in values]
    last_epoch = max(max(epochs) for _, _, epochs in curves)
    first_epoch = min(min(epochs) for _, _, epochs in curves)
    y_ticks = _ticks(min(everything), max(everything), 6)
    x_ticks = [t for t in _ticks(first_epoch, last_epoch, 9) if first_epoch <= t <= last_epoch and t == int(t)]

    def x(epoch: float) -> float:
        return round(100 * (epoch - first_epoch) / (last_epoch - first_epoch), 2) if last_epoch > first_epoch else 50.0

    def y(v: float) -> float:
        return round(100 - 100 * (v - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]), 2)

    lines = []
    for number, label, epochs in curves:
        means = [(x(e), y(statistics.fmean(values))) for e, values in sorted(epochs.items())]
        low = [(x(e), y(min(values))) for e, values in sorted(epochs.items())]
        high = [(x(e), y(max(values))) for e, values in sorted(epochs.items())]
        final = statistics.fmean(epochs[max(epochs)])
        band = _points([*low, *reversed(high)]) if low != high else ""
        lines.append(
            {
                "number": number,
                "label": label,
                "points": _points(means),
                "dots": means,
                "band": band,
                "final": final,
                "epochs": max(epochs),
            }
        )
    return {
        "x_ticks": [(x(t), f"{t:g}") for t in x_ticks],
        "y_ticks": [(y(t), f"{t:g}") for t in y_ticks],
        "lines": sorted(lines, key=lambda line: -line["final"]),
    }


def _by_epoch(seeds: Sequence[Mapping[str, Any]], value: str) -> dict[int, list[float]]:
    """Epoch -> the values of the seeds evaluated at that epoch."""
    epochs: dict[int, list[float]] = {}
    for seed in seeds:
        for point in seed["curve"]:
            measured = point.get(value)
            if measured is not None and math.isfinite(measured):
                epochs.setdefault(int(point["epoch"]), []).append(float(measured))
    return epochs


def _ticks(low: float, high: float, most: int) -> list[float]:
    """About `most` round numbers; the first is at or below `low`, the last at or above `high`."""
    span = max(high - low, STEPS[0])
    scale = 10.0 ** max(0, math.ceil(math.log10(span / (most - 1) / STEPS[-1])))
    step = next((s for s in STEPS if s * scale * (most - 1) >= span), STEPS[-1]) * scale
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(n * step, 6) for n in range(first, max(last, first + 1) + 1)]


def _points(pairs: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in pairs)
