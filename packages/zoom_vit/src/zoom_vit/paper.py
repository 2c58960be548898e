"""The ZoomViT study for `reproduce`: summary, training runs, and its own analysis of importance, zoom and pruning."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vit_core.commands.study import Measurement, Subject
from vit_core.explain import class_token_attention
from vit_core.papers import Analysis, Benchmark, Figure, Paper, Picture, Table, Training
from zoom_vit import bench_pruning, cifar_analysis_attention, pruning_curve, zoom_curve
from zoom_vit.alignment import Judgment, groups, noise_entropy, summarize, verdict
from zoom_vit.checks import CHECKS
from zoom_vit.examples import Example, draw_crop, draw_importance
from zoom_vit.experiment import Experiment
from zoom_vit.flowers_token_pruning import study
from zoom_vit.importance import IMPORTANCES
from zoom_vit.model import ZoomViT
from zoom_vit.recipe import CIFAR, FLOWERS

IMAGES = 200
KEEPS = (0.7, 0.5, 0.3, 0.1)
KEEP = 0.3  # the study's
DESCRIBED_MAP = "grad_rollout"  # what its README describes; its code takes token norms


def analyze(subjects: Mapping[str, Subject], measurements: Sequence[Measurement], folder: Path) -> Analysis:
    """Six importance maps of an image, a second pass on the crop, accuracy under pruning, and the study's claim."""
    subject = next(iter(subjects.values()))
    model = subject.trained.model
    assert isinstance(model, ZoomViT)
    experiment = Experiment(
        trained=subject.trained,
        model=model,
        dataset=subject.dataset,
        world=subject.world,
        folder=folder,
        batch_size=50,
        num_workers=0,
    )
    half = len(model.blocks) // 2
    by = Judgment(importance="token_norm", keep_ratio=KEEP, prune_layer=half)
    columns = study(experiment, by, IMAGES)
    threshold = noise_entropy(model.patch_embed.num_patches)
    intents = summarize(columns, threshold)
    says = verdict(intents, "correct")
    agreement = cifar_analysis_attention.measure(experiment, KEEP, IMAGES)
    pruned = pruning_curve.measure(experiment, list(IMPORTANCES), [half], KEEPS, IMAGES)
    pruning_curve.draw(pruned, folder / "pruning.png", pruning_curve.title_of(experiment, pruned))
    first, looks = zoom_curve.measure(experiment, ("token_norm", "random"), (KEEP,), IMAGES)
    _, images, targets = next(iter(experiment.batches(1)))
    draw_importance(experiment, images, int(targets[0]), folder / "importance.png")
    group = int(groups({k: v[:1] for k, v in columns.items()}, threshold)[0])
    example = Example(0, images, int(targets[0]), group, float(columns["entropy"][0]))
    draw_crop(experiment, example, dataclasses.replace(by, importance=DESCRIBED_MAP), folder / "zoom.png")
    at = {r["importance"]: r["acc1"] for r in pruned if r["keep_ratio"] == KEEP}
    dense, names = pruned[0]["acc1"], agreement["importances"]
    shared = agreement["agreement"][names.index("token_norm")][names.index("cls_attention")]
    return Analysis(
        findings=[
            f"With {100 * KEEP:g}% of the patches kept after block {half}, top-1 accuracy changes from {dense:.1f}% to "
            f"{at['token_norm']:.1f}% when those with the largest token norms are kept, as published, and to "
            f"{at['random']:.1f}% when random patches are kept.",
            'Claim: "Pruning is beneficial only when visual intent is correctly aligned". Accuracy change by pruning: '
            + "; ".join(f"{r['group']} {r['pruned_correct'][0]:+.1f} points" for r in intents if r["images"])
            + f". Verdict by {says}. If the good group loses less than the inverted one, compare with the placebo: "
            "grouping images by how well they survive pruning creates such a gap even with random maps. With "
            f"{IMAGES} images the intervals are wide; results on the study's full dataset are in results/README.md.",
            f"Token norms and class-token attention agree on {shared:.0f}% of the most important patches; chance is "
            f"{agreement['chance']:.0f}%.",
            *(
                f"A second pass on the crop by {r['importance']} alone reaches {r['crop_acc1']:.1f}%, the mean of both "
                f"passes {r['both_acc1']:.1f}%; the first pass reaches {first:.1f}%."
                for r in looks
            ),
        ],
        pictures=[
            Picture(
                "importance.png",
                "Six importance measures",
                "The same model and image; token_norm is the study's measure, random is the control.",
            ),
            Picture(
                "zoom.png",
                "Zoom",
                f"The box around the most important {100 * KEEP:g}% of the patches, by attention times gradient, and "
                f"the resized crop. By token norms, as published, the box covers {looks[0]['box_area']:.0f}% of the "
                "image on average, since these patches are scattered.",
            ),
            Picture(
                "pruning.png",
                "Accuracy against measured speed",
                f"Pruned after block {half}; more patches are kept from right to left. An importance measure above the "
                "dashed line is better than random.",
            ),
        ],
        tables=[_intents(intents)],
    )


def pruning_speed(device: torch.device, rounds: int) -> list[Figure]:
    """Measured speed-up of pruning after block 6, as a share of the ideal speed-up by multiply-adds."""
    return [
        Figure(
            f"ZoomViT, {row['model']}, batch {batch_size}: measured speed-up as a share of the ideal "
            f"{row['ideal']:.2f}× (multiply-adds)",
            row["share"],
            0.95,
            at_least=True,
        )
        for batch_size in (8, 32)
        for row in bench_pruning.measure(batch_size, (0.3, 0.5), 6, "token_norm", device, rounds)
        if row["model"].startswith("keep")
    ]


def _intents(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Accuracy of each intent group and its change by pruning."""
    table = [
        [r["group"], r["images"], *([r["dense_correct"], *r["pruned_correct"]] if r["images"] else ["—"] * 4)]
        for r in rows
    ]
    return Table(
        "Does pruning help where the intent is aligned?",
        f"Accuracy in percent, and its change by pruning in points with a 95% bootstrap interval, over {IMAGES} "
        "images. Placebo: random maps, used for grouping and pruning; any gain of its good group is selection bias.",
        ["intent", "images", "dense, %", "change by pruning", "from", "to"],
        table,
    )


PAPER = Paper(
    package="zoom_vit",
    title="ZoomViT study: importance maps, zoom, token pruning",
    idea="Most of an image is background, and a ViT spends as much computation on it as on the subject. The study uses "
    "the model itself to find the important patches, then zooms into them, or keeps only those patches after half of "
    "the blocks. It concludes from three images that pruning helps only if the model attends to the right region.",
    source='Public study of "Vision Transformers Need Zoomer" (anonymous, 2026): README and code.',
    citation="""@misc{zoomvit2026,
  title  = {Vision Transformers Need Zoomer: Efficient ViT with Visual Intent-Guided Zoom Adapter},
  author = {Anonymous},
  year   = {2026}
}""",
    model="zoom_vit_micro",
    micro=[
        Training(
            name="digits",
            recipe=CIFAR,
            rows={"ViT": {"model": "micro", "dataset": "digits", "epochs": 6}},
            compared=["ViT"],
            seconds=19,
        )
    ],
    published=[
        Training(
            name="CIFAR-10",
            recipe=CIFAR,
            rows={"ViT-Tiny": {"model": "tiny_patch8_32", "dataset": "cifar10"}},
            compared=["ViT-Tiny"],
            images=50_000,
            download_gb=0.17,
            disk_gb=0.36,
        ),
        Training(
            name="Flowers-102",
            recipe=FLOWERS,
            compared=["ViT-Tiny"],
            images=1_020,
            download_gb=0.35,
            disk_gb=0.7,
            rows={"ViT-Tiny": {"model": "tiny_patch16_224", "dataset": "flowers102", "eval_split": "test"}},
        ),
    ],
    analyze=analyze,
    checks=CHECKS,
    benchmarks=[
        Benchmark(
            model="zoom_vit_tiny_patch16_224",
            against="vit_tiny_patch16_224",
            batch_size=b,
            inference=1.02,
            training=None,
        )
        for b in (8, 32)
    ],
    further_benchmarks=pruning_speed,
    attention_map=class_token_attention,
)
