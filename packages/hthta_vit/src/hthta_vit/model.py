"""HTHTA-ViT++: Hierarchical GRU-Guided Token Attention (preprint; original code: torchvision's ViT-B/16 as backbone).

It differs from a ViT in its head, which uses the patch tokens in addition to the class token.

    ViT ─ norm ┬ patches ─ BiGRU, 2d → d ── h ─ attention pooling, H heads ─ concat ─ Linear ── p ┐
               └ class token ────────────────────────────────────────────────────────────── cls ┴ fusion ─ Linear

    uv run hthta-vit-train                                            micro model on digits: over 90% in a minute
    uv run hthta-vit-train --model base_gru2 --dataset cifar100       claimed 93.3% top-1 (not measured here)

Shapes: B batch, N patches, d embed_dim, H pooling heads, c width of a head's context.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

# The rows of the paper's ablation with their parts. "none" is a ViT that classifies by its class token.
COMPONENTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "bigru": ("bigru",),
    "bigru+pooling": ("bigru", "pooling"),
    "bigru+pooling+fusion": ("bigru", "pooling", "fusion"),
}


class SequenceModel(nn.Module):
    """h = W [GRU forward, GRU backward] + b over the patches in raster order: (B, N, d) -> (B, N, d).

    One GRU step with state s: r = σ(W_ir x + b_ir + W_hr s + b_hr), z likewise, n = tanh(W_in x + b_in +
    r ⊙ (W_hn s + b_hn)), s ← (1 − z) ⊙ n + z ⊙ s.
    """

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.bigru = nn.GRU(dim, dim, layers, batch_first=True, bidirectional=True)
        self.projection = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.bigru(x)  # (B, N, 2d)
        return self.projection(states)


class AttentionPooling(nn.Module):
    """e_ij = v_jᵀ tanh(W_j h_i + b_j), α = softmax over i, c_j = Σ_i α_ij h_i. One matrix holds the W_j of all heads.

    The bias of v_j, as in the original, has no effect since the softmax cancels it; it is kept so that parameter counts
    and checkpoints match.
    """

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.proj = nn.Linear(dim, heads * head_dim)
        self.score = nn.Parameter(torch.empty(heads, head_dim))  # v
        self.score_bias = nn.Parameter(torch.empty(heads))
        bound = head_dim**-0.5  # as in one nn.Linear(head_dim, 1) per head
        nn.init.uniform_(self.score, -bound, bound)
        nn.init.uniform_(self.score_bias, -bound, bound)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """h (B, N, d) -> concatenated contexts (B, H·d), α (B, H, N)."""
        u = self.proj(h).tanh().unflatten(-1, (self.heads, -1))  # (B, N, H, c)
        e = (u * self.score).sum(-1) + self.score_bias
        alpha = e.softmax(dim=1).transpose(1, 2)  # (B, N, H) -> (B, H, N)
        return (alpha.to(h.dtype) @ h).flatten(1), alpha


class ClassTokenFusion(nn.Module):
    """p = W_p concat(c_1 … c_H); γ cls + (1 − γ) p + β (cls ⊙ p), with learned γ and β.

    Without `fusion` the output is p alone: W_p is still needed, since the contexts have width H·d and the head takes d.
    """

    def __init__(self, dim: int, heads: int, gamma: float, beta: float, fusion: bool) -> None:
        super().__init__()
        self.projection = nn.Linear(heads * dim, dim)
        self.fusion = fusion
        if fusion:
            self.gamma = nn.Parameter(torch.tensor(float(gamma)))
            self.beta = nn.Parameter(torch.tensor(float(beta)))

    def forward(self, cls: Tensor, contexts: Tensor) -> Tensor:
        p = self.projection(contexts)
        return self.gamma * cls + (1 - self.gamma) * p + self.beta * (cls * p) if self.fusion else p


class GuidedTokenAttention(nn.Module):
    """The paper's three modules: patch tokens (B, N, d), class token (B, d) -> fused (B, d), α (B, H, N) or None."""

    def __init__(
        self,
        dim: int = 768,
        *,
        heads: int = 8,
        head_dim: int = 96,
        gru_layers: int = 1,
        components: str | Sequence[str] = "bigru+pooling+fusion",
        gamma: float = 0.5,
        beta: float = 0.1,
    ) -> None:
        super().__init__()
        for name, value in (("heads", heads), ("head_dim", head_dim), ("gru_layers", gru_layers)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not (abs(gamma) <= 1e6 and abs(beta) <= 1e6):  # also rejects NaN
            raise ValueError(f"gamma and beta must lie in [-1e6, 1e6], got {gamma} and {beta}")
        if gru_layers > 100:  # building a GRU with a million narrow layers would take hours
            raise ValueError(f"gru_layers must be at most 100, got {gru_layers}")
        parts = chosen_components(components)
        self.bigru = SequenceModel(dim, gru_layers) if "bigru" in parts else None
        self.attention_pooling = AttentionPooling(dim, heads, head_dim) if "pooling" in parts else None
        pooling = self.attention_pooling is not None
        self.cls_fusion = ClassTokenFusion(dim, heads, gamma, beta, "fusion" in parts) if pooling else None

    def forward(self, patch_tokens: Tensor, cls_token: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.bigru is None:
            return cls_token, None
        h = self.bigru(patch_tokens)
        if self.attention_pooling is None or self.cls_fusion is None:
            return h.mean(dim=1), None
        contexts, alpha = self.attention_pooling(h)
        return self.cls_fusion(cls_token, contexts), alpha


def chosen_components(components: str | Sequence[str]) -> tuple[str, ...]:
    """The parts of a row of the ablation, given its name or a tuple of parts. ValueError if there is no such row."""
    name = components if isinstance(components, str) else "+".join(components) or "none"
    if name not in COMPONENTS:
        raise ValueError(f"components must be one of {', '.join(COMPONENTS)}; got {name!r}")
    return COMPONENTS[name]


class HTHTAViT(VisionTransformer):
    """timm's VisionTransformer with the paper's pooling; images (B, C, H, W) -> logits (B, num_classes).

    components: a row of the ablation (`COMPONENTS`). gru_layers: 1 matches the claimed parameter count, 2 the text.
    pool_heads, pool_head_dim: H and c. gamma, beta: initial values of the fusion's scalars (beta is 0.3 in one of the
    original's files). frozen_blocks: number of first blocks that are frozen, together with the embeddings.
    pos_embed_std: standard deviation of the initial position embeddings, instead of timm's 0.02.
    global_pool: "token" for the paper's pooling; other values as in timm.
    Other arguments are timm's. Raises ValueError with the rule that invalid arguments break.
    """

    def __init__(
        self,
        *args: Any,
        components: str | Sequence[str] = "bigru+pooling+fusion",
        gru_layers: int = 1,
        pool_heads: int = 8,
        pool_head_dim: int = 96,
        gamma: float = 0.5,
        beta: float = 0.1,
        frozen_blocks: int = 0,
        pos_embed_std: float | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(*args, **fields)
        if not self.has_class_token or self.num_prefix_tokens != 1:
            raise ValueError(
                "the fusion needs a class token and no other prefix tokens: use class_token=True, reg_tokens=0"
            )
        if not 0 <= frozen_blocks <= len(self.blocks):
            raise ValueError(f"frozen_blocks must lie in [0, {len(self.blocks)}], got {frozen_blocks}")
        if pos_embed_std is not None and not 0 < pos_embed_std <= 1e6:
            raise ValueError(f"pos_embed_std must lie in (0, 1e6], got {pos_embed_std}")
        self.guided = GuidedTokenAttention(
            self.embed_dim,
            heads=pool_heads,
            head_dim=pool_head_dim,
            gru_layers=gru_layers,
            components=components,
            gamma=gamma,
            beta=beta,
        )
        if pos_embed_std is not None and self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=pos_embed_std, a=-2 * pos_embed_std, b=2 * pos_embed_std)
        if frozen_blocks:
            for module in (self.patch_embed, self.norm_pre, *self.blocks[:frozen_blocks]):
                module.requires_grad_(False)
            for p in (self.cls_token, self.pos_embed):
                if p is not None:
                    p.requires_grad_(False)

    def read(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Normalized tokens (B, 1 + N, d) -> vector for the classifier (B, d), α (B, H, N) or None."""
        return self.guided(x[:, 1:], x[:, 0])

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        if (pool_type or self.global_pool) != "token":
            return super().pool(x, pool_type)
        return self.read(x)[0]

    def forward(self, x: Tensor, return_attention: bool = False) -> Any:  # type: ignore[override]
        """Logits; with `return_attention` also α (B, H, N), or None for a model without attention pooling."""
        x = self.forward_features(x)
        if not return_attention:
            return self.forward_head(x)
        pooled, alpha = self.read(x)
        return self.head(self.head_drop(self.fc_norm(pooled))), alpha

    def attention_map(self, x: Tensor) -> Tensor | None:
        """Images -> mean of α over the heads as a map (B, rows, columns); None without attention pooling."""
        alpha = self.read(self.forward_features(x))[1]
        return None if alpha is None else alpha.mean(1).unflatten(1, self.patch_embed.dynamic_feat_size(x.shape[-2:]))

    def grad_cam_layer(self) -> nn.Module:
        """The layer whose output is the last block's input. In every row of the ablation, the patches influence the
        logits through it, whether the head uses the patches or only the class token. All rows use the same layer, since
        the choice of layer changes what Grad-CAM shows.
        """
        return self.blocks[-2] if len(self.blocks) > 1 else self.norm_pre

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's groups; the paper's modules are in the last group, with the final norm."""
        groups = super().group_matcher(coarse)
        return {**groups, "blocks": [*groups["blocks"], (r"^guided", (99999,))]}
