"""Evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module, *, freeze: bool = False) -> Iterator[None]:
    """`model.eval()` within the context; afterwards each module is in the mode that it was in.

    freeze: parameters need no gradient meanwhile, so that a graph is kept from the first tensor on that does.
    """
    training = [m for m in model.modules() if m.training]
    trained = [p for p in model.parameters() if freeze and p.requires_grad]
    try:
        model.eval()
        for p in trained:
            p.requires_grad_(False)
        yield
    finally:
        for p in trained:
            p.requires_grad_()
        for m in training:
            m.training = True
