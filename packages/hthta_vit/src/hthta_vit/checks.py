"""Checks of claims.yaml's instant entries: formulas, behavior, and arithmetic on published numbers.

Formulas and behavior are measured on small modules with random weights. Counts, at the paper's sizes, are in
`hthta_vit.count_checks`.
"""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from hthta_vit.ablation_study import CLAIMED
from hthta_vit.count_checks import COUNTS
from hthta_vit.model import AttentionPooling, ClassTokenFusion, SequenceModel
from vit_core.ledger.claims import Value

# README, performance results, and paper, Table II: accuracies in percent.
DATASETS = ("Intel", "CIFAR-10", "CIFAR-100", "Tiny-ImageNet")
BENCHMARK = {
    "ViT-B/16": dict(zip(DATASETS, (93.1, 96.5, 84.6, 76.8), strict=True)),
    "ConvNeXt-B": dict(zip(DATASETS, (95.8, 98.1, 89.2, 82.6), strict=True)),
    "HTHTA-ViT++": dict(zip(DATASETS, (97.9, 98.7, 93.3, 88.9), strict=True)),
}
GFLOPS = {"ViT-B/16": 17.6, "HTHTA-ViT++": 15.3}  # paper, Table II
# Paper, Table III (CIFAR-10, by class) and the diagonal of Fig. 5's confusion matrix, 1,000 images per class.
PRECISION = (0.97, 0.99, 0.95, 0.93, 0.96, 0.94, 0.98, 0.99, 0.98, 0.98)
RECALL = (0.98, 0.99, 0.94, 0.92, 0.97, 0.95, 0.99, 0.98, 0.99, 0.97)
F1 = (0.98, 0.99, 0.95, 0.93, 0.96, 0.95, 0.98, 0.99, 0.98, 0.98)
DIAGONAL = (991, 992, 992, 968, 992, 965, 996, 989, 998, 979)
LATENCY = {"ViT-B/16": 5.6, "HTHTA-ViT++": 6.2}  # paper, Fig. 3
# Paper, Table I: row -> (accuracy, FAP).
ABLATION = {row: (float(acc), float(fap)) for row, (acc, fap) in CLAIMED.items()}
FULL, POOLED, GRU_ONLY, PLAIN = "bigru+pooling+fusion", "bigru+pooling", "bigru", "none"


# ── formulas ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _largest(difference: Tensor) -> float:
    return float(difference.detach().abs().max())


def pooling_difference() -> Value:
    """Largest difference between the pooled vectors and the printed formula, computed head by head, token by token."""
    dim, heads, width = 12, 3, 5
    pooling, h = AttentionPooling(dim, heads, width).double(), torch.randn(7, dim, dtype=torch.float64)
    contexts = pooling(h[None])[0][0].unflatten(0, (heads, dim))
    worst = 0.0
    for j in range(heads):
        W, b = (t[width * j : width * (j + 1)] for t in (pooling.proj.weight, pooling.proj.bias))
        e = torch.stack([pooling.score[j] @ torch.tanh(W @ h_i + b) for h_i in h])
        a = e.exp() / e.exp().sum()
        worst = max(worst, _largest(contexts[j] - sum(a_i * h_i for a_i, h_i in zip(a, h, strict=True))))
    return worst


def fusion_difference() -> Value:
    """Largest difference between the fused vector and γ cls + (1 − γ) p + β cls p, computed element by element."""
    fusion = ClassTokenFusion(6, 2, 0.3, 0.2, fusion=True).double()
    cls, contexts = torch.randn(6, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    W, b = fusion.projection.weight, fusion.projection.bias
    gamma, beta = fusion.gamma.item(), fusion.beta.item()
    fused = fusion(cls[None], contexts[None])[0]
    p = [sum(W[i, k] * contexts[k] for k in range(12)) + b[i] for i in range(6)]
    return max(_largest(fused[i] - (gamma * cls[i] + (1 - gamma) * p[i] + beta * cls[i] * p[i])) for i in range(6))


# ── behavior ────────────────────────────────────────────────────────────────────────────────────────────────────


def token_pairs_that_interact() -> Value:
    """Percent of ordered pairs (i, j) of patch tokens for which the sequence model's output i depends on input j."""
    part, x = SequenceModel(8, 1).double(), torch.randn(1, 6, 8, dtype=torch.float64, requires_grad=True)
    out = part(x)
    grads = [torch.autograd.grad(out[0, i].sum(), x, retain_graph=True)[0][0] for i in range(6)]
    depends = torch.stack([g.abs().sum(-1) > 0 for g in grads])
    return 100 * float(depends.double().mean())


# ── arithmetic on published numbers ──────────────────────────────────────────────────────────────────────────────────


def _mean_recall() -> float:
    return 100 * statistics.fmean(RECALL)


def mean_recall() -> Value:
    """Mean of Table III's recalls, which is the accuracy, since each class has 1,000 images."""
    return {"HTHTA-ViT++": {"CIFAR-10": _mean_recall()}}


def mean_recall_value() -> Value:
    """Mean of Table III's recalls, in percent."""
    return _mean_recall()


def confusion_accuracy() -> Value:
    """Images on the diagonal of Fig. 5's confusion matrix, in percent of 10,000."""
    return {"HTHTA-ViT++": {"CIFAR-10": sum(DIAGONAL) / 100}}


def macro_averages() -> Value:
    """Means of Table III's columns over the ten classes."""
    columns = {"precision": PRECISION, "recall": RECALL, "F1": F1}
    return {"macro": {name: statistics.fmean(values) for name, values in columns.items()}}


def _lead(dataset: str) -> float:
    return BENCHMARK["HTHTA-ViT++"][dataset] - max(BENCHMARK[m][dataset] for m in ("ViT-B/16", "ConvNeXt-B"))


def improvements() -> Value:
    """HTHTA-ViT++'s accuracy minus that of the better of the table's other two models, for each dataset."""
    return {dataset: {"points": _lead(dataset)} for dataset in DATASETS}


def largest_lead() -> Value:
    """HTHTA-ViT++'s largest lead in accuracy over the better of the table's other two models."""
    return max(map(_lead, DATASETS))


def table_flops_saved() -> Value:
    """Percent by which Table II's 15.3 GFLOPs are below its 17.6."""
    return 100 * (1 - GFLOPS["HTHTA-ViT++"] / GFLOPS["ViT-B/16"])


def latency_overhead() -> Value:
    """Percent by which Fig. 3's 6.2 is above its 5.6."""
    return 100 * (LATENCY["HTHTA-ViT++"] / LATENCY["ViT-B/16"] - 1)


def ablation_steps() -> Value:
    """Gain of each row of Table I over the previous row, in accuracy and FAP."""
    steps = {"BiGRU": (GRU_ONLY, PLAIN), "pooling": (POOLED, GRU_ONLY), "fusion": (FULL, POOLED)}
    return {
        name: {column: ABLATION[row][i] - ABLATION[before][i] for i, column in enumerate(("top-1", "FAP"))}
        for name, (row, before) in steps.items()
    }


CHECKS: dict[str, Callable[[], Value]] = COUNTS | {
    check.__name__: check
    for check in (
        pooling_difference,
        fusion_difference,
        token_pairs_that_interact,
        mean_recall,
        mean_recall_value,
        confusion_accuracy,
        macro_averages,
        improvements,
        largest_lead,
        table_flops_saved,
        latency_overhead,
        ablation_steps,
    )
}
