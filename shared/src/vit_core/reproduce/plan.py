"""Estimate what the papers' own recipes need before they start: time (from timed steps), disk space, downloads."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch

from vit_core.bench.pair import Contestant
from vit_core.commands.settings import Run
from vit_core.commands.study import Study
from vit_core.data import load_dataset
from vit_core.errors import UserError
from vit_core.papers import Paper, Training
from vit_core.reproduce.progress import clock
from vit_core.reproduce.steps import Options, studies
from vit_core.training.distributed import pick_device
from vit_core.training.precision import choose_precision

TIMED_IMAGES = 8  # largest batch size of the timed steps on a CPU


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one training needs, for all its rows and seeds."""

    paper: str
    training: str
    runs: int
    epochs: int
    seconds: float
    disk_gb: float  # checkpoints, and images still to be downloaded
    images: str  # "found", "12 GB to download", or what is missing


def needs(papers: Mapping[str, Paper], options: Options, folder: Path, stream: TextIO) -> list[Need]:
    """Time two steps of each model on the chosen device. Nothing is downloaded or written."""
    timed: dict[str, tuple[float, int]] = {}

    def time_once(run: Run) -> tuple[float, int]:
        key = repr((run.model, run.model_kwargs, run.train.batch_size, run.train.amp))
        if key not in timed:
            print(f"timing two steps of {run.model} …", file=stream, flush=True)
            device = pick_device(run.train.device)
            timed[key] = time_step(run.model, run.model_kwargs, run.train.batch_size, device, run.train.amp)
        return timed[key]

    found = []
    for name, paper in papers.items():
        prepared = studies(paper, options, folder / name)
        found += [_need(paper, t, prepared[t.name], options, time_once) for t in paper.trainings(options.preset)]
    return found


def _need(
    paper: Paper, training: Training, study: Study, options: Options, time_once: Callable[[Run], tuple[float, int]]
) -> Need:
    seconds = disk = 0.0
    for row in study.rows:
        run = study.settled(row)
        per_image, parameters = time_once(run)
        seconds += len(options.seeds) * per_image * training.images * run.train.epochs
        kept = 2 + (run.train.epochs // run.train.save_freq if run.train.save_freq else 0)  # last, best, every Nth
        disk += len(options.seeds) * kept * 3 * 4 * parameters / 1e9  # weights and Adam's two averages, float32
    images, more = _images(training, study, options)
    run = study.settled(next(iter(study.rows)))
    return Need(
        paper=paper.title.partition(":")[0],
        training=training.name,
        runs=len(study.rows) * len(options.seeds),
        epochs=run.train.epochs,
        seconds=seconds,
        disk_gb=disk + more,
        images=images,
    )


def time_step(
    model: str, kwargs: Mapping[str, object], batch_size: int, device: torch.device, amp: str
) -> tuple[float, int]:
    """Seconds per image of a training step, after a warm-up step, and the model's number of parameters."""
    count = min(batch_size, TIMED_IMAGES if device.type == "cpu" else batch_size)
    contestant = Contestant(model, dict(kwargs), count, device, choose_precision(amp, device))
    contestant.train()
    began = time.monotonic()
    contestant.train()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.monotonic() - began) / count, sum(p.numel() for p in contestant.model.parameters())


def _images(training: Training, study: Study, options: Options) -> tuple[str, float]:
    """Status of the images ("found", …), and the GB of disk space they will need."""
    data = study.settled(next(iter(study.rows))).data
    try:
        load_dataset(data.dataset, data_path=data.data_path, img_size=32, cache="disk", eval_split=data.eval_split)
        return "found", 0.0
    except UserError as e:
        if training.download_gb and options.dataset is None:
            return f"{training.download_gb:g} GB to download", training.disk_gb
        return f"missing: {training.where or e}", 0.0


def announce(found: list[Need], device: torch.device, stream: TextIO) -> None:
    """Print a table of the needs, and their sum."""
    print(f"The papers' own recipes, on {device}, estimated from two timed steps of each model:\n", file=stream)
    width = max(len(f"{n.paper}, {n.training}") for n in found)
    for n in found:
        runs = f"{n.runs} run{'s' if n.runs > 1 else ''} of {n.epochs} epochs"
        print(
            f"  {f'{n.paper}, {n.training}':<{width}}  {runs:<22} {clock(n.seconds):>12}  "
            f"{n.disk_gb:6.1f} GB disk  images: {n.images}",
            file=stream,
        )
    total = sum(n.seconds for n in found)
    print(
        f"\nTotal: {clock(total)} on this device ({total / 3600:,.0f} hours) and "
        f"{sum(n.disk_gb for n in found):.0f} GB of disk space. All epochs are trained: early stopping is off.",
        file=stream,
    )
