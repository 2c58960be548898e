"""SelectiveViT for `reproduce`: description, trainings, and its analysis of the dense and the selective model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from selective_vit.bench_attention import measure, ratio_to_sdpa
from selective_vit.checks import CHECKS
from selective_vit.explain import draw
from selective_vit.model import thresholds
from selective_vit.recipe import NOTEBOOK_MODEL, PAIRS, RECIPE
from vit_core.commands.study import Measurement, Subject
from vit_core.explain import class_token_attention, denormalize, draw_heads, measure_sparsity
from vit_core.papers import Analysis, Benchmark, Figure, Paper, Picture, Table, Training

IMAGES = 200
THRESHOLD = 0.01  # the paper's
LABELS = ("dense ViT", "SelectiveViT")


def analyze(subjects: Mapping[str, Subject], measurements: Sequence[Measurement], folder: Path) -> Analysis:
    """Sparsity by block of both models, active tokens per head, and their explanations side by side."""
    trackers = {}
    for label, subject in subjects.items():
        selective = bool(thresholds(subject.trained.model))
        trackers[label] = measure_sparsity(
            subject.trained.model, subject.loader(IMAGES), 0.0 if selective else THRESHOLD
        )
    layers = list(next(iter(trackers.values())).layers)
    rows: list[list[str | float]] = []
    for block, name in enumerate(layers):
        cells = [100 * float(t.layers[name].sparsity.mean()) for t in trackers.values()]
        rows.append([f"block {block}", *cells, 100 * float(trackers[LABELS[1]].layers[name].single_rows.mean())])
    means = {label: 100 * t.mean("sparsity") for label, t in trackers.items()}
    keys = trackers[LABELS[1]].layers[layers[0]].keys
    draw_heads(
        [layer.active_tokens.tolist() for layer in trackers[LABELS[1]].layers.values()],
        folder / "active_tokens.png",
        label=f"active tokens of {keys}",
        title="SelectiveViT: tokens that a query still attends to",
        limits=(0, keys),
    )
    chosen = [subjects[label] for label in LABELS]
    image = next(iter(chosen[0].loader(1).epoch()))[0][0]
    settings = chosen[0].trained.settings
    pixels = (255 * denormalize(image, settings["mean"], settings["std"])).round().byte().cpu()
    says = draw([s.trained for s in chosen], pixels, folder / "side_by_side.png", "one test image")
    return Analysis(
        findings=[
            f"At τ = {THRESHOLD:g} and {keys} tokens, where a uniform weight is 1/{keys} = {1 / keys:.4f}, "
            f"{means[LABELS[1]]:.1f}% of SelectiveViT's weights are zero (claimed: about 70%, with 197 tokens). In the "
            f"dense model, {means[LABELS[0]]:.1f}% of the weights are below the same threshold.",
            "Here both are trained from random weights, not from a pretrained ViT as in the paper, and one seed with "
            "few epochs does not show which is better. Neither do two seeds of seven thresholds (results/README.md).",
        ],
        pictures=[
            Picture(
                "side_by_side.png",
                "Both models on the same image",
                f"{says}. Top: the dense model; bottom: the selective one. Grad-CAM, Captum's LayerGradCam with tokens "
                "presented as a grid, attention rollout. Each panel has its own color scale.",
            ),
            Picture(
                "active_tokens.png",
                "Active tokens per head",
                f"How many of {keys} tokens a query attends to after the threshold, mean over {IMAGES} images.",
            ),
        ],
        tables=[
            Table(
                "Sparsity by block",
                f"Percent of attention weights below τ = {THRESHOLD:g}, over {IMAGES} images: for the dense model "
                "those that the threshold would remove, for the selective one those that it removed. Last column: "
                "queries that attend to at most one token.",
                ["block", f"{LABELS[0]}: below τ", f"{LABELS[1]}: zero", "at most one token"],
                rows,
            )
        ],
    )


def _rows(pair: str, selective: Mapping[str, object], **more: object) -> dict[str, dict[str, object]]:
    """The plain and the selective model; selective: additional flags of the selective one."""
    dense, sparse = PAIRS[pair]
    return {LABELS[0]: {"model": dense, **more}, LABELS[1]: {"model": sparse, **more, **selective}}


def _bench(inference: float, training: float, **kwargs: object) -> Benchmark:
    return Benchmark(
        model="selective_vit_base_patch16_224",
        model_kwargs=kwargs,
        against="vit_base_patch16_224",
        batch_size=4,
        inference=inference,
        training=training,
    )


def layer_speed(device: torch.device, rounds: int) -> list[Figure]:
    """Time of one attention layer of ViT-B/16 relative to torch's fused attention, in inference."""
    times = measure((8, 12, 197, 64), THRESHOLD, ("auto",), device, max(rounds, 31))
    return [
        Figure(f"SelectiveViT, one layer ({name}), inference time relative to SDPA", ratio_to_sdpa(times, name), 1.15)
        for name in times
        if name != "SDPA"
    ]


PAPER = Paper(
    package="selective_vit",
    title="SelectiveViT: Sparse Attention by a Threshold",
    idea="In a ViT every patch attends to every other patch, if only a little, and its attention maps are diffuse. "
    "SelectiveViT sets attention weights below a threshold τ to zero after the softmax and renormalizes the rest. No "
    "parameters are added, and the paper claims that the model becomes both more interpretable and more accurate.",
    source="README, PDF and notebook of the original repository; the notebook fine-tunes ViT-Base on CIFAR-10.",
    citation="""@misc{selectivevit,
  title = {SelectiveViT: Improving Vision Transformer Interpretability via Sparse Attention},
  note  = {public repository}
}""",
    model="selective_vit_micro",
    micro=[
        Training(
            name="digits",
            recipe=RECIPE,
            rows=_rows("both_micro", {}, dataset="digits", epochs=8),
            compared=LABELS,
            seconds=25,
        )
    ],
    published=[
        Training(
            name="CIFAR-10",
            recipe=RECIPE,
            rows=_rows("both", NOTEBOOK_MODEL, dataset="cifar10"),
            compared=LABELS,
            images=50_000,
            download_gb=0.17,
            disk_gb=0.36,
        )
    ],
    analyze=analyze,
    checks=CHECKS,
    benchmarks=[_bench(1.02, 1.02), _bench(1.02, 1.02, threshold=0.004)],
    further_benchmarks=layer_speed,
    attention_map=class_token_attention,
)
