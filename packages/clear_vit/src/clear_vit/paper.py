"""clear-vit as `reproduce` knows it: what it is, its trainings, its signature analysis: the seven under one budget."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import clear_vit  # noqa: F401 -- registers the models with timm
from clear_vit.checks import CHECKS
from clear_vit.compare import CLAIMED, draw, pairs_in_order, ranked
from clear_vit.recipe import RECIPE
from vit_core.commands.study import Measurement, Subject, column
from vit_core.explain import class_token_attention, draw_heads, measure_attention
from vit_core.papers import Analysis, Benchmark, Paper, Picture, Table, Training

IMAGES = 100
BASELINE, BEST = "baseline", "rope_mixed_ape"
VARIANTS = tuple(CLAIMED)


def analyse(subjects: Mapping[str, Subject], measurements: Sequence[Measurement], folder: Path) -> Analysis:
    """Accuracy of the variants beside the claimed order, and what attention distance each of them learned."""
    rows: list[list[Any]] = []
    distances = {}
    base = statistics.fmean(column(measurements, BASELINE, "acc1"))
    for variant in ranked(measurements):
        found = measure_attention(subjects[variant].trained.model, subjects[variant].loader(IMAGES))
        layers = list(found.layers.values())
        distances[variant] = [layer.distance.tolist() for layer in layers]
        accuracy = statistics.fmean(column(measurements, variant, "acc1"))
        mean = statistics.fmean(float(layer.distance.mean()) for layer in layers)
        entropy = statistics.fmean(float(layer.entropy.mean()) for layer in layers)
        gap = CLAIMED[variant][0] - CLAIMED[BASELINE][0]
        rows.append([variant, accuracy, accuracy - base, gap, mean, entropy])
    agree, against, pairs = pairs_in_order(measurements)
    seeds = len({int(m["seed"]) for m in measurements})
    title = next(iter(subjects.values())).dataset.name
    epochs = next(iter(subjects.values())).run.train.epochs
    draw(measurements, folder / "order.png", f"the seven variants under one budget: {title}, {epochs} epochs")
    draw_heads(
        distances[BEST], folder / "distance.png", label="mean attention distance, pixels", title=BEST,
        limits=(0, max(map(max, distances[BEST]))),
    )  # fmt: skip
    first, last = rows[0], rows[-1]
    told = "by paired differences, Holm's correction" if seeds > 1 else "since one seed has no interval"
    return Analysis(
        findings=[
            f"After {epochs} epochs top-1 lies between {last[1]:.1f}% ({last[0]}) and {first[1]:.1f}% ({first[0]}): so "
            "early the order is that of who begins to learn first, not of what each reaches.",
            f"Of {pairs} pairs of variants {agree} differ in the claimed direction and {against} in the other, {told}. "
            f"This is {epochs} epochs of a small model on {title}, where an initial value of the position embedding "
            "decides more than the variant does: it shows how the comparison is made, and says nothing about which "
            "variant is best.",
        ],
        pictures=[
            Picture(
                "order.png", "The order here and the claimed one",
                "Left: ours, the best on top. Right: claimed, ImageNet-100 after 90 epochs. Lines join a variant.",
            ),
            Picture(
                "distance.png", f"How far the heads of {BEST} look",
                f"Mean distance in pixels between a query and what it attends to, over {IMAGES} images, a cell a head.",
            ),
        ],
        tables=[
            Table(
                "The seven variants", "Top-1 of the evaluation images; distance in pixels and entropy (1: uniform) of "
                f"the attention, means over blocks, heads and {IMAGES} images.",
                ["variant", "top-1, %", "to baseline, points", "claimed to baseline", "attention distance, px",
                 "attention entropy"], rows,
            )
        ],
    )  # fmt: skip


def _bench(variant: str, inference: float, training: float) -> Benchmark:
    return Benchmark(
        model=f"clear_vit_tiny_{variant}", against="vit_tiny_patch16_224", against_kwargs={"img_size": 256},
        inference=inference, training=training,
    )  # fmt: skip


PAPER = Paper(
    package="clear_vit",
    title="clear-vit: seven attention and position variants of one ViT-Tiny",
    idea="One small ViT and six changes to it, said to be trained under the same settings, so that the change decides. "
    "Three concern how a patch's place enters (dropout on it, rotary positions, rotary and learned ones together), "
    "three how attention is computed (suppression of neighbours, differences between neighbours, a difference of two "
    "maps weighed by entropy). Claimed is that rotary and learned positions together win by almost nine points.",
    source="README and code of 4adex/clear-vit; the code of four of the seven was published, three are our reading.",
    citation="""@misc{clearvit,
  title        = {clear-vit: Vision Transformers (ViT)},
  howpublished = {https://github.com/4adex/clear-vit}
}""",
    model="clear_vit_micro_baseline",
    micro=[
        Training(
            name="digits", recipe=RECIPE, compared=[BASELINE, BEST], seconds=11,
            rows={v: {"model": f"micro_{v}", "dataset": "digits", "epochs": 3} for v in VARIANTS},
        )
    ],
    published=[
        Training(
            name="ImageNet-100", recipe=RECIPE, compared=[BASELINE, BEST], images=130_000,
            rows={
                v: {"model": v, "dataset": "imagenet100", "data_path": "data/imagenet100", "preset": "original"}
                for v in VARIANTS
            },
            where="ImageNet-100 from Kaggle, unpacked to data/imagenet100",
        )
    ],
    analyse=analyse,
    checks=CHECKS,
    benchmarks=[
        *(_bench(v, 1.05, 1.05) for v in (BASELINE, "pos_dropout", "rope", BEST)), _bench("diff_similarity", 1.1, 1.1),
        _bench("suppression", 1.25, 1.25), _bench("diff_entropy", 1.35, 1.35),
    ],
    attention_map=class_token_attention,
)  # fmt: skip
