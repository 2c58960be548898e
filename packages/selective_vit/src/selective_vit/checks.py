"""Checks for claims.yaml: numbers of README and PDF, and the notebook's attention.

The attention is computed by our layer; tests/selective_vit/test_attention.py tests its parity with the original's.
"""

from collections.abc import Callable

import torch

from selective_vit.attention import Selection, selective_attention
from vit_core.ledger.claims import Value

# README, table Results: epoch -> accuracy in percent on CIFAR-10 of ViT-Base and of SelectiveViT.
README = {10: (80.65, 81.77), 30: (83.01, 86.02), 50: (84.62, 87.89), 70: (85.47, 89.11)}
PDF = (80.6, 85.2)  # section 9, after 10 epochs by section 6


def readme_gain() -> Value:
    """From the README's table: SelectiveViT's accuracy minus ViT-Base's, after 70 epochs."""
    dense, selective = README[70]
    return selective - dense


def pdf_results() -> Value:
    """The PDF's table of section 9, as the README table's row for the same epoch."""
    return {"epoch 10": dict(zip(("ViT-Base", "SelectiveViT"), PDF, strict=True))}


def notebook_attention() -> Value:
    """A layer with the notebook's gate, 17 tokens, τ = 0.05, random values in float64: percent of the softmax weights
    up to τ that are removed, percent of those over τ that are kept, and the smallest and largest sum of non-empty rows.
    """
    tau, tokens = 0.05, 17
    q, k = 2 * torch.randn(2, 2, 3, tokens, 8, dtype=torch.float64)
    weights = (q @ k.transpose(-2, -1) / 8**0.5).softmax(-1)
    passes = weights > tau
    unit = torch.eye(tokens, dtype=weights.dtype).expand(
        2, 3, tokens, tokens
    )  # as values, so that the output is the weights
    applied = selective_attention(q, k, unit, tau, Selection(mode="hard", empty_row="zero"))
    sums = applied.sum(-1)[passes.any(-1)]
    return {
        "attention": {
            "weights up to the threshold that are removed, %": 100 * float((applied[~passes] == 0).double().mean()),
            "weights over the threshold that are kept, %": 100 * float((applied[passes] > 0).double().mean()),
            "smallest sum of a row": float(sums.min()),
            "largest sum of a row": float(sums.max()),
        }
    }


CHECKS: dict[str, Callable[[], Value]] = {
    "readme_gain": readme_gain,
    "pdf_results": pdf_results,
    "notebook_attention": notebook_attention,
}
