"""QAViT: Quad-Attention Vision Transformer (2024; original code: HQA_VIT/QAViT.py).

Four attention branches run side by side on the same tokens: windows, dilated scales, channel groups, and a small memory
shared by all blocks. A learned softmax over four scalars weights them.

    x ─ LN ┬ window attention ───────── LN, d → d/4 ┐
           ├ dilated attention ──────── LN, d → d/4 ├ × softmax(w) ─ concat ─ d → d/2 → d ─ + x ─ CCF-FFN
           ├ channel-group attention ── LN, d → d/4 │
           └ cross-attention to bank ── LN, d → d/4 ┘
    The global token bank is read by all four and written after each of the first three.

    uv run qavit-train                    micro model on digits: over 90% in a minute on two CPU cores
    uv run qavit-train --model tiny       CIFAR-100, 300 epochs; claimed 78-80% top-1 (not measured here)

Shapes: B batch, N = H·H tokens, d dim, h heads, M bank size, k compressed tokens, L rows of E, G channel groups,
w window size, W windows in an image.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qavit.bank import Bank, GlobalTokenBank
from qavit.config import QAViTConfig, own_names
from vit_core.models.attention import attention
from vit_core.models.dropout import Dropout


def split_heads(x: Tensor, h: int) -> Tensor:
    """(B, N, d) -> (B, h, N, d/h)."""
    return x.unflatten(-1, (h, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, h, N, d/h) -> (B, N, d)."""
    return x.transpose(1, 2).flatten(2)


def by_heads(q: Tensor, k: Tensor, v: Tensor, h: int, dropout_p: float) -> Tensor:
    """softmax(q kᵀ / √(d/h)) v in each of h heads: q (B, N, d), k and v (B, n, d) -> (B, N, d)."""
    return merge_heads(attention(split_heads(q, h), split_heads(k, h), split_heads(v, h), dropout_p))


def with_bank(tokens: Tensor, bank: Tensor) -> Tensor:
    """Append the bank's tokens (1 or B, M, d) to tokens (B·W, n, d): (B·W, n + M, d)."""
    return torch.cat((tokens, bank.repeat_interleave(tokens.shape[0] // bank.shape[0], dim=0)), dim=1)


class Linformer(nn.Module):
    """Learned compression along the tokens, shared by the heads: K' = E_kᵀ K, V' = E_vᵀ V. E: (L, k).

    For a sequence shorter than L, the remaining rows of E are unused. A longer sequence is truncated to L tokens, as
    published; with `stretch`, E's rows are interpolated to its length instead, like position embeddings on a larger
    grid.
    """

    def __init__(self, length: int, k: int, *, stretch: bool = False) -> None:
        super().__init__()
        self.stretch = stretch
        self.E_k = nn.Parameter(torch.empty(length, k))
        self.E_v = nn.Parameter(torch.empty(length, k))

    def forward(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, n, d) -> (B, k, d)."""
        E_k, E_v = (self._rows(E, k.shape[1]) for E in (self.E_k, self.E_v))
        return E_k.T @ k[:, : len(E_k)], E_v.T @ v[:, : len(E_v)]

    def _rows(self, E: Tensor, n: int) -> Tensor:
        if self.stretch and n > len(E):
            return F.interpolate(E.T[None], size=n, mode="linear")[0].T
        return E[:n]


class SpatialWindowAttention(nn.Module):
    """SWA: attention in w × w windows, over the window's k compressed keys and the bank's M tokens."""

    def __init__(
        self, dim: int, num_heads: int, *, grid: int, window: int, linformer_k: int, attn_drop: float, proj_drop: float
    ) -> None:
        super().__init__()
        self.num_heads, self.window, self.grid, self.attn_drop = num_heads, window, grid, attn_drop
        self.qkv = nn.Linear(dim, 3 * dim)
        self.linformer = Linformer(window**2, linformer_k)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = Dropout(proj_drop)
        self.norm = nn.LayerNorm(dim)  # applied to what is written to the bank

    def forward(self, x: Tensor, bank: Bank) -> Tensor:
        B = x.shape[0]
        q, k, v = self.qkv(self.windows(x)).chunk(3, dim=-1)  # (B·W, w², d)
        k, v = self.linformer(k, v)  # (B·W, k, d)
        k, v = with_bank(k, bank.k), with_bank(v, bank.v)  # (B·W, k + M, d)
        x = by_heads(q, k, v, self.num_heads, self.attn_drop if self.training else 0.0)
        return self.proj_drop(self.proj(self.joined(x, B)))

    def windows(self, x: Tensor) -> Tensor:
        """(B, N, d) -> (B·W, w², d); the grid is padded with zeros to a multiple of w."""
        w, pad = self.window, -self.grid % self.window
        x = F.pad(x.unflatten(1, (self.grid, self.grid)), (0, 0, 0, pad, 0, pad))
        x = x.unflatten(2, (-1, w)).unflatten(1, (-1, w)).transpose(2, 3)  # (B, rows, columns, w, w, d)
        return x.flatten(0, 2).flatten(1, 2)

    def joined(self, x: Tensor, B: int) -> Tensor:
        """(B·W, w², d) -> (B, N, d), without the padding. (The original keeps the padding and fails.)"""
        w, side = self.window, -(-self.grid // self.window)
        x = x.view(B, side, side, w, w, -1).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return x[:, : self.grid, : self.grid].flatten(1, 2)


class MultiScaleDilatedAttention(nn.Module):
    """MSDA: attention to every r-th patch of the grid, r in (1, 2, 3), pooled and compressed to k, and to the bank.

    With `truncate`, as in the original, the pooled sequence is truncated to L = max(k, 128) tokens: on a 14 × 14 grid
    128 of 135, which drops most of the coarsest scale. By default E is interpolated to the whole sequence.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        grid: int,
        dilations: Sequence[int],
        pooling: int,
        linformer_k: int,
        truncate: bool,
        attn_drop: float,
        proj_drop: float,
    ) -> None:
        super().__init__()
        self.num_heads, self.grid, self.attn_drop = num_heads, grid, attn_drop
        self.dilations, self.pooling = tuple(dilations), pooling
        self.qkv = nn.Linear(dim, 3 * dim)
        self.linformer = Linformer(max(linformer_k, 128), linformer_k, stretch=not truncate)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = Dropout(proj_drop)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, bank: Bank) -> Tensor:
        d = x.shape[-1]
        q, kv = self.qkv(x).split((d, 2 * d), dim=-1)
        k, v = self.landmarks(kv).chunk(2, dim=-1)  # slicing and averaging tokens commute with the projection
        k, v = self.linformer(k, v)  # (B, k, d)
        k, v = with_bank(k, bank.k), with_bank(v, bank.v)  # (B, k + M, d)
        x = by_heads(q, k, v, self.num_heads, self.attn_drop if self.training else 0.0)
        return self.proj_drop(self.proj(x))

    def landmarks(self, x: Tensor) -> Tensor:
        """Select the tokens of every r-th row and column for each r, then average-pool the sequence (B, N, d)."""
        x = x.unflatten(1, (self.grid, self.grid))
        x = torch.cat([x[:, ::r, ::r].flatten(1, 2) for r in self.dilations], dim=1)
        whole = x.shape[1] // self.pooling * self.pooling  # an incomplete last pool is dropped
        return x[:, :whole].unflatten(1, (-1, self.pooling)).mean(2)


class ChannelGroupAttention(nn.Module):
    """CGA: attention over the tokens in each of G channel groups separately, with shared projections to half width."""

    def __init__(self, dim: int, num_heads: int, *, groups: int, attn_drop: float, proj_drop: float) -> None:
        super().__init__()
        self.num_groups, self.num_heads, self.attn_drop = groups, num_heads, attn_drop
        self.q_proj = nn.Linear(dim // groups, dim // 2 // groups)
        self.k_proj = nn.Linear(dim // groups, dim // 2 // groups)
        self.v_proj = nn.Linear(dim // groups, dim // 2 // groups)
        self.bank_k_proj = nn.Linear(dim, dim // 2 // groups)
        self.bank_v_proj = nn.Linear(dim, dim // 2 // groups)
        self.proj = nn.Linear(dim // 2, dim)
        self.proj_drop = Dropout(proj_drop)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, bank: Bank) -> Tensor:
        B, G = x.shape[0], self.num_groups
        x = split_heads(x, G).flatten(0, 1)  # (B·G, N, d/G): each group is a separate sequence
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)  # (B·G, N, d/2G)
        k = with_bank(k, self.bank_k_proj(bank.k))  # (B·G, N + M, d/2G)
        v = with_bank(v, self.bank_v_proj(bank.v))
        x = by_heads(q, k, v, self.num_heads, self.attn_drop if self.training else 0.0)
        x = merge_heads(x.unflatten(0, (B, G)))  # (B, N, d/2)
        return self.proj_drop(self.proj(x))


class BankCrossAttention(nn.Module):
    """Cross-attention: queries from the tokens, keys and values from the bank."""

    def __init__(self, dim: int, num_heads: int, *, attn_drop: float, proj_drop: float) -> None:
        super().__init__()
        self.num_heads, self.attn_drop = num_heads, attn_drop
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = Dropout(proj_drop)

    def forward(self, x: Tensor, bank: Bank) -> Tensor:
        k, v = (t.expand(x.shape[0], -1, -1) for t in (self.k_proj(bank.k), self.v_proj(bank.v)))  # (B, M, d)
        x = by_heads(self.q_proj(x), k, v, self.num_heads, self.attn_drop if self.training else 0.0)
        return self.proj_drop(self.proj(x))


class HybridFusion(nn.Module):
    """Scale the branches by a softmax over four learned scalars and concatenate: 4 × (B, N, d') -> (B, N, 4d')."""

    def __init__(self) -> None:
        super().__init__()
        self.fusion_weights = nn.Parameter(torch.ones(4))

    def forward(self, branches: list[Tensor]) -> Tensor:
        weights = self.fusion_weights.softmax(dim=0).repeat_interleave(branches[0].shape[-1])
        return torch.cat(branches, dim=-1) * weights


class BottleneckMLP(nn.Module):
    """4d' -> r = d/2 -> d."""

    def __init__(self, in_dim: int, hidden: int, dim: int, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class CCFFFN(nn.Module):
    """Convolutional channel fusion feed-forward: d -> d/2, GELU, 3 × 3 depthwise convolution on the grid, -> d."""

    def __init__(self, dim: int, hidden: int, grid: int, drop: float) -> None:
        super().__init__()
        self.grid = grid
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.fc1(x))
        x = x.transpose(1, 2).unflatten(2, (self.grid, self.grid))  # (B, d/2, H, W), channels last in memory
        x = self.dwconv(x).flatten(2).transpose(1, 2)
        return self.drop(self.fc2(x))


class QuadAttentionBlock(nn.Module):
    """x + the fused four attentions of LN(x), then x + CCF-FFN(LN(x))."""

    def __init__(self, config: QAViTConfig, drop_path: float) -> None:
        super().__init__()
        d, h, d_branch = config.embed_dim, config.num_heads, config.embed_dim // config.compress_ratio
        drops = {
            "attn_drop": config.dropout if config.attn_drop is None else config.attn_drop,
            "proj_drop": config.dropout,
        }
        self.norm1 = nn.LayerNorm(d)
        self.swa = SpatialWindowAttention(
            d, h, grid=config.grid, window=config.window_size, linformer_k=config.linformer_k, **drops
        )
        self.msda = MultiScaleDilatedAttention(
            d,
            h,
            grid=config.grid,
            dilations=config.dilation_factors,
            pooling=config.landmark_pooling_stride,
            linformer_k=config.linformer_k,
            truncate=config.msda_truncate,
            **drops,
        )
        self.cga = ChannelGroupAttention(d, h, groups=config.num_channel_groups, **drops)
        self.cross_attn = BankCrossAttention(d, h, **drops)
        self.norm_swa, self.compress_swa = nn.LayerNorm(d), nn.Linear(d, d_branch)
        self.norm_msda, self.compress_msda = nn.LayerNorm(d), nn.Linear(d, d_branch)
        self.norm_cga, self.compress_cga = nn.LayerNorm(d), nn.Linear(d, d_branch)
        self.norm_cross, self.compress_cross = nn.LayerNorm(d), nn.Linear(d, d_branch)
        self.fusion = HybridFusion()
        self.bottleneck_mlp = BottleneckMLP(4 * d_branch, d // config.bottleneck_ratio, d, config.dropout)
        self.norm2 = nn.LayerNorm(d)
        self.ccf_ffn = CCFFFN(d, int(d * config.mlp_ratio), config.grid, config.dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, bank: Bank, memory: GlobalTokenBank) -> tuple[Tensor, Bank]:
        n = self.norm1(x)
        swa = self.swa(n, bank)
        bank = memory.write(bank, swa, self.swa.norm)
        msda = self.msda(n, bank)
        bank = memory.write(bank, msda, self.msda.norm)
        cga = self.cga(n, bank)
        bank = memory.write(bank, cga, self.cga.norm)
        cross = self.cross_attn(n, bank)
        branches = [
            self.compress_swa(self.norm_swa(swa)),
            self.compress_msda(self.norm_msda(msda)),
            self.compress_cga(self.norm_cga(cga)),
            self.compress_cross(self.norm_cross(cross)),
        ]
        x = x + self.drop_path(self.bottleneck_mlp(self.fusion(branches)))
        x = x + self.drop_path(self.ccf_ffn(self.norm2(x)))
        return x, bank


class PatchEmbed(nn.Module):
    """Image (B, C, img_size, img_size) -> tokens (B, N, d): a convolution with stride = kernel = patch, LayerNorm."""

    def __init__(self, config: QAViTConfig) -> None:
        super().__init__()
        self.img_size = config.img_size
        self.proj = nn.Conv2d(config.in_channels, config.embed_dim, config.patch_size, config.patch_size)
        self.norm = nn.LayerNorm(config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.img_size, self.img_size):
            raise ValueError(
                f"this model takes {self.img_size} x {self.img_size} images, got {x.shape[-2]} x {x.shape[-1]}; "
                "resize the images or set img_size"
            )
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


def _square(size: Sequence[int]) -> int:
    if len(set(size)) != 1:
        raise ValueError(f"img_size must be square: got {tuple(size)}, give one number or two equal ones")
    return size[0]


def quad_blocks(model: nn.Module) -> list[QuadAttentionBlock]:
    """The blocks of a QAViT, in order."""
    return [module for module in model.modules() if isinstance(module, QuadAttentionBlock)]


class QAViT(nn.Module):
    """QAViT from a `QAViTConfig`, or from its fields as keywords; images (B, C, H, W) -> logits (B, num_classes).

    timm's argument names work too: in_chans, drop_rate, attn_drop_rate, drop_path_rate.
    Raises ValueError with the rule that an invalid configuration breaks.
    """

    def __init__(self, config: QAViTConfig | None = None, **fields: Any) -> None:
        super().__init__()
        pool = fields.pop("global_pool", None)
        fields = own_names(fields)
        if isinstance(fields.get("img_size"), tuple | list):  # timm passes (224, 224)
            fields["img_size"] = _square(fields["img_size"])
        self.config = config = (config or QAViTConfig()).replace(**fields)
        self.num_classes, self.grad_checkpointing = config.num_classes, False
        self.num_features = self.head_hidden_size = self.embed_dim = config.embed_dim
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.empty(1, config.grid**2, config.embed_dim))
        self.pos_drop = Dropout(config.dropout)
        self.global_bank = GlobalTokenBank(config)
        rates = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList([QuadAttentionBlock(config, rate) for rate in rates])
        self.norm: nn.Module = nn.LayerNorm(config.embed_dim)
        self.reset_classifier(config.num_classes, "avg" if pool is None else pool)
        self.feature_info = [
            {"num_chs": config.embed_dim, "reduction": config.patch_size, "module": f"blocks.{i}"}
            for i in range(config.depth)
        ]
        self.init_weights()
        if config.bank_update != "functional":
            self._freeze_gateway()

    def _freeze_gateway(self) -> None:
        """Only `functional` trains the gateway: otherwise set requires_grad=False, for optimizers and DDP."""
        bank = self.global_bank
        for gateway in (bank.write_norm, bank.write_gate, bank.write_compression):
            gateway.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, SpatialWindowAttention | MultiScaleDilatedAttention | ChannelGroupAttention):
                module.norm.requires_grad_(False)

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=self.config.init_std)
                nn.init.zeros_(module.bias)
            elif isinstance(module, GlobalTokenBank):
                nn.init.trunc_normal_(module.global_k, std=0.02)
                nn.init.trunc_normal_(module.global_v, std=0.02)
            elif isinstance(module, Linformer):
                nn.init.xavier_uniform_(module.E_k)
                nn.init.xavier_uniform_(module.E_v)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> normalized tokens (B, N, d)."""
        return self.norm(self.run_blocks(x)[0])

    def run_blocks(self, x: Tensor, keep: Sequence[int] = (), stop: int | None = None) -> tuple[Tensor, list[Tensor]]:
        """Images -> tokens (B, N, d) after the first `stop` blocks, and the outputs of the blocks in `keep`."""
        x = self.pos_drop(self.patch_embed(x) + self.pos_embed)
        bank = self.global_bank.read()
        kept = []
        for i, block in enumerate(self.blocks[:stop]):
            if self.grad_checkpointing and self.training:
                x, bank = checkpoint(block, x, bank, self.global_bank, use_reentrant=False)
            else:
                x, bank = block(x, bank, self.global_bank)
            if i in keep:
                kept.append(x)
        self.global_bank.store(bank)
        return x, kept

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, N, d) -> logits (B, num_classes), or the pooled features."""
        x = x.mean(dim=1) if self.global_pool == "avg" else x
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    # ── timm's model interface ──

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Features of the chosen blocks (None: all; an int n: the last n), as in timm's models.

        Returns a list of (B, d, H, W) feature maps ("NCHW") or (B, N, d) tokens ("NLC"); without
        `intermediates_only`, the pair (final tokens, that list).
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be NCHW or NLC, got {output_fmt}")
        take, last = feature_take_indices(len(self.blocks), indices)
        x, kept = self.run_blocks(x, take, last + 1 if stop_early else None)
        if norm:
            kept = [self.norm(t) for t in kept]
        if output_fmt == "NCHW":
            grid = (self.config.grid, self.config.grid)
            kept = [t.transpose(1, 2).unflatten(2, grid).contiguous() for t in kept]
        return kept if intermediates_only else (self.norm(x), kept)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the layers that `forward_intermediates` does not need for these indices."""
        take, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return take

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one, initialized like the model's other Linear layers; num_classes 0: no head."""
        if global_pool is not None:
            if global_pool not in ("avg", ""):
                raise ValueError(f"global_pool must be 'avg' or '' (no pooling), got {global_pool!r}")
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.config = self.config.replace(num_classes=num_classes)
        self.head: nn.Module = nn.Identity()
        if num_classes:
            device = next(self.parameters()).device
            head = nn.Linear(self.embed_dim, num_classes, device=device)
            nn.init.trunc_normal_(head.weight, std=self.config.init_std)
            nn.init.zeros_(head.bias)
            self.head = head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "global_bank.global_k", "global_bank.global_v"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer of each parameter, for timm's layer-wise learning rate decay."""
        return {
            "stem": r"^pos_embed|^patch_embed|^global_bank",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }
