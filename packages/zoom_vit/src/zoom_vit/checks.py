"""What claims.yaml's instant entries measure: the study's published figures, its model, its recipes and its zoom.

Pruning and importance are in `pruning_checks`. Weights are random: every property is one of the computation, not of
what was learned.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F

import zoom_vit  # noqa: F401 -- registers the models with timm
from vit_core.bench import multiply_adds
from vit_core.claims import Value
from vit_core.recipe import Recipe, settle
from zoom_vit import pruning_checks
from zoom_vit.pruning_checks import KEEP, flowers_model
from zoom_vit.recipe import CIFAR, FLOWERS
from zoom_vit.zoom import attenuate_background, crop_zoom, zoom_boxes, zoom_mask

Check = Callable[[], Value]


# ── the published figures ────────────────────────────────────────────────────────────────────────────────────────


class Published(NamedTuple):
    """One of the study's three images: confidence in percent and predicted class, dense and pruned."""

    dense: float
    dense_class: int
    pruned: float
    pruned_class: int


IMAGES = {  # of Flowers-102's test split: 1143, 5238, 204
    "good": Published(3.29, 84, 3.46, 71),
    "inverted": Published(3.19, 23, 3.10, 25),
    "diffuse": Published(5.53, 6, 5.19, 6),
}


def _change(intent: str) -> Check:
    def check() -> float:
        return round(IMAGES[intent].pruned - IMAGES[intent].dense, 2)

    check.__doc__ = (
        f"Arithmetic on the published figures: pruned less dense confidence of the {intent} image, in points."
    )
    return check


def good_class_when_pruned() -> int:
    """Arithmetic on the published figures: the class that the pruned model gives the good image."""
    return IMAGES["good"].pruned_class


def images_of_good_intent() -> int:
    """Arithmetic on the published figures: images of good alignment whose confidence pruning raises."""
    return sum(name == "good" and image.pruned > image.dense for name, image in IMAGES.items())


# ── model and recipe ─────────────────────────────────────────────────────────────────────────────────────────────


def blocks() -> int:
    """Number of blocks of zoom_vit_tiny_patch16_224."""
    return len(flowers_model().blocks)


def learned_places() -> int:
    """Length of zoom_vit_tiny_patch16_224's position embedding: the class token and the patches."""
    return int(flowers_model().pos_embed.shape[1])


def _cells(name: str, classes: int) -> Check:
    def check() -> int:
        with torch.device("meta"):
            model: Any = timm.create_model(name, num_classes=classes)
        return math.prod(model.patch_embed.grid_size)

    check.__doc__ = f"Cells of an importance map: patches of {name}."
    return check


def _setting(recipe: Recipe, name: str) -> Check:
    def check() -> Value:
        run = settle(recipe, {}, None)
        value: Value = (vars(run.data) | vars(run.train) | vars(run.augment))[name]
        return value

    check.__doc__ = f"The value of {name} in the published preset of {recipe.command}-train: a setting, not a result."
    return check


def deit_small() -> float:
    """Multiply-adds of DeiT-S, the peers' model, counted, in 10⁹."""
    with torch.device("meta"), torch.no_grad():
        model, image = timm.create_model("deit_small_patch16_224").eval(), torch.zeros(1, 3, 224, 224)
        return multiply_adds(lambda: model(image)) / 1e9


# ── zoom ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def crop_to_formula() -> float:
    """Largest difference of pixels between our batched crops and the study's way, image by image: the box of the top
    patches, bilinearly enlarged to the full side by torch.
    """
    images, maps = torch.randn(8, 3, 224, 224), torch.rand(8, 14, 14)
    worst = 0.0
    for image, heat, crop in zip(images, maps, crop_zoom(images, maps, 0.02), strict=True):
        top = heat.flatten().topk(max(1, int(0.02 * 196))).indices
        edges = []
        for cells in (top // 14, top % 14):
            first, last = int(cells.min()) * 16, (int(cells.max()) + 1) * 16
            more = max(0, 64 - (last - first)) // 2
            edges.append(slice(max(0, first - more), min(224, last + more)))
        expected = F.interpolate(image[None, :, edges[0], edges[1]], (224, 224), mode="bilinear", align_corners=False)
        worst = max(worst, float((crop - expected[0]).abs().max()))
    return worst


def smallest_crop() -> int:
    """Side in pixels of the crop around a single patch in the middle of a 224 × 224 image."""
    centre = torch.zeros(1, 14, 14)
    centre[0, 7, 7] = 1
    return int(zoom_boxes(centre, 0.001, (224, 224))[0, 2:].max())


def background_strength() -> float:
    """What a white image's background is multiplied by where the mask is zero."""
    mask = zoom_mask(torch.rand(1, 14, 14), KEEP, (224, 224))
    return round(float(attenuate_background(torch.ones(1, 3, 224, 224), mask)[:, :, mask[0, 0] == 0].mean()), 6)


def shown_share() -> float:
    """Percentage of the pixels that the mask with keep 0.3 leaves as they are."""
    return 100 * float(zoom_mask(torch.rand(4, 14, 14), KEEP, (224, 224)).mean())


SETTINGS = ("dataset", "optimizer", "lr", "batch_size", "epochs", "normalize", "hflip")
CHECKS: dict[str, Check] = {
    **{f"change_{intent}": _change(intent) for intent in IMAGES},
    "cells_cifar": _cells("zoom_vit_tiny_patch8_32", 10), "cells_flowers": _cells("zoom_vit_tiny_patch16_224", 102),
    **{f"cifar_{name}": _setting(CIFAR, name) for name in SETTINGS},
    **{f"flowers_{name}": _setting(FLOWERS, name) for name in SETTINGS},
    **{
        f.__name__: f for f in (
            good_class_when_pruned, images_of_good_intent, blocks, learned_places, deit_small, crop_to_formula,
            smallest_crop, background_strength, shown_share,
        )
    },
    **pruning_checks.CHECKS,
}  # fmt: skip
