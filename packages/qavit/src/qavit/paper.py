"""QAViT for `reproduce`: summary, training runs, and its own analysis of branch weights and bank."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from qavit.checks import CHECKS
from qavit.model import QAViT, QuadAttentionBlock, quad_blocks
from qavit.recipe import RECIPE
from vit_core.commands.study import Measurement, Subject
from vit_core.papers import Analysis, Benchmark, Paper, Picture, Table, Training
from vit_core.training.evaluation import evaluate
from vit_core.training.precision import choose_precision

BRANCHES = ("windows (SWA)", "dilated scales (MSDA)", "channel groups (CGA)", "bank (cross-attention)")


def analyze(subjects: Mapping[str, Subject], measurements: Sequence[Measurement], folder: Path) -> Analysis:
    """Analyze the branch weights, how much each branch contributes, and the bank's contents."""
    subject = next(iter(subjects.values()))
    model = subject.trained.model
    assert isinstance(model, QAViT)
    blocks = quad_blocks(model)
    weights = torch.stack([b.fusion.fusion_weights.detach().softmax(0) for b in blocks]).cpu()  # (blocks, 4)
    whole, count = _accuracy(subject), len(subject.dataset.val)
    without = []
    for branch in range(4):
        with _silenced(blocks, branch):
            without.append(_accuracy(subject))
    with _empty_bank(model):
        bankless = _accuracy(subject)
    alike = _mean_cosine(model.global_bank.global_k[0]), _mean_cosine(model.global_bank.global_v[0])
    _draw(weights, [whole - acc for acc in without], folder / "branches.png")
    _draw_bank(model, folder / "bank.png")
    low, high = 100 * float(weights.min()), 100 * float(weights.max())
    dearest = max(range(4), key=lambda i: whole - without[i])
    return Analysis(
        findings=[
            f"The learned softmax weights of the four branches lie between {low:.1f}% and {high:.1f}% in all blocks; "
            "equal weights would be 25%. A weight near 25% does not show that a branch is used: the layers after it "
            "can undo any scale.",
            f"The accuracy lost without a branch is more informative: it is largest for {BRANCHES[dearest]}, "
            f"{whole - without[dearest]:.1f} of {whole:.1f} points of top-1.",
            f"With the bank set to zero, the same model reaches {bankless:.1f}%. The mean cosine similarity between "
            f"its {model.config.global_bank_size} key tokens is {alike[0]:+.2f}, between its value tokens "
            f"{alike[1]:+.2f}; 1 would mean that all tokens are equal. All four branches read the bank, so this "
            "ablation affects more than removing the fourth branch.",
        ],
        pictures=[
            Picture(
                "branches.png",
                "The four branches",
                "Left: the weight of each branch in each block. Right: accuracy lost when the branch is set to zero in "
                "all blocks of the trained model, without retraining.",
            ),
            Picture(
                "bank.png",
                "The global token bank",
                "Cosine similarity of the bank's tokens, for keys and values. Red off the diagonal: similar tokens.",
            ),
        ],
        tables=[
            Table(
                "Branch weights and accuracy lost",
                f"Weights in percent; top-1 accuracy in percent of {count} images (one image: {100 / count:.2f} "
                "points).",
                ["branch", *(f"block {i}" for i in range(len(blocks))), "top-1 without it", "points lost"],
                [
                    [name, *(100 * weights[:, i]).tolist(), without[i], whole - without[i]]
                    for i, name in enumerate(BRANCHES)
                ],
            )
        ],
    )


def _accuracy(subject: Subject) -> float:
    """Top-1 accuracy in percent over the evaluation split."""
    precision = choose_precision(subject.run.train.amp, subject.world.device)
    return evaluate(subject.trained.model, subject.loader(), precision).acc1


@contextmanager
def _silenced(blocks: Sequence[QuadAttentionBlock], branch: int) -> Iterator[None]:
    """Set the output of one branch to zero in all blocks."""

    def silence(module: object, inputs: tuple[list[Tensor]]) -> tuple[list[Tensor]]:
        return ([b if i != branch else torch.zeros_like(b) for i, b in enumerate(inputs[0])],)

    hooks = [block.fusion.register_forward_pre_hook(silence) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _empty_bank(model: QAViT) -> Iterator[None]:
    """Set the bank's tokens to zero."""
    bank = model.global_bank
    kept = [p.detach().clone() for p in (bank.global_k, bank.global_v)]
    try:
        with torch.no_grad():
            bank.global_k.zero_()
            bank.global_v.zero_()
        yield
    finally:
        with torch.no_grad():
            bank.global_k.copy_(kept[0])
            bank.global_v.copy_(kept[1])


def _cosines(tokens: Tensor) -> Tensor:
    """Cosine similarities of M tokens (M, d): (M, M)."""
    directions = F.normalize(tokens.detach().cpu(), dim=1)
    return directions @ directions.T


def _mean_cosine(tokens: Tensor) -> float:
    """Mean over all pairs of different tokens."""
    M = len(tokens)
    return float((_cosines(tokens).sum() - M) / (M * (M - 1)))


def _draw(weights: Tensor, lost: Sequence[float], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, name in enumerate(BRANCHES):
        left.plot(100 * weights[:, i], "o-", label=name)
    left.axhline(25, color="black", lw=0.8, ls=":")
    left.set(xlabel="block", ylabel="weight, %", xticks=range(len(weights)))
    left.legend(fontsize=8)
    left.grid(alpha=0.3)
    right.barh(BRANCHES, lost, color=[f"C{i}" for i in range(4)])
    right.axvline(0, color="black", lw=0.8)
    right.invert_yaxis()
    right.set(xlabel="points of top-1 accuracy lost without the branch")
    figure.savefig(path, dpi=130)


def _draw_bank(model: QAViT, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, tokens, name in zip(
        axes, (model.global_bank.global_k, model.global_bank.global_v), ("keys", "values"), strict=True
    ):
        image = ax.imshow(_cosines(tokens[0]).numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
        ax.set(title=name, xlabel="bank token", ylabel="bank token")
    figure.colorbar(image, ax=axes, label="cosine similarity")
    figure.savefig(path, dpi=130)


PAPER = Paper(
    package="qavit",
    title="QAViT: Quad-Attention Vision Transformer",
    idea="A single attention pattern misses information, so QAViT runs four in parallel in each block: within small "
    "windows, over dilated scales, over channel groups, and to a small memory. This memory, the global token bank, is "
    "shared by all blocks, which read it and write to it. A learned softmax weights the four branches before a "
    "bottleneck MLP mixes them.",
    source="README of the original repository HQA_VIT (2024), whose code trains on CIFAR-100 and ImageNet.",
    citation="""@inproceedings{qavit2024,
  title     = {Quad-Attention Vision Transformer: Efficient Multi-Scale Attention for Visual Recognition},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2024},
  note      = {as the original repository asks to be cited; no such paper was found}
}""",
    model="qavit_micro",
    micro=[
        Training(
            name="digits",
            recipe=RECIPE,
            rows={"QAViT": {"model": "micro", "dataset": "digits", "epochs": 5}},
            compared=["QAViT"],
            seconds=40,
        )
    ],
    published=[
        Training(
            name="CIFAR-100",
            recipe=RECIPE,
            images=50_000,
            download_gb=0.17,
            disk_gb=0.36,
            rows={size: {"model": size, "dataset": "cifar100"} for size in ("tiny", "small")},
            compared=["tiny", "small"],
        )
    ],
    analyze=analyze,
    checks=CHECKS,
    benchmarks=[
        Benchmark(model="qavit_tiny", against="vit_tiny_patch16_224", inference=2.5, training=6.0),
        Benchmark(
            model="qavit_tiny",
            model_kwargs={"attn_drop": 0.0},
            against="vit_tiny_patch16_224",
            inference=2.5,
            training=3.0,
        ),
        Benchmark(model="qavit_small", against="vit_small_patch16_224", batch_size=4),
    ],
)
