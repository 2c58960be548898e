"""Behavior checks of claims.yaml's instant entries: which token attends to which, and the bank.

Measured on one block of QAViT-Tiny at 224 × 224, or on the micro model, with random weights, without dropout, in
float64, where rounding errors are far smaller than every effect.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qavit.bank import Bank
from qavit.model import QAViT, QuadAttentionBlock, quad_blocks
from qavit.registry import qavit_micro, qavit_tiny
from vit_core.ledger.claims import Value


def _model(build: Callable[..., QAViT], **fields: Any) -> QAViT:
    """A model without dropout, in float64, with the same random weights for every check."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(num_classes=100, dropout=0.0, drop_path=0.0, **fields).double()


def _images(count: int, side: int = 32) -> Tensor:
    return torch.randn(count, 3, side, side, dtype=torch.float64)


def _first(model: QAViT) -> QuadAttentionBlock:
    return quad_blocks(model)[0]


@functools.cache
def _tiny() -> QAViT:
    return _model(qavit_tiny, depth=1).eval()


def _block() -> tuple[QuadAttentionBlock, Bank]:
    """QAViT-Tiny's first block in evaluation mode, and the bank."""
    return _first(_tiny()), _tiny().global_bank.read()


def _tokens_reached(module: Callable[[Tensor], Tensor]) -> int:
    """Number of the 196 output tokens that change when the input token in grid row and column 8 changes."""
    x = torch.randn(1, 196, 256, dtype=torch.float64)
    changed = x.clone()
    changed[0, 7 * 14 + 7] += torch.randn(256)
    with torch.no_grad():
        return int(((module(x) - module(changed)).abs().amax(-1) > 1e-12).sum())


def window_tokens() -> int:
    """Number of output tokens of QAViT-Tiny's window attention that change with one input token."""
    block, bank = _block()
    return _tokens_reached(lambda x: block.swa(x, bank))


def cross_tokens() -> Value:
    """Output tokens of QAViT-Tiny's cross-attention that change with one input token: 1 if keys come from the bank."""
    block, bank = _block()
    return _tokens_reached(lambda x: block.cross_attn(x, bank))


def dilations() -> Value:
    """Distances between tokens of a grid row that QAViT-Tiny's dilated sampling averages into one landmark."""
    landmarks = _block()[0].msda.landmarks(torch.eye(196)[None])[0]  # (135, 196): the tokens of each
    pairs = [row.nonzero().flatten().tolist() for row in landmarks]
    return ", ".join(map(str, sorted({p[-1] - p[0] for p in pairs if len(p) == 2 and p[0] // 14 == p[-1] // 14})))


def channel_groups() -> Value:
    """Channel groups of QAViT-Tiny: 1 / share of CGA channels (before its last Linear) that one channel changes."""
    block, bank = _block()
    mixed: list[Tensor] = []
    with block.cga.proj.register_forward_pre_hook(lambda module, inputs: mixed.append(inputs[0])), torch.no_grad():
        x = torch.randn(1, 196, 256, dtype=torch.float64)
        block.cga(x, bank)
        block.cga(x + torch.eye(256)[0], bank)
    return 1 / float(((mixed[0] - mixed[1]).abs().amax((0, 1)) > 1e-12).double().mean())


def fusion_difference() -> Value:
    """Largest difference between hybrid fusion's branch weights and softmax(w), for unequal w."""
    fusion = _block()[0].fusion
    learned = torch.tensor([1.0, 2.0, -0.5, 0.25], dtype=torch.float64)
    kept = fusion.fusion_weights.detach().clone()
    with torch.no_grad():
        fusion.fusion_weights.copy_(learned)
        factors = fusion([torch.ones(1, 1, 1, dtype=torch.float64)] * 4).flatten()
        fusion.fusion_weights.copy_(kept)
    return float((factors - learned.exp() / learned.exp().sum()).abs().max())


def branches() -> Value:
    """Number of tensors that QAViT-Tiny's hybrid fusion receives."""
    given: list[int] = []
    fusion = _block()[0].fusion
    with fusion.register_forward_pre_hook(lambda module, inputs: given.append(len(inputs[0]))), torch.no_grad():
        _tiny()(_images(1, 224))
    return given[0]


def _branches_that_wait(training: bool) -> int:
    model = _model(qavit_micro, depth=1).train(training)
    block, banks = _first(model), []
    for name in ("swa", "msda", "cga", "cross_attn"):
        block.get_submodule(name).register_forward_pre_hook(lambda module, inputs: banks.append(inputs[1].v))
    with torch.no_grad():
        model(_images(2))
    return sum(not torch.equal(bank, banks[0]) for bank in banks)


def branches_that_wait() -> Value:
    """Branches that read a different bank than the first, since an earlier one wrote to it: micro, in training."""
    return _branches_that_wait(training=True)


def branches_that_wait_in_evaluation() -> Value:
    """Branches that read a different bank than the first, since an earlier one wrote to it: micro, in evaluation."""
    return _branches_that_wait(training=False)


def _passed_on(training: bool) -> float:
    model = _model(qavit_micro).train(training)
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1].v))
    with torch.no_grad():
        model(_images(1))
    return float((seen[-1] - seen[0]).abs().max())


def passed_on() -> Value:
    """Largest change of the bank from the micro model's first to its last block, in evaluation, bank as published."""
    return _passed_on(training=False)


def passed_on_in_training() -> Value:
    """Largest change of the bank from the micro model's first to its last block, in training, bank as published."""
    return _passed_on(training=True)


@torch.no_grad()
def deterministic() -> Value:
    """Largest difference between two evaluations of the same two images by QAViT-Tiny with two blocks."""
    model, images = _model(qavit_tiny, depth=2).eval(), _images(2, 224)
    return float((model(images) - model(images)).abs().max())


@torch.no_grad()
def batch_dependence() -> Value:
    """Largest difference between the logits of three images in one batch and one by one, micro model, in evaluation."""
    model, images = _model(qavit_micro).eval(), _images(3)
    return float((model(images) - torch.cat([model(image[None]) for image in images])).abs().max())


PROPERTIES: dict[str, Callable[[], Value]] = {
    check.__name__: check
    for check in (
        window_tokens,
        cross_tokens,
        dilations,
        channel_groups,
        fusion_difference,
        branches,
        branches_that_wait,
        branches_that_wait_in_evaluation,
        passed_on,
        passed_on_in_training,
        deterministic,
        batch_dependence,
    )
}
