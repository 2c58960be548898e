"""SelectiveViT: Improving Vision Transformer Interpretability via Sparse Attention (original: timm's ViT-Base).

A ViT in which every attention layer drops the weights below a threshold, after the softmax (`attention.py` has the
formulas). There is no other difference, and no new parameter while the threshold is fixed:

    model = timm.create_model("vit_base_patch16_224", pretrained=True)
    make_selective(model, threshold=0.01)

    uv run selective-vit-train                                                     both micro models on the digits
    uv run selective-vit-train --model both --dataset cifar10 --data-path DIR      README: 85.47% and 89.11% (not run)
    uv run selective-vit-train --model both --preset notebook --dataset cifar10 --data-path DIR
                                                                                   PDF: 80.6% and 85.2% (not run)

Shapes: B batch, N tokens, D embed_dim, h heads, d head_dim.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention, AttentionRope
from timm.models.eva import EvaAttention
from torch import Tensor, nn

from selective_vit.attention import Selection, number, selected_weights, selective_attention, soft_gate
from vit_core.tasks.classification import classification_loss

LEARNED = ("layer", "head")
PUBLISHED = 0.01  # the README's and the notebook's τ
UNIFORM = 1.0  # in units of 1/N: the mean of every row, so that no row is empty under it, and not all passes


@dataclass(frozen=True, kw_only=True)
class ThresholdForm:
    """Which threshold an attention layer has.

    threshold: τ, or where a learned one starts; None for 0.01 as published, or for 1/N where it is relative or learned:
    every row has weights on both sides of 1/N, so a gradient reaches τ there. relative: in units of 1/N. learned: one
    for each "layer" or "head". growth: the share of the training in which it rises from zero, in a line
    (`grow_threshold`); 0 for a threshold that is there from the start. sparsity_weight: see `sparsity_penalty`.
    """

    threshold: float | None = None
    relative: bool = False
    learned: str | None = None
    growth: float = 0.0
    sparsity_weight: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.relative, bool):
            raise ValueError(f"relative_threshold must be True or False, got {self.relative!r}")
        if self.learned not in (None, *LEARNED):
            raise ValueError(f"learned_threshold must be one of {', '.join(LEARNED)}; got {self.learned!r}")
        if self.threshold is None:
            in_uniform = self.relative or self.learned is not None
            object.__setattr__(self, "relative", in_uniform)
            object.__setattr__(self, "threshold", UNIFORM if in_uniform else PUBLISHED)
        number("threshold", self.threshold)
        number("threshold_growth", self.growth)
        number("sparsity_weight", self.sparsity_weight)
        if not 0 <= self.tau <= 1e6:
            raise ValueError(f"threshold must be 0 or more, and at most 1e6; got {self.tau}")
        if not self.relative and self.tau >= 1:
            raise ValueError(f"threshold must be below 1, the largest weight there is; got {self.tau}")
        if not 0 <= self.growth <= 1:
            raise ValueError(f"threshold_growth must lie in [0, 1], got {self.growth}")
        if not 0 <= self.sparsity_weight <= 1e6:
            raise ValueError(f"sparsity_weight must be 0 or more, and at most 1e6; got {self.sparsity_weight}")
        if self.tau == 0 and self.learned:
            raise ValueError("a learned threshold must start above 0: softplus does not reach it")
        if self.tau == 0 and self.sparsity_weight:
            raise ValueError("sparsity_weight has no effect on a threshold of 0, which every weight passes")

    @property
    def tau(self) -> float:
        """`threshold`, settled."""
        assert self.threshold is not None
        return self.threshold


class Threshold(nn.Module):
    """τ of one attention layer, for rows of N keys: a number, or where it is learned a tensor (h or 1, 1, 1)."""

    def __init__(self, form: ThresholdForm, num_heads: int) -> None:
        super().__init__()
        self.form = form
        self.passing: Tensor | None = None  # of the last forward pass in training, where there is a sparsity term
        if form.learned:
            raw = form.tau + math.log(-math.expm1(-form.tau))  # softplus(raw) = threshold
            self.raw_tau = nn.Parameter(torch.full((num_heads if form.learned == "head" else 1,), raw))
        if form.growth:
            self.register_buffer("share", torch.zeros(()))  # of the threshold, from 0 to 1
            self.share: Tensor

    def forward(self, keys: int) -> float | Tensor:
        tau: float | Tensor = F.softplus(self.raw_tau)[:, None, None] if self.form.learned else self.form.tau
        if self.form.relative:
            tau = tau / keys
        if not self.form.growth:
            return tau
        on_cpu = self.share.device.type == "cpu" and not torch.compiler.is_compiling()
        return tau * (float(self.share) if on_cpu and not self.form.learned else self.share)

    @property
    def watch(self) -> Callable[[Tensor, float | Tensor], None] | None:
        """What is to be called with the softmax weights and τ, if anything."""
        return self._keep_passing if self.training and self.form.sparsity_weight else None

    def _keep_passing(self, P: Tensor, tau: float | Tensor) -> None:
        self.passing = soft_gate(P, tau).mean()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "passing": None}  # a copy is no part of this graph

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in vars(self.form).items() if v)


class SelectiveAttention(nn.Module):
    """timm's `Attention` with the weights selected; it takes over the given layer's own modules, weights and all."""

    def __init__(self, attn: Attention, form: ThresholdForm, selection: Selection) -> None:
        super().__init__()
        self.num_heads, self.head_dim = attn.num_heads, attn.head_dim
        self.qkv, self.q_norm, self.k_norm = attn.qkv, attn.q_norm, attn.k_norm
        self.attn_drop, self.proj, self.proj_drop = attn.attn_drop, attn.proj, attn.proj_drop
        self.norm = getattr(attn, "norm", nn.Identity())
        self.gate = getattr(attn, "gate", None)  # of newer timm
        self.selection = selection
        self.threshold = Threshold(form, attn.num_heads)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        B, N, _ = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        out = selective_attention(
            self.q_norm(q), self.k_norm(k), v, self.threshold(N), self.selection, attn_mask=attn_mask,
            is_causal=is_causal, dropout_p=self.attn_drop.p if self.training else 0.0, watch=self.threshold.watch,
        )  # fmt: skip
        out = self.norm(out.transpose(1, 2).flatten(2))
        if self.gate is not None:
            out = out * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(out))


class SelectedWeights(nn.Module):
    """In the place of `attn_drop` of an attention layer that computes its weights openly: select, then drop.

    So the EVA-style layers, with their rotary embeddings and separate biases, need no copy of their forward pass.
    """

    def __init__(self, drop: nn.Module, form: ThresholdForm, selection: Selection, num_heads: int) -> None:
        super().__init__()
        self.drop = drop
        self.selection = selection
        self.threshold = Threshold(form, num_heads)

    def forward(self, P: Tensor) -> Tensor:
        """Softmax weights (B, h, N, N) -> what the values are multiplied by."""
        tau = self.threshold(P.shape[-1])
        if self.threshold.watch is not None:
            self.threshold.watch(P.float(), tau)
        return self.drop(selected_weights(P.float(), tau, self.selection).to(P.dtype))


def make_selective(
    vit: nn.Module, threshold: float | None = None, mode: str = "relu", empty_row: str = "argmax", *,
    blocks: Iterable[int] | None = None, relative_threshold: bool = False, learned_threshold: str | None = None,
    threshold_growth: float = 0.0, sparsity_weight: float = 0.0, eps: float = 1e-6, kernel: str = "auto",
    reinit_attention: bool = False,
) -> nn.Module:  # fmt: skip
    """Make the attention layers of one of timm's ViTs selective, in place, with the weights that they have.

    Args:
        vit: a model with `blocks` whose `attn` is timm's `Attention`, `AttentionRope` or `EvaAttention`. A selective
            one takes the new settings.
        threshold, relative_threshold, learned_threshold, threshold_growth, sparsity_weight: see `ThresholdForm`.
        mode, empty_row, eps, kernel: see `Selection`.
        blocks: numbers of the blocks that change, negative ones from the end. Default: all.
        reinit_attention: give those layers new random weights, as the original did by accident.
    Returns: the same model.
    Raises: ValueError for a model of another kind, for blocks that it does not have, and for settings that cannot be.
    """
    form = ThresholdForm(
        threshold=threshold, relative=relative_threshold, learned=learned_threshold, growth=threshold_growth,
        sparsity_weight=sparsity_weight,
    )  # fmt: skip
    selection = Selection(mode=mode, empty_row=empty_row, eps=eps, kernel=kernel)
    layers: Any = getattr(vit, "blocks", None)
    if not isinstance(layers, nn.Sequential | nn.ModuleList):
        raise ValueError(f"{type(vit).__name__} has no blocks: make_selective takes timm's ViTs")
    chosen: list[Any] = [layers[i] for i in block_indices(blocks, len(layers))]
    for block in chosen:  # before any of them changes
        _check(getattr(block, "attn", None), form, selection)
    for block in chosen:
        attn: Any = block.attn
        if isinstance(attn, SelectiveAttention):
            attn.selection, attn.threshold = selection, Threshold(form, attn.num_heads)
        elif isinstance(attn, Attention):
            block.attn = SelectiveAttention(attn, form, selection)
        else:
            drop = attn.attn_drop.drop if isinstance(attn.attn_drop, SelectedWeights) else attn.attn_drop
            attn.attn_drop = SelectedWeights(drop, form, selection, attn.num_heads)
            attn.fused_attn = False  # the way on which timm calls attn_drop
        block.attn.to(device=next(vit.parameters()).device).train(block.training)
        block.attn.reinitialised = reinit_attention
        if reinit_attention:
            for linear in (m for m in block.attn.modules() if isinstance(m, nn.Linear)):
                linear.reset_parameters()
    return vit


def _check(attn: Any, form: ThresholdForm, selection: Selection) -> None:
    eva = isinstance(attn, AttentionRope | EvaAttention)
    if not (eva or isinstance(attn, SelectiveAttention) or type(attn) is Attention):
        known = "Attention, AttentionRope and EvaAttention"
        raise ValueError(f"make_selective takes timm's {known}; a block has {type(attn).__name__}")
    if selection.kernel == "flex":
        reasons = {
            f"attention with its own weights ({type(attn).__name__})": eva, "learned thresholds": bool(form.learned),
            "a growing threshold": bool(form.growth), "a sparsity term": bool(form.sparsity_weight),
            "attention dropout": not eva and attn.attn_drop.p > 0,
        }  # fmt: skip
        found = [reason for reason, there in reasons.items() if there]
        if found:
            raise ValueError(f'kernel="flex" does not work with {" or ".join(found)}')


def block_indices(blocks: Iterable[int] | None, depth: int) -> list[int]:
    """Numbers of blocks, negative ones from the end, or None for all -> 0 to depth - 1. ValueError for others."""
    if blocks is None:
        return list(range(depth))
    if isinstance(blocks, str) or not isinstance(blocks, Iterable):
        raise ValueError(f"blocks must be numbers of blocks, such as [0, 1]; got {blocks!r}")
    indices = list(blocks)
    for block in indices:
        if isinstance(block, bool) or not isinstance(block, int):
            raise ValueError(f"blocks must be whole numbers, got {block!r}")
        if not -depth <= block < depth:
            raise ValueError(f"blocks: there is no block {block}, the model has {depth}")
    return [block % depth for block in indices]


def thresholds(model: nn.Module) -> dict[str, Threshold]:
    """The thresholds of a model by the name of their attention layer: "blocks.0.attn"."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, Threshold)}
    return {name.removesuffix(".threshold").removesuffix(".attn_drop"): t for name, t in found.items()}


def set_threshold(model: nn.Module, threshold: float) -> None:
    """Another fixed τ for all selective layers, in the unit that they have. ValueError for a model without any."""
    found = thresholds(model)
    if not found:
        raise ValueError(f"{type(model).__name__} has no selective attention: call make_selective first")
    for t in found.values():
        if t.form.learned:
            raise ValueError("cannot set the threshold: this model's thresholds are learned parameters")
        t.form = ThresholdForm(**{**vars(t.form), "threshold": threshold})


def grow_threshold(model: nn.Module, progress: float) -> None:
    """Set growing thresholds to where they are at `progress`, the share of the training that is done (0 to 1)."""
    for t in thresholds(model).values():
        if t.form.growth:
            t.share.fill_(min(progress / t.form.growth, 1.0))


def threshold_values(model: nn.Module, keys: int) -> dict[str, list[float]]:
    """τ of each selective layer for rows of `keys` tokens: one value, or one for each head that learned its own."""
    with torch.no_grad():
        return {name: torch.as_tensor(t(keys)).flatten().tolist() for name, t in thresholds(model).items()}


def describe_thresholds(model: nn.Module) -> str:
    """A line for the training log: where learned thresholds are, mean over the heads block by block; else ""."""
    learned = [t for t in thresholds(model).values() if t.form.learned]
    if not learned:
        return ""
    values = [F.softplus(t.raw_tau.detach()) for t in learned]
    unit = " × N" if learned[0].form.relative else ""
    lowest, highest = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    means = " ".join(f"{float(v.mean()):.4g}" for v in values)
    return f"learned thresholds{unit} by block {means}  lowest {lowest:.4g} highest {highest:.4g}"


def sparsity_penalty(model: nn.Module) -> Tensor | float:
    """The optional term of the loss: sparsity_weight × the share of the weights that pass, mean over the layers.

    Of the forward pass just done, which must have been in training mode. The gate is a sigmoid here (`soft_gate`), so
    that the term has a gradient for learned thresholds, and for the scores under fixed ones.
    """
    terms = []
    for t in thresholds(model).values():
        if t.passing is not None:
            terms.append(t.form.sparsity_weight * t.passing)
            t.passing = None
    return torch.stack(terms).mean() if terms else 0.0


def sparse_loss(model: nn.Module, images: Tensor, targets: Tensor, criterion: nn.Module) -> tuple[Tensor, Tensor]:
    """The criterion, and `sparsity_penalty` where the model has a weight for it: a `LossFunction`."""
    loss, logits = classification_loss(model, images, targets, criterion)
    return loss + sparsity_penalty(model), logits
