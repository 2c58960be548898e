"""Measured speed-up of pruning against the saved multiply-adds: dense, pruned and timm's ViT-Tiny, timed alternately.

    uv run python -m zoom_vit.bench_pruning

The ideal speed-up is the ratio of the counted multiply-adds; the measured one (`realized`) is the median over the
rounds of dense time divided by pruned time, with a 95% bootstrap interval over the rounds.
"""

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from vit_core.bench.pair import in_turn, multiply_adds
from vit_core.flags import command, flag, parse
from vit_core.training.distributed import pick_device, seed_everything
from vit_core.training.run_folder import environment
from zoom_vit.importance import IMPORTANCES
from zoom_vit.registry import BACKBONE, zoom_vit_tiny_patch16_224


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Measured speed-up of pruning against the saved multiply-adds; dense, pruned and timm's ViT-Tiny in turn."""

    keep_ratios: tuple[float, ...] = flag((0.3, 0.5), "shares of patches kept")
    batch_sizes: tuple[int, ...] = flag((8, 32), "batch sizes")
    prune_layer: int = flag(6, "prune after this block")
    importance: str = flag("token_norm", "patch ranking", choices=tuple(IMPORTANCES))
    rounds: int = flag(15, "timed rounds per model")
    device: str = flag("auto", "auto, cpu, cuda or mps")
    json: Path | None = flag(None, "also write the results to this file", metavar="FILE", output=True)

    def __post_init__(self) -> None:
        if self.rounds < 1 or min(self.batch_sizes) < 1 or not all(0 < k <= 1 for k in self.keep_ratios):
            raise ValueError("--rounds and --batch-sizes must be at least 1, and --keep-ratios must lie in (0, 1]")
        if not 1 <= self.prune_layer <= 11:
            raise ValueError(f"--prune-layer must lie in 1 … 11, got {self.prune_layer}")


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Flags, argv, "python -m zoom_vit.bench_pruning")
    device = pick_device(args.device)
    print(
        f"{device}, {torch.get_num_threads()} threads, medians of {args.rounds} rounds, {args.importance}, "
        f"pruned after block {args.prune_layer}"
    )
    rows = []
    for batch_size in args.batch_sizes:
        rows += measure(batch_size, args.keep_ratios, args.prune_layer, args.importance, device, args.rounds)
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "environment": environment()}, indent=2) + "\n")
    return 0


def measure(
    batch_size: int, keeps: Sequence[float], layer: int, importance: str, device: torch.device, rounds: int
) -> list[dict[str, Any]]:
    """One row for timm's model and one per keep ratio, relative to the dense model at this batch size; also printed."""
    seed_everything(0)
    images = torch.randn(batch_size, 3, 224, 224, device=device)
    ours = zoom_vit_tiny_patch16_224(num_classes=102).to(device).eval()
    theirs = timm.create_model(BACKBONE, num_classes=102).to(device).eval()
    theirs.load_state_dict(ours.state_dict())
    works: dict[str, Callable[..., Any]] = {"dense": ours, BACKBONE: theirs}
    works |= {
        f"keep {k:g}": partial(ours.forward_pruned, keep_ratio=k, prune_layer=layer, importance=importance)
        for k in keeps
    }
    with torch.inference_mode():
        seconds = in_turn([partial(work, images) for work in works.values()], device, rounds)
    with torch.no_grad():
        cost = [multiply_adds(partial(work, images[:1])) for work in works.values()]
    rows = []
    print(f"batch {batch_size}: dense {1e3 * statistics.median(r[0] for r in seconds) / batch_size:.2f} ms/image")
    for i, name in enumerate(works):
        if i == 0:
            continue
        ratios = np.array([r[0] / r[i] for r in seconds])
        realized, ideal = float(np.median(ratios)), cost[0] / cost[i]
        low, high = median_interval(ratios)
        ms = 1e3 * statistics.median(r[i] for r in seconds) / batch_size
        rows.append(
            {
                "batch_size": batch_size,
                "model": name,
                "ms_per_image": ms,
                "gmacs": cost[i] / 1e9,
                "realized": realized,
                "realized_low": low,
                "realized_high": high,
                "ideal": ideal,
                "share": realized / ideal,
            }
        )
        print(
            f"  {name:22} {ms:6.2f} ms/image, speed-up {realized:.3f}× ({low:.3f} … {high:.3f}), ideal {ideal:.3f}×, "
            f"ratio {realized / ideal:.3f}"
        )
    return rows


def median_interval(values: np.ndarray, resamples: int = 2000) -> tuple[float, float]:
    """95% bootstrap interval for the median of independent values (n,)."""
    draws = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(np.median(values[draws], 1), [2.5, 97.5])
    return float(low), float(high)


if __name__ == "__main__":
    sys.exit(main())
