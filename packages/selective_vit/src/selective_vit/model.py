"""SelectiveViT: Improving Vision Transformer Interpretability via Sparse Attention (original: timm's ViT-Base).

A ViT whose attention layers remove the weights below a threshold, after the softmax (the formulas are in
`attention.py`). Nothing else changes, and a fixed threshold adds no parameters:

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
UNIFORM = 1.0  # in units of 1/N: the mean of every row, so that some weights pass and some do not


@dataclass(frozen=True, kw_only=True)
class ThresholdForm:
    """Settings of an attention layer's threshold.

    threshold: τ, or the initial value of a learned τ. None: 0.01 as published, or 1/N if relative or learned, since
    every row has weights on both sides of 1/N, so that τ gets a gradient. relative: τ is in units of 1/N. learned: one
    τ per "layer" or "head". growth: the fraction of training during which τ rises linearly from zero
    (`grow_threshold`); 0 for a constant τ. sparsity_weight: see `sparsity_penalty`.
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
            raise ValueError(f"threshold must be 0 or more and at most 1e6, got {self.tau}")
        if not self.relative and self.tau >= 1:
            raise ValueError(f"threshold must be below 1, the maximum of an attention weight; got {self.tau}")
        if not 0 <= self.growth <= 1:
            raise ValueError(f"threshold_growth must lie in [0, 1], got {self.growth}")
        if not 0 <= self.sparsity_weight <= 1e6:
            raise ValueError(f"sparsity_weight must be 0 or more and at most 1e6, got {self.sparsity_weight}")
        if self.tau == 0 and self.learned:
            raise ValueError("a learned threshold must start above 0, since softplus is always positive")
        if self.tau == 0 and self.sparsity_weight:
            raise ValueError("sparsity_weight has no effect with a threshold of 0, which every weight passes")

    @property
    def tau(self) -> float:
        """`threshold`, which is never None after initialization."""
        assert self.threshold is not None
        return self.threshold


class Threshold(nn.Module):
    """τ of one attention layer for rows of N keys: a number, or a tensor (h or 1, 1, 1) if it is learned."""

    def __init__(self, form: ThresholdForm, num_heads: int) -> None:
        super().__init__()
        self.form = form
        self.passing: Tensor | None = None  # of the last training forward pass, if there is a sparsity term
        if form.learned:
            raw = form.tau + math.log(-math.expm1(-form.tau))  # softplus(raw) = threshold
            self.raw_tau = nn.Parameter(torch.full((num_heads if form.learned == "head" else 1,), raw))
        if form.growth:
            self.register_buffer("share", torch.zeros(()))  # current fraction of the threshold, from 0 to 1
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
        """A function to call with the softmax weights and τ, or None."""
        return self._keep_passing if self.training and self.form.sparsity_weight else None

    def _keep_passing(self, P: Tensor, tau: float | Tensor) -> None:
        self.passing = soft_gate(P, tau).mean()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "passing": None}  # a copy must not keep this autograd graph

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in vars(self.form).items() if v)


class SelectiveAttention(nn.Module):
    """timm's `Attention` with a threshold on its weights; it reuses the modules and weights of the given layer."""

    def __init__(self, attn: Attention, form: ThresholdForm, selection: Selection) -> None:
        super().__init__()
        self.num_heads, self.head_dim = attn.num_heads, attn.head_dim
        self.qkv, self.q_norm, self.k_norm = attn.qkv, attn.q_norm, attn.k_norm
        self.attn_drop, self.proj, self.proj_drop = attn.attn_drop, attn.proj, attn.proj_drop
        self.norm = getattr(attn, "norm", nn.Identity())
        self.gate = getattr(attn, "gate", None)  # newer timm only
        self.selection = selection
        self.threshold = Threshold(form, attn.num_heads)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        B, N, _ = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        out = selective_attention(
            self.q_norm(q),
            self.k_norm(k),
            v,
            self.threshold(N),
            self.selection,
            attn_mask=attn_mask,
            is_causal=is_causal,
            dropout_p=self.attn_drop.p if self.training else 0.0,
            watch=self.threshold.watch,
        )
        out = self.norm(out.transpose(1, 2).flatten(2))
        if self.gate is not None:
            out = out * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(out))


class SelectedWeights(nn.Module):
    """Replaces `attn_drop` in an attention layer that computes its weights explicitly: threshold, then dropout.

    EVA-style layers, with rotary embeddings and separate biases, thus keep their own forward pass.
    """

    def __init__(self, drop: nn.Module, form: ThresholdForm, selection: Selection, num_heads: int) -> None:
        super().__init__()
        self.drop = drop
        self.selection = selection
        self.threshold = Threshold(form, num_heads)

    def forward(self, P: Tensor) -> Tensor:
        """Softmax weights (B, h, N, N) -> the weights that multiply the values."""
        tau = self.threshold(P.shape[-1])
        if self.threshold.watch is not None:
            self.threshold.watch(P.float(), tau)
        return self.drop(selected_weights(P.float(), tau, self.selection).to(P.dtype))


def make_selective(
    vit: nn.Module,
    threshold: float | None = None,
    mode: str = "relu",
    empty_row: str = "argmax",
    *,
    blocks: Iterable[int] | None = None,
    relative_threshold: bool = False,
    learned_threshold: str | None = None,
    threshold_growth: float = 0.0,
    sparsity_weight: float = 0.0,
    eps: float = 1e-6,
    kernel: str = "auto",
    reinit_attention: bool = False,
) -> nn.Module:
    """Make the attention layers of a timm ViT selective, in place; they keep their weights.

    Args:
        vit: a model with `blocks` whose `attn` is timm's `Attention`, `AttentionRope` or `EvaAttention`. If it is
            already selective, it gets the new settings.
        threshold, relative_threshold, learned_threshold, threshold_growth, sparsity_weight: see `ThresholdForm`.
        mode, empty_row, eps, kernel: see `Selection`.
        blocks: indices of the blocks to change, negative ones from the end. Default: all.
        reinit_attention: re-initialize the weights of these layers, as the original did by accident.
    Returns: the same model.
    Raises: ValueError for an unsupported model, for block indices out of range, and for invalid settings.
    """
    form = ThresholdForm(
        threshold=threshold,
        relative=relative_threshold,
        learned=learned_threshold,
        growth=threshold_growth,
        sparsity_weight=sparsity_weight,
    )
    selection = Selection(mode=mode, empty_row=empty_row, eps=eps, kernel=kernel)
    layers: Any = getattr(vit, "blocks", None)
    if not isinstance(layers, nn.Sequential | nn.ModuleList):
        raise ValueError(f"{type(vit).__name__} has no blocks: make_selective supports timm's ViTs")
    chosen: list[Any] = [layers[i] for i in block_indices(blocks, len(layers))]
    for block in chosen:  # check all before changing any
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
            attn.fused_attn = False  # the code path in which timm calls attn_drop
        block.attn.to(device=next(vit.parameters()).device).train(block.training)
        block.attn.reinitialized = reinit_attention
        if reinit_attention:
            for linear in (m for m in block.attn.modules() if isinstance(m, nn.Linear)):
                linear.reset_parameters()
    return vit


def _check(attn: Any, form: ThresholdForm, selection: Selection) -> None:
    eva = isinstance(attn, AttentionRope | EvaAttention)
    if not (eva or isinstance(attn, SelectiveAttention) or type(attn) is Attention):
        known = "Attention, AttentionRope and EvaAttention"
        raise ValueError(f"make_selective supports timm's {known}, got a block with {type(attn).__name__}")
    if selection.kernel == "flex":
        reasons = {
            f"layers that compute their own weights ({type(attn).__name__})": eva,
            "learned thresholds": bool(form.learned),
            "a growing threshold": bool(form.growth),
            "a sparsity term": bool(form.sparsity_weight),
            "attention dropout": not eva and attn.attn_drop.p > 0,
        }
        found = [reason for reason, there in reasons.items() if there]
        if found:
            raise ValueError(f'kernel="flex" does not work with {" or ".join(found)}')


def block_indices(blocks: Iterable[int] | None, depth: int) -> list[int]:
    """Block indices, negative ones from the end, or None for all -> 0 to depth - 1. ValueError if out of range."""
    if blocks is None:
        return list(range(depth))
    if isinstance(blocks, str) or not isinstance(blocks, Iterable):
        raise ValueError(f"blocks must be a list of block indices, such as [0, 1]; got {blocks!r}")
    indices = list(blocks)
    for block in indices:
        if isinstance(block, bool) or not isinstance(block, int):
            raise ValueError(f"blocks must be integers, got {block!r}")
        if not -depth <= block < depth:
            raise ValueError(f"blocks: index {block} is out of range for a model with {depth} blocks")
    return [block % depth for block in indices]


def thresholds(model: nn.Module) -> dict[str, Threshold]:
    """The thresholds of a model, by the name of the attention layer, such as "blocks.0.attn"."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, Threshold)}
    return {name.removesuffix(".threshold").removesuffix(".attn_drop"): t for name, t in found.items()}


def set_threshold(model: nn.Module, threshold: float) -> None:
    """Set a fixed τ in all selective layers, in their unit. ValueError if there are none, or if τ is learned."""
    found = thresholds(model)
    if not found:
        raise ValueError(f"{type(model).__name__} has no selective attention: call make_selective first")
    for t in found.values():
        if t.form.learned:
            raise ValueError("cannot set the threshold: this model's thresholds are learned parameters")
        t.form = ThresholdForm(**{**vars(t.form), "threshold": threshold})


def grow_threshold(model: nn.Module, progress: float) -> None:
    """Set growing thresholds to their value at `progress`, the completed fraction of training (0 to 1)."""
    for t in thresholds(model).values():
        if t.form.growth:
            t.share.fill_(min(progress / t.form.growth, 1.0))


def threshold_values(model: nn.Module, keys: int) -> dict[str, list[float]]:
    """τ of each selective layer for rows of `keys` tokens: one value, or one per head if learned per head."""
    with torch.no_grad():
        return {name: torch.as_tensor(t(keys)).flatten().tolist() for name, t in thresholds(model).items()}


def describe_thresholds(model: nn.Module) -> str:
    """A line for the training log: learned thresholds by block, mean over the heads; "" if none are learned."""
    learned = [t for t in thresholds(model).values() if t.form.learned]
    if not learned:
        return ""
    values = [F.softplus(t.raw_tau.detach()) for t in learned]
    unit = " × N" if learned[0].form.relative else ""
    lowest, highest = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    means = " ".join(f"{float(v.mean()):.4g}" for v in values)
    return f"learned thresholds{unit} by block {means}  lowest {lowest:.4g} highest {highest:.4g}"


def sparsity_penalty(model: nn.Module) -> Tensor | float:
    """Optional loss term: sparsity_weight × the fraction of attention weights that pass, mean over the layers.

    Uses the last forward pass, which must have been in training mode. The gate is a sigmoid here (`soft_gate`), so
    that learned thresholds get a gradient, and with fixed thresholds the attention scores.
    """
    terms = []
    for t in thresholds(model).values():
        if t.passing is not None:
            terms.append(t.form.sparsity_weight * t.passing)
            t.passing = None
    return torch.stack(terms).mean() if terms else 0.0


def sparse_loss(model: nn.Module, images: Tensor, targets: Tensor, criterion: nn.Module) -> tuple[Tensor, Tensor]:
    """The criterion plus `sparsity_penalty`, if the model has one: a `LossFunction`."""
    loss, logits = classification_loss(model, images, targets, criterion)
    return loss + sparsity_penalty(model), logits
