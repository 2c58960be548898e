"""clear-vit for `reproduce`: description, trainings, and its analysis: the seven variants with the same budget."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clear_vit.checks import CHECKS
from clear_vit.compare import CLAIMED, draw, pairs_in_order, ranked
from clear_vit.recipe import RECIPE
from vit_core.commands.study import Measurement, Subject, column
from vit_core.explain import class_token_attention, draw_heads, measure_attention
from vit_core.papers import Analysis, Benchmark, Paper, Picture, Table, Training

IMAGES = 100
BASELINE, BEST = "baseline", "rope_mixed_ape"
VARIANTS = tuple(CLAIMED)


def analyze(subjects: Mapping[str, Subject], measurements: Sequence[Measurement], folder: Path) -> Analysis:
    """Accuracy of the variants next to the claimed order, and the attention distance that each of them learned."""
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
    draw(measurements, folder / "order.png", f"the seven variants with the same budget: {title}, {epochs} epochs")
    draw_heads(
        distances[BEST],
        folder / "distance.png",
        label="mean attention distance, pixels",
        title=BEST,
        limits=(0, max(map(max, distances[BEST]))),
    )
    first, last = rows[0], rows[-1]
    told = "(paired differences, Holm's correction)" if seeds > 1 else "(one seed gives no interval)"
    return Analysis(
        findings=[
            f"After {epochs} epochs top-1 lies between {last[1]:.1f}% ({last[0]}) and {first[1]:.1f}% ({first[0]}): "
            "this early, the order shows which variant starts to learn first, not the accuracy that each one reaches.",
            f"Of {pairs} pairs of variants, {agree} differ in the claimed direction and {against} in the opposite one "
            f"{told}. This is {epochs} epochs of a small model on {title}, where the initialization of the position "
            "embedding matters more than the variant: it demonstrates the comparison, and is no evidence about which "
            "variant is best.",
        ],
        pictures=[
            Picture(
                "order.png",
                "Measured order and claimed order",
                "Left: ours, best at the top. Right: claimed, ImageNet-100 after 90 epochs. Lines connect a variant.",
            ),
            Picture(
                "distance.png",
                f"Attention distance of the heads of {BEST}",
                f"Mean distance in pixels between a query and the keys it attends to, over {IMAGES} images; one cell "
                "per head.",
            ),
        ],
        tables=[
            Table(
                "The seven variants",
                "Top-1 on the evaluation images; distance in pixels and entropy (1: uniform) of "
                f"the attention, means over blocks, heads and {IMAGES} images.",
                [
                    "variant",
                    "top-1, %",
                    "vs. baseline, points",
                    "claimed vs. baseline",
                    "attention distance, px",
                    "attention entropy",
                ],
                rows,
            )
        ],
    )


def _bench(variant: str, inference: float, training: float) -> Benchmark:
    return Benchmark(
        model=f"clear_vit_tiny_{variant}",
        against="vit_tiny_patch16_224",
        against_kwargs={"img_size": 256},
        inference=inference,
        training=training,
    )


PAPER = Paper(
    package="clear_vit",
    title="clear-vit: seven attention and position variants of one ViT-Tiny",
    idea="One small ViT and six changes to it, according to the paper trained under identical settings, so that any "
    "difference is due to the change. Three changes concern the position encoding (dropout on it, RoPE, RoPE with a "
    "learned embedding), three the attention (suppression of neighbors, differences between neighbors, a difference of "
    "two maps weighted by entropy). The paper claims that RoPE with a learned embedding gains almost nine points.",
    source="README and code of 4adex/clear-vit; code was published for four of the seven variants, the other three are "
    "our reading.",
    citation="""@misc{clearvit,
  title        = {clear-vit: Vision Transformers (ViT)},
  howpublished = {https://github.com/4adex/clear-vit}
}""",
    model="clear_vit_micro_baseline",
    micro=[
        Training(
            name="digits",
            recipe=RECIPE,
            compared=[BASELINE, BEST],
            seconds=11,
            rows={v: {"model": f"micro_{v}", "dataset": "digits", "epochs": 3} for v in VARIANTS},
        )
    ],
    published=[
        Training(
            name="ImageNet-100",
            recipe=RECIPE,
            compared=[BASELINE, BEST],
            images=130_000,
            rows={
                v: {"model": v, "dataset": "imagenet100", "data_path": "data/imagenet100", "preset": "original"}
                for v in VARIANTS
            },
            where="ImageNet-100 from Kaggle, unpacked to data/imagenet100",
        )
    ],
    analyze=analyze,
    checks=CHECKS,
    benchmarks=[
        *(_bench(v, 1.05, 1.05) for v in (BASELINE, "pos_dropout", "rope", BEST)),
        _bench("diff_similarity", 1.1, 1.1),
        _bench("suppression", 1.25, 1.25),
        _bench("diff_entropy", 1.35, 1.35),
    ],
    attention_map=class_token_attention,
)
