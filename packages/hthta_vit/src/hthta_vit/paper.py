"""HTHTA-ViT++ as `reproduce` knows it: what it is, its trainings, and its signature analysis: heads and FAP."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from hthta_vit.checks import CHECKS
from hthta_vit.focus import attention_map
from hthta_vit.model import COMPONENTS
from hthta_vit.recipe import RECIPE
from hthta_vit.visualize_attention import draw
from vit_core.commands.study import Measurement, Subject
from vit_core.explain import measure_focus
from vit_core.papers import Analysis, Benchmark, Paper, Picture, Table, Training

PICTURES = 2
FAP_IMAGES = 200


def analyse(subjects: Mapping[str, Subject], measurements: Sequence[Measurement], folder: Path) -> Analysis:
    """Each pooling head's map, how far the heads differ, and FAP with its controls."""
    rows: list[list[str | float]] = []
    findings, pictures = [], []
    for label, subject in subjects.items():
        model = subject.trained.model
        focus = measure_focus(model, subject.loader(FAP_IMAGES), attention_map)
        agreement = _agreement(subject)
        rows.append([label, focus.fap, focus.standard_error, focus.random, focus.chance, agreement])
        findings.append(
            f"{label}: {focus}. A map that knew nothing would score {focus.chance:.1f}%: that much of FAP is free."
        )
        if isinstance(agreement, float):
            findings.append(
                f"{label}: the maps of two of its pooling heads have a correlation of {agreement:.2f} on average: 1 "
                "would be the same map from all of them."
            )
    label, subject = list(subjects.items())[-1]
    images, _ = next(iter(subject.loader(PICTURES).epoch()))
    for i in range(len(images)):
        says = draw(subject.trained, images[i : i + 1], folder / f"heads_{i + 1}.png", f"test image {i + 1}")
        pictures.append(
            Picture(
                f"heads_{i + 1}.png", f"What the pooling heads of {label} look at, image {i + 1}",
                f"The model says {says}. Each panel has its own colour scale; the last shows where the mean of the "
                "heads and Grad-CAM, which FAP compares, have their top 15% of places.",
            )
        )  # fmt: skip
    heads = ["model", "FAP, %", "± standard error", "random maps, %", "chance, %", "correlation of two heads"]
    caption = f"Over {FAP_IMAGES} evaluation images. Random maps: the same images, the places of their maps shuffled."
    return Analysis(
        findings=findings, pictures=pictures, tables=[Table("Focused Attention Percentage", caption, heads, rows)]
    )


@torch.no_grad()
def _agreement(subject: Subject) -> float | str:
    """Mean correlation between the maps of two pooling heads; "—" for a model without pooling."""
    total, count = 0.0, 0
    for images, _ in subject.loader(FAP_IMAGES).epoch():
        alpha = subject.trained.model(images, return_attention=True)[1]  # (B, heads, N)
        if alpha is None:
            return "—"
        centred = alpha - alpha.mean(2, keepdim=True)
        unit = centred / centred.norm(dim=2, keepdim=True).clamp_min(1e-12)
        correlations = unit @ unit.transpose(1, 2)  # (B, heads, heads)
        H = alpha.shape[1]
        total += float(((correlations.sum((1, 2)) - H) / (H * (H - 1))).sum())
        count += len(images)
    return total / count


def _published(name: str, dataset: str, images: int, download: float = 0.0, disk: float = 0.0, where: str = "",
               data_path: str | None = None, rows: Mapping[str, dict[str, str]] | None = None) -> Training:  # fmt: skip
    """The paper's recipe on one of its four datasets."""
    place = {} if data_path is None else {"data_path": data_path}
    rows = rows or {"HTHTA-ViT++": {}}
    return Training(
        name=name, recipe=RECIPE, images=images, download_gb=download, disk_gb=disk, where=where,
        rows={label: {"model": "base", "dataset": dataset, **place, **more} for label, more in rows.items()},
        compared=[list(rows)[-1]],
    )  # fmt: skip


PAPER = Paper(
    package="hthta_vit",
    title="HTHTA-ViT++: Hierarchical GRU-Guided Token Attention",
    idea="A ViT usually classifies by one vector, that of its class token, and says little about what it looked at. "
    "HTHTA-ViT++ reads the patch tokens a second time, as a sequence, with a recurrent network that runs over them in "
    "both directions. Eight small attention heads then pool the sequence, each to a weighted mean whose weights are a "
    "map over the image, and the result is fused with the class token.",
    source="README of the original repository (preprint, MIT licence).",
    citation="""@misc{hthta_vit_pp,
  title = {HTHTA-ViT++: An Explainable and Efficient Vision Transformer with Hierarchical GRU-Guided Token Attention},
  note  = {preprint}
}""",
    model="hthta_vit_micro",
    micro=[
        Training(
            name="digits", recipe=RECIPE, rows={"HTHTA-ViT++": {"model": "micro", "dataset": "digits", "epochs": 6}},
            compared=["HTHTA-ViT++"], seconds=27,
        )
    ],
    published=[
        _published("CIFAR-100", "cifar100", 50_000, 0.17, 0.36, rows={c: {"components": c} for c in COMPONENTS}),
        _published("CIFAR-10", "cifar10", 50_000, 0.17, 0.36),
        _published("Tiny-ImageNet", "tiny_imagenet", 100_000, 0.25, 0.5),
        _published(
            "Intel", "intel", 14_034, data_path="data/intel",
            where="Intel Image Classification from Kaggle, unpacked to data/intel",
        ),
    ],
    analyse=analyse,
    checks=CHECKS,
    benchmarks=[
        Benchmark(
            model=f"hthta_vit_base_patch16_224{gru}", against="vit_base_patch16_224", batch_size=4, inference=inference,
            training=training,
        )
        for gru, inference, training in (("", 1.15, 1.25), ("_gru2", 1.30, 1.45))
    ],
    attention_map=attention_map,
)  # fmt: skip
