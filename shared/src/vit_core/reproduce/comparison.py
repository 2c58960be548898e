"""Comparison of the papers on the same images: accuracy, size, speed, and quality of the explanations."""

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit_core.bench.pair import in_turn, multiply_adds
from vit_core.commands.study import Subject
from vit_core.explain import deletion_insertion, grad_cam, measure_focus
from vit_core.explain.grad_cam import EmptyMapError
from vit_core.papers import Paper
from vit_core.reproduce.steps import Options, studies
from vit_core.training.evaluation import evaluate
from vit_core.training.precision import choose_precision

IMAGES = 40  # for the explanations
BATCH, ROUNDS = 64, 5  # for the timing
HEADS = (
    "paper",
    "row",
    "dataset",
    "epochs",
    "top-1, %",
    "parameters",
    "multiply-adds, 10⁶",
    "images/s",
    "deletion − random",
    "±",
    "insertion − random",
    "±",
    "FAP, %",
    "±",
)
CAPTION = (
    "Each row was trained with its own paper's recipe and number of epochs, so accuracies of different papers are not "
    "comparable: several papers' rows include plain ViTs of the same size, and their accuracies differ because of "
    "recipe and epochs alone. Size and speed are comparable (batch size {batch}, models timed in turn, medians of "
    "{rounds} rounds). Explanations are measured on {images} test images for the true class, ± the standard error over "
    "images: deletion removes the patches that Grad-CAM marks as important (lower is better), insertion adds them back "
    "(higher is better); both are areas under the curve of the class's probability in percent, minus those of random "
    "maps. FAP is the share of Grad-CAM's top 15% of positions that are also in the top 15% of the model's attention; "
    "15.6% by chance; — if a model has no single attention map."
)


def compare(
    papers: Mapping[str, Paper], options: Options, folder: Path, report: Callable[[float, str], None]
) -> dict[str, Any] | None:
    """heads, rows and caption for the page; None if nothing is trained."""
    chosen: list[tuple[Paper, str, Subject]] = []
    for name, paper in papers.items():
        found = studies(paper, options, folder / name)
        for training in paper.trainings(options.preset):
            study = found[training.name]
            if all(study.checkpoint(row, options.seeds[0]) for row in study.rows):
                chosen += [(paper, row, study.subject(row, options.seeds[0])) for row in training.compared]
    if not chosen:
        return None
    chosen.sort(key=lambda entry: entry[2].dataset.name)  # group rows of the same dataset
    speeds = _images_per_second([subject for _, _, subject in chosen])
    rows = []
    for number, ((paper, label, subject), speed) in enumerate(zip(chosen, speeds, strict=True)):
        report(number / len(chosen), label)
        rows.append([paper.title.partition(":")[0], label, *_figures(subject, speed, paper)])
    return {"caption": CAPTION.format(batch=BATCH, rounds=ROUNDS, images=IMAGES), "heads": list(HEADS), "rows": rows}


def _images_per_second(subjects: list[Subject]) -> list[float]:
    """Inference speed of each model with batch size `BATCH`, or all evaluation images if there are fewer."""
    batches = [
        next(iter(s.trained.loader(s.dataset, s.world, batch_size=BATCH, num_workers=0).epoch()))[0] for s in subjects
    ]
    works = [partial(_infer, s.trained.model, images) for s, images in zip(subjects, batches, strict=True)]
    times = in_turn(works, subjects[0].world.device, ROUNDS)
    return [len(images) / statistics.median(round[i] for round in times) for i, images in enumerate(batches)]


def _infer(model: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        model(images)


def _figures(subject: Subject, speed: float, paper: Paper) -> list[str | float]:
    model, run = subject.trained.model, subject.run
    result = evaluate(model, subject.loader(), choose_precision(run.train.amp, subject.world.device))
    image = next(iter(subject.loader(1).epoch()))[0]
    with torch.no_grad():
        macs = multiply_adds(lambda: model(image)) / 1e6
    explanations = _beyond_random(subject)
    fap: list[str | float] = ["—", "—"]
    if paper.attention_map is not None:
        focus = measure_focus(model, subject.loader(IMAGES), paper.attention_map)
        fap = [focus.fap, focus.standard_error]
    parameters = sum(p.numel() for p in model.parameters())
    return [subject.dataset.name, run.train.epochs, result.acc1, parameters, macs, speed, *explanations, *fap]


def _beyond_random(subject: Subject) -> list[str | float]:
    """Deletion area of Grad-CAM minus that of random maps, its standard error, and the same for insertion, in points.

    All are "—" if Grad-CAM is empty.
    """
    model, generator = subject.trained.model, torch.Generator().manual_seed(0)
    areas: list[Tensor] = []  # (2, B) per batch
    for images, targets in subject.loader(IMAGES).epoch():
        try:
            maps = grad_cam(model, images, targets)
        except EmptyMapError:
            return ["—"] * 4
        noise = torch.rand(maps.shape, generator=generator).to(maps.device)
        ours, random = (
            deletion_insertion(model, images, m, targets, steps=8, generator=generator) for m in (maps, noise)
        )
        areas.append(
            torch.stack([ours.deletion_area - random.deletion_area, ours.insertion_area - random.insertion_area])
        )
    points = 100 * torch.cat(areas, 1)
    means, errors = points.mean(1), points.std(1) / points.shape[1] ** 0.5
    return torch.stack([means, errors], 1).flatten().tolist()
