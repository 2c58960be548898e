"""Example images of each alignment group, and pictures of the study's analyses of them.

The folder names are the study's: `1_good_attention`, `2_inverted_attention` and `3_diffuse_attention` under each of
`1_visualizations`, `2_zoom_image` and `3_image_level_zoom`.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vit_core.commands.study import markdown_table
from vit_core.explain import figure_of_maps, overlay
from vit_core.explain.figure_text import figure_text
from vit_core.flags import flag
from vit_core.recipe import Recipe
from zoom_vit.alignment import GROUPS, Judgment, groups, judge
from zoom_vit.experiment import (
    Experiment,
    JudgmentFlags,
    begin,
    judgment,
    threshold_of,
)
from zoom_vit.importance import IMPORTANCES, importance_map
from zoom_vit.zoom import attenuate_background, crop_zoom, zoom_boxes, zoom_mask

GROUP_FOLDERS = tuple(f"{i}_{name}_attention" for i, name in enumerate(GROUPS, 1))


class Example(NamedTuple):
    """One image of the evaluation split with its group."""

    number: int  # index in the split
    image: Tensor  # (1, 3, S, S), normalized
    target: int
    group: int  # index into GROUPS
    entropy: float


@dataclass(frozen=True, kw_only=True)
class ExampleFlags(JudgmentFlags):
    """The flags of the scripts that draw examples."""

    per_group: int = flag(4, "pictures per group", least=1)
    max_images: int = flag(200, "images to choose from", least=1)
    indices: tuple[int, ...] = flag((), "draw these images instead, such as the study's 1143 5238 204")


def begin_examples(recipe: Recipe, args: ExampleFlags) -> tuple[Experiment, Judgment, list[Example]]:
    """Load the model and data that the flags name, select the images, and print the size of each group."""
    experiment = begin(recipe, args)
    by, threshold = judgment(args, experiment.model), threshold_of(args, experiment.model)
    found: list[Example] = []
    counts = [0] * len(GROUPS)
    if not args.indices:
        batches: Iterable[tuple[list[int], Tensor, Tensor]] = experiment.batches(args.max_images)
    else:
        batches = [(list(args.indices), *experiment.pick(args.indices))]
    for numbers, images, targets in batches:
        judged = judge(experiment.model, images, targets, by)
        entropies = judged["entropy"].tolist()
        chosen = groups({k: v.cpu().numpy() for k, v in judged.items()}, threshold).tolist()
        for i, number in enumerate(numbers):
            counts[chosen[i]] += 1
            if args.indices or counts[chosen[i]] <= args.per_group:
                found.append(Example(number, images[i : i + 1].clone(), int(targets[i]), chosen[i], entropies[i]))
    print(f"{sum(counts)} images: " + ", ".join(f"{n} {name}" for n, name in zip(counts, GROUPS, strict=True)))
    return experiment, by, found


def write_examples(
    experiment: Experiment, found: Sequence[Example], folder: str, draw: Callable[[Example, Path], Mapping[str, str]]
) -> None:
    """Draw each example into its group's folder under `folder`; images.txt and images.json describe the pictures.

    draw: writes one picture and returns the model's predictions for it: name -> class and probability.
    """
    place = experiment.folder / folder
    lines: list[dict[str, Any]] = []
    for e in found:
        said = draw(e, place / GROUP_FOLDERS[e.group] / f"{e.number:05d}.png")
        true = experiment.trained.class_names[e.target]
        lines.append(
            {"image": e.number, "class": true, "intent": GROUPS[e.group], "entropy": round(e.entropy, 3), **said}
        )
    if lines:
        text = markdown_table(list(lines[0]), [[str(v) for v in line.values()] for line in lines])
        (place / "images.txt").write_text(text)
        record = {"images": lines, **experiment.record()}
        (place / "images.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"{len(lines)} pictures, images.txt and images.json are in {place}")


def draw_importance(experiment: Experiment, image: Tensor, target: int, path: Path, note: str = "") -> dict[str, str]:
    """Draw all six importance maps over one image (1, 3, S, S)."""
    with torch.no_grad():
        logits = experiment.model(image)[0]
    maps = {name: importance_map(experiment.model, image, name)[0] for name in IMPORTANCES}
    title = f"{experiment.trained.class_names[target]}; predicted {experiment.says(logits)}{note}"
    figure_of_maps(experiment.picture(image[0]), maps, path, title=title)
    return {"the model says": experiment.says(logits)}


def draw_attenuation(experiment: Experiment, example: Example, by: Judgment, path: Path) -> dict[str, str]:
    """Draw the image, the mask on top of it, and the image with its background attenuated.

    As in the study, this applies to the normalized image: the background fades to the mean color, gray.
    """
    mask = zoom_mask(_map(experiment, example, by), by.keep_ratio, _size(example))
    faded = attenuate_background(example.image, mask)
    with torch.no_grad():
        seen = experiment.model(torch.cat([example.image, faded]))
    panels = [
        (f"image: {experiment.says(seen[0])}", experiment.picture(example.image[0])),
        (_mask_title(by), mask_on(experiment.picture(example.image[0]), mask[0, 0])),
        (f"background × 0.3: {experiment.says(seen[1])}", experiment.picture(faded[0])),
    ]
    _draw(panels, path, f"image {example.number}, {experiment.trained.class_names[example.target]}")
    return {"whole": experiment.says(seen[0]), "background × 0.3": experiment.says(seen[1])}


def draw_crop(experiment: Experiment, example: Example, by: Judgment, path: Path) -> dict[str, str]:
    """Draw the image, the mask with the box around its patches, and the crop."""
    maps = _map(experiment, example, by)
    mask, crop = zoom_mask(maps, by.keep_ratio, _size(example)), crop_zoom(example.image, maps, by.keep_ratio)
    box = zoom_boxes(maps, by.keep_ratio, _size(example))[0].tolist()
    with torch.no_grad():
        seen = experiment.model(torch.cat([example.image, crop]))
    panels = [
        (f"image: {experiment.says(seen[0])}", experiment.picture(example.image[0])),
        (_mask_title(by), mask_on(experiment.picture(example.image[0]), mask[0, 0])),
        (f"zoom: {experiment.says(seen[1])}", experiment.picture(crop[0])),
    ]
    _draw(panels, path, f"image {example.number}, {experiment.trained.class_names[example.target]}", box)
    both = seen.softmax(1).mean(0).log()
    return {"whole": experiment.says(seen[0]), "zoom": experiment.says(seen[1]), "mean of both": experiment.says(both)}


def mask_on(picture: Tensor, mask: Tensor) -> Tensor:
    """Overlay a picture (3, h, w) in [0, 1] with its mask (h, w): kept patches warm, background cold."""
    return overlay(picture, mask, alpha=0.4, colors="jet", limits=(0, 1))


def _map(experiment: Experiment, example: Example, by: Judgment) -> Tensor:
    return importance_map(experiment.model, example.image, by.importance)


def _size(example: Example) -> tuple[int, int]:
    return example.image.shape[2], example.image.shape[3]


def _mask_title(by: Judgment) -> str:
    return f"top {100 * by.keep_ratio:g}% by {by.importance}"


def _draw(panels: Sequence[tuple[str, Tensor]], path: Path, title: str, box: Sequence[int] | None = None) -> None:
    """Draw pictures (3, S, S) in [0, 1] in a row; box: (top, left, height, width), drawn on the second."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(3.3 * len(panels), 3.7), layout="constrained")
    for ax, (name, picture) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        ax.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
        ax.set_title(figure_text(name), fontsize=9)
        ax.axis("off")
    if box is not None:
        top, left, height, width = box
        edge = Rectangle((left - 0.5, top - 0.5), width, height, fill=False, color="#ff3b30", linewidth=2)
        figure.axes[1].add_patch(edge)
    figure.suptitle(figure_text(title), fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
