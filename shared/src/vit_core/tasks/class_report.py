"""Per-class results of a classifier: scikit-learn's classification report, and a figure of the confusion matrix."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import classification_report, confusion_matrix, precision_recall_fscore_support
from torch import Tensor, nn

from vit_core.explain.figure_text import figure_text
from vit_core.training.evaluation import count_hits

ANNOTATED_CLASSES = 20  # with more classes, cells are too small for numbers


def summarize(logits: Tensor, targets: Tensor, class_names: Sequence[str]) -> dict[str, Any]:
    """Accuracy, macro precision, recall and F1, all in percent; loss; per-class report, also as text.

    logits: (n, C). targets: (n,). Classes without images count as zero in the macro averages, as in scikit-learn.
    """
    logits, targets = logits.cpu(), targets.cpu()
    hits1, hits5 = count_hits(logits, targets).tolist()
    y: dict[str, Any] = {
        "y_true": targets.numpy(),
        "y_pred": logits.argmax(1).numpy(),
        "labels": list(range(len(class_names))),
        "zero_division": 0,
    }
    columns = precision_recall_fscore_support(**y)
    precision, recall, f1 = (100.0 * float(column.mean()) for column in columns[:3])
    by_class = [
        {"class": name, "precision": 100.0 * p, "recall": 100.0 * r, "f1": 100.0 * f, "images": int(n)}
        for name, p, r, f, n in zip(class_names, *(column.tolist() for column in columns), strict=True)
    ]
    return {
        "acc1": 100.0 * hits1 / len(targets),
        "acc5": 100.0 * hits5 / len(targets),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "loss": float(nn.functional.cross_entropy(logits, targets)),
        "num_images": len(targets),
        "by_class": by_class,
        "text": classification_report(target_names=list(class_names), digits=4, **y),
    }


def confusion_picture(logits: Tensor, targets: Tensor, class_names: Sequence[str], path: str | Path) -> Path:
    """Write the confusion matrix: rows are true classes, in percent of their images; columns are predicted classes."""
    from matplotlib.figure import Figure

    C = len(class_names)
    counts = confusion_matrix(targets.cpu().numpy(), logits.argmax(1).cpu().numpy(), labels=list(range(C)))
    share = torch.from_numpy(counts).double()
    share = 100 * share / share.sum(1, keepdim=True).clamp_min(1)
    side = min(3.0 + 0.45 * C, 14.0)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    ax = figure.subplots()
    shown = ax.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(shown, ax=ax, label="% of the true class", fraction=0.046, pad=0.02)
    ax.set(xlabel="predicted", ylabel="true", title=f"{len(targets):,} images, {C} classes")
    if C <= ANNOTATED_CLASSES:
        short = max(map(len, class_names)) <= 3
        names = [figure_text(name) for name in class_names]
        ax.set_xticks(range(C), names, rotation=0 if short else 45, ha="center" if short else "right")
        ax.set_yticks(range(C), names)
        for i in range(C):
            for j in range(C):
                if counts[i, j]:
                    value = float(share[i, j])
                    ax.text(
                        j,
                        i,
                        f"{value:.0f}",
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="white" if value > 50 else "black",
                    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
