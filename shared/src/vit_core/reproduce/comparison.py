"""The papers side by side, on the same images: accuracy, size, speed, and how good their explanations are."""

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit_core.bench import in_turn, multiply_adds
from vit_core.evaluation import evaluate
from vit_core.explain import deletion_insertion, grad_cam, measure_focus
from vit_core.explain.grad_cam import EmptyMapError
from vit_core.papers import Paper
from vit_core.precision import choose_precision
from vit_core.reproduce.steps import Options, subjects_of
from vit_core.study import Subject

IMAGES = 40  # for the explanations
BATCH, ROUNDS = 64, 5  # of the timing
HEADS = (
    "paper", "row", "dataset", "epochs", "top-1, %", "parameters", "multiply-adds, 10⁶", "images a second",
    "deletion beyond random", "insertion beyond random", "FAP, %", "FAP by chance, %",
)  # fmt: skip
CAPTION = (
    "Each paper's model, trained on the images and for the epochs that its row names, with the first seed. Speed: "
    "inference in batches of {batch}, all models in turn in one process, medians of {rounds} rounds. Explanations, "
    "over {images} test images and the true class, by Grad-CAM at each model's own layer: deletion takes the patches "
    "away that the map calls important (lower is better) and insertion puts them back (higher is better); the figures "
    "are areas under the class's probability in percent, minus those of random maps. FAP: of the 15% of places that "
    "Grad-CAM marks most, how many are also where the model's own attention is highest; — where a model has no one map "
    "of attention. One seed, small models, few epochs: differences of a point or two mean nothing."
)


def compare(
    papers: Mapping[str, Paper], options: Options, folder: Path, report: Callable[[float, str], None]
) -> dict[str, Any] | None:
    """heads, rows and caption for the page; None where nothing is trained."""
    chosen: list[tuple[Paper, str, Subject]] = []
    for name, paper in papers.items():
        for training in paper.trainings(options.preset):
            subjects = subjects_of(paper, options, folder / name)[training.name]
            chosen += [(paper, row, subjects[row]) for row in training.compared]
    if not chosen:
        return None
    chosen.sort(key=lambda entry: entry[2].dataset.name)  # rows of the same images together
    speeds = _images_per_second([subject for _, _, subject in chosen])
    rows = []
    for number, ((paper, label, subject), speed) in enumerate(zip(chosen, speeds, strict=True)):
        report(number / len(chosen), label)
        rows.append([paper.title.partition(":")[0], label, *_figures(subject, speed, paper)])
    return {
        "caption": CAPTION.format(batch=BATCH, rounds=ROUNDS, images=IMAGES), "heads": list(HEADS), "rows": rows
    }  # fmt: skip


def _images_per_second(subjects: list[Subject]) -> list[float]:
    works = []
    for subject in subjects:
        images, _ = next(iter(subject.trained.loader(subject.dataset, subject.world, batch_size=BATCH, num_workers=0)
                              .epoch()))  # fmt: skip
        works.append(lambda model=subject.trained.model, images=images: _infer(model, images))
    times = in_turn(works, subjects[0].world.device, ROUNDS)
    return [BATCH / statistics.median(round[i] for round in times) for i in range(len(works))]


def _infer(model: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        model(images)


def _figures(subject: Subject, speed: float, paper: Paper) -> list[Any]:
    model, run = subject.trained.model, subject.run
    result = evaluate(model, subject.loader(), choose_precision(run.train.amp, subject.world.device))
    image = next(iter(subject.loader(1).epoch()))[0]
    with torch.no_grad():
        macs = multiply_adds(lambda: model(image)) / 1e6
    deletion, insertion = _beyond_random(subject)
    fap: list[Any] = ["—", "—"]
    if paper.attention_map is not None:
        focus = measure_focus(model, subject.loader(IMAGES), paper.attention_map)
        fap = [focus.fap, focus.chance]
    parameters = sum(p.numel() for p in model.parameters())
    return [
        subject.dataset.name, run.train.epochs, result.acc1, parameters, macs, speed, deletion, insertion, *fap
    ]  # fmt: skip


def _beyond_random(subject: Subject) -> tuple[Any, Any]:
    """Deletion and insertion area of Grad-CAM minus those of random maps, in points; "—" where Grad-CAM is empty."""
    model, generator = subject.trained.model, torch.Generator().manual_seed(0)
    areas: list[Tensor] = []
    for images, targets in subject.loader(IMAGES).epoch():
        try:
            maps = grad_cam(model, images, targets)
        except EmptyMapError:
            return "—", "—"
        noise = torch.rand(maps.shape, generator=generator).to(maps.device)
        ours, random = (
            deletion_insertion(model, images, m, targets, steps=8, generator=generator) for m in (maps, noise)
        )
        areas.append(torch.stack([
            ours.deletion_area - random.deletion_area, ours.insertion_area - random.insertion_area
        ]))  # fmt: skip
    deletion, insertion = (100 * torch.cat(areas, 1).mean(1)).tolist()
    return deletion, insertion
