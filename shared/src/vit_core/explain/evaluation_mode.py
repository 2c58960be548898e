"""Temporary evaluation mode."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module, *, freeze: bool = False) -> Iterator[None]:
    """`model.eval()` inside the context; afterwards each module's training mode is restored.

    freeze: also set `requires_grad=False` for all parameters inside the context, so that no graph is built for them.
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
