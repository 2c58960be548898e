"""`reproduce bench`: time every paper's models and their baselines, and check the targets of the speed ratios.

The two models of a pair alternate within one process, so that drifting machine speed affects both. A ratio is the
median of the per-round ratios.
"""

import dataclasses
import io
import math
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vit_core.bench.pair import compare
from vit_core.commands.trained_model import AmpFlags
from vit_core.flags import flag
from vit_core.papers import Benchmark, Paper
from vit_core.training.run_folder import environment


@dataclass(frozen=True, kw_only=True)
class BenchFlags(AmpFlags):
    """Time every paper's models against their baselines, and check the targets."""

    paper: tuple[str, ...] = flag((), "only this paper; repeat for several papers", metavar="NAME", repeat=True)
    rounds: int = flag(7, "timed rounds per model")
    device: str = flag("auto", "auto, cpu, cuda or mps")
    json: Path | None = flag(None, "also write the results to this JSON file", metavar="FILE", output=True)

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError("--rounds must be at least 1")


def bench(
    papers: Mapping[str, Paper], device: torch.device, amp: str, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Results of every benchmark, as JSON values. say: called with each line of the table as soon as it is known."""
    say(
        f"{device}, {torch.get_num_threads()} threads, AMP {amp}, medians of {rounds} rounds; targets are for a CPU "
        f"without AMP\n{_line('model (batch)', 'baseline', 'inference', 'training', 'GMACs', 'params', 'peak memory')}"
    )
    judged = device.type == "cpu" and amp == "off"
    rows = []
    for name, paper in papers.items():
        for benchmark in paper.benchmarks:
            rows.append({"paper": name, **_measure(benchmark, device, amp, rounds, judged)})
            say(_shown(rows[-1]))
    figures = [{"paper": name, **f} for name, paper in papers.items() for f in _further(paper, device, rounds, judged)]
    for figure in figures:
        word, sign = {True: "met", False: "missed", None: "—"}[figure["met"]], "≥" if figure["at_least"] else "≤"
        say(f"{figure['what']}: {figure['value']:.3f} ({sign} {figure['target']:g}: {word})")
    met = [t["met"] for r in rows for t in r["targets"].values()] + [f["met"] for f in figures]
    if judged:
        say(f"\n{sum(met)} of {len(met)} targets met")
    return {
        "device": str(device),
        "amp": amp,
        "rounds": rounds,
        "rows": rows,
        "figures": figures,
        "environment": environment(),
    }


def _further(paper: Paper, device: torch.device, rounds: int, judged: bool) -> list[dict[str, Any]]:
    if paper.further_benchmarks is None:
        return []
    with redirect_stdout(io.StringIO()):  # they print their own tables
        figures = paper.further_benchmarks(device, rounds)
    return [
        f._asdict() | {"met": (f.value >= f.target if f.at_least else f.value <= f.target) if judged else None}
        for f in figures
    ]


def _measure(benchmark: Benchmark, device: torch.device, amp: str, rounds: int, judged: bool) -> dict[str, Any]:
    pair = [(benchmark.model, dict(benchmark.model_kwargs)), (benchmark.against, dict(benchmark.against_kwargs))]
    (ours, theirs), ratios = compare(pair, benchmark.batch_size, device, amp, rounds)
    targets = {}
    for what, target in (("inference_ms", benchmark.inference), ("training_ms", benchmark.training)):
        if target is not None:
            targets[what] = {"target": target, "met": ratios[what] <= target if judged else None}
    return {
        "batch_size": benchmark.batch_size,
        "figures": [dataclasses.asdict(f) for f in (ours, theirs)],
        "ratios": {k: v if math.isfinite(v) else None for k, v in ratios.items()},
        "targets": targets,
    }


def _shown(row: Mapping[str, Any]) -> str:
    ours, theirs = row["figures"]

    def ratio(what: str) -> str:
        target = row["targets"].get(what)
        met = {True: "met", False: "missed", None: "—"}[target["met"]] if target else ""
        return f"{row['ratios'][what]:.3f}×" + (f" (≤ {target['target']:g}: {met})" if target else "")

    memory = f"{ours['training_memory_mib']:,.0f} / {theirs['training_memory_mib']:,.0f} MiB"
    return _line(
        f"{ours['model']} ({row['batch_size']})",
        theirs["model"],
        ratio("inference_ms"),
        ratio("training_ms"),
        f"{row['ratios']['gmacs']:.2f}×",
        f"{row['ratios']['parameters']:.2f}×",
        memory,
    )


def _line(*cells: str) -> str:
    widths = (52, 38, 23, 23, 8, 8, 22)
    return " ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()
