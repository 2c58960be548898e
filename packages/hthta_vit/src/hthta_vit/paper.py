"""HTHTA-ViT++ for `reproduce`: summary, training runs, and its own analysis of pooling heads and FAP."""

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


def analyze(subjects: Mapping[str, Subject], measurements: Sequence[Measurement], folder: Path) -> Analysis:
    """The map of each pooling head, the correlation between heads, and FAP with its controls."""
    rows: list[list[str | float]] = []
    findings, pictures = [], []
    for label, subject in subjects.items():
        model = subject.trained.model
        focus = measure_focus(model, subject.loader(FAP_IMAGES), attention_map)
        agreement = _agreement(subject)
        rows.append([label, focus.fap, focus.standard_error, focus.random, focus.chance, agreement])
        findings.append(
            f"{label}: {focus}. A random map would score {focus.chance:.1f}%: only the excess is meaningful."
        )
        if isinstance(agreement, float):
            findings.append(
                f"{label}: the mean correlation between the maps of two pooling heads is {agreement:.2f}; 1 would mean "
                "that all heads have the same map."
            )
    label, subject = list(subjects.items())[-1]
    images, _ = next(iter(subject.loader(PICTURES).epoch()))
    for i in range(len(images)):
        says = draw(subject.trained, images[i : i + 1], folder / f"heads_{i + 1}.png", f"test image {i + 1}")
        pictures.append(
            Picture(
                f"heads_{i + 1}.png",
                f"Attention of the pooling heads of {label}, image {i + 1}",
                f"Prediction: {says}. Each panel has its own color scale. The last panel shows the top 15% positions "
                "of the heads' mean and of Grad-CAM, which FAP compares.",
            )
        )
    heads = ["model", "FAP, %", "± standard error", "random maps, %", "chance, %", "correlation of two heads"]
    caption = f"On {FAP_IMAGES} evaluation images. Random maps: the same maps with their positions shuffled."
    return Analysis(
        findings=findings, pictures=pictures, tables=[Table("Focused Attention Percentage", caption, heads, rows)]
    )


@torch.no_grad()
def _agreement(subject: Subject) -> float | str:
    """Mean correlation between the maps of two pooling heads; "—" for a model without attention pooling."""
    total, count = 0.0, 0
    for images, _ in subject.loader(FAP_IMAGES).epoch():
        alpha = subject.trained.model(images, return_attention=True)[1]  # (B, heads, N)
        if alpha is None:
            return "—"
        centered = alpha - alpha.mean(2, keepdim=True)
        unit = centered / centered.norm(dim=2, keepdim=True).clamp_min(1e-12)
        correlations = unit @ unit.transpose(1, 2)  # (B, heads, heads)
        H = alpha.shape[1]
        total += float(((correlations.sum((1, 2)) - H) / (H * (H - 1))).sum())
        count += len(images)
    return total / count


def _published(
    name: str,
    dataset: str,
    images: int,
    download: float = 0.0,
    disk: float = 0.0,
    where: str = "",
    data_path: str | None = None,
    rows: Mapping[str, dict[str, str]] | None = None,
) -> Training:
    """The paper's recipe on one of its four datasets."""
    place = {} if data_path is None else {"data_path": data_path}
    rows = rows or {"HTHTA-ViT++": {}}
    return Training(
        name=name,
        recipe=RECIPE,
        images=images,
        download_gb=download,
        disk_gb=disk,
        where=where,
        rows={label: {"model": "base", "dataset": dataset, **place, **more} for label, more in rows.items()},
        compared=[list(rows)[-1]],
    )


PAPER = Paper(
    package="hthta_vit",
    title="HTHTA-ViT++: Hierarchical GRU-Guided Token Attention",
    idea="A ViT usually classifies by its class token alone, which shows little of what the model looked at. "
    "HTHTA-ViT++ also processes the patch tokens as a sequence, with a bidirectional recurrent network. Eight small "
    "attention heads then pool the sequence, each to a weighted mean whose weights form a map over the image, and the "
    "result is fused with the class token.",
    source="README of the original repository (preprint, MIT license).",
    citation="""@misc{hthta_vit_pp,
  title = {HTHTA-ViT++: An Explainable and Efficient Vision Transformer with Hierarchical GRU-Guided Token Attention},
  note  = {preprint}
}""",
    model="hthta_vit_micro",
    micro=[
        Training(
            name="digits",
            recipe=RECIPE,
            rows={"HTHTA-ViT++": {"model": "micro", "dataset": "digits", "epochs": 6}},
            compared=["HTHTA-ViT++"],
            seconds=27,
        )
    ],
    published=[
        _published("CIFAR-100", "cifar100", 50_000, 0.17, 0.36, rows={c: {"components": c} for c in COMPONENTS}),
        _published("CIFAR-10", "cifar10", 50_000, 0.17, 0.36),
        _published("Tiny-ImageNet", "tiny_imagenet", 100_000, 0.25, 0.5),
        _published(
            "Intel",
            "intel",
            14_034,
            data_path="data/intel",
            where="Intel Image Classification from Kaggle, unpacked to data/intel",
        ),
    ],
    analyze=analyze,
    checks=CHECKS,
    benchmarks=[
        Benchmark(
            model=f"hthta_vit_base_patch16_224{gru}",
            against="vit_base_patch16_224",
            batch_size=4,
            inference=inference,
            training=training,
        )
        for gru, inference, training in (("", 1.15, 1.25), ("_gru2", 1.30, 1.45))
    ],
    attention_map=attention_map,
)
