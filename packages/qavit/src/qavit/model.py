"""QAViT: Quad-Attention Vision Transformer (2024; original code: HQA_VIT/QAViT.py).

Four attentions run side by side on the same tokens — windows, dilated scales, channel groups, and a small memory
shared by all blocks — and a learned softmax over four scalars weighs them.

    x ─ LN ┬ window attention ───────── LN, d → d/4 ┐
           ├ dilated attention ──────── LN, d → d/4 ├ × softmax(w) ─ concat ─ d → d/2 → d ─ + x ─ CCF-FFN
           ├ channel-group attention ── LN, d → d/4 │
           └ cross-attention to bank ── LN, d → d/4 ┘
    The global token bank is read by all four and written after each of the first three.

    uv run qavit-train                    the micro model on digits: over 90% in a minute on two CPU cores
    uv run qavit-train --model tiny       CIFAR-100, 300 epochs; claimed 78-80% top-1 (not measured here)

Shapes: B batch, N = H·W tokens, d embed_dim, h heads, M bank size, k linformer_k, L rows of E, G channel groups,
w window size, W windows in an image.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qavit.bank import Bank, GlobalTokenBank
from qavit.config import QAViTConfig
from qavit.timm_api import TimmApi, own_names
from vit_core.models.attention import attention
from vit_core.models.dropout import Dropout, dropout


class Linformer(nn.Module):
    """Learned compression along the tokens, shared by the heads: K' = E_kᵀ K, V' = E_vᵀ V. E: (L, k)."""

    def __init__(self, length: int, k: int) -> None:
        super().__init__()
        self.E_k = nn.Parameter(torch.empty(length, k))
        self.E_v = nn.Parameter(torch.empty(length, k))


def _heads(x: Tensor, h: int) -> Tensor:
    B, N, d = x.shape
    return x.view(B, N, h, d // h).transpose(1, 2)  # (B, h, N, d/h)


def _merge(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)  # (B, h, N, d/h) -> (B, N, d)


class SpatialWindowAttention(nn.Module):
    """SWA: attention in w × w windows, to the window's k compressed keys and the bank's M."""

    def __init__(self, config: QAViTConfig) -> None:
        super().__init__()
        d = config.embed_dim
        self.num_heads, self.window = config.num_heads, config.window_size
        self.grid, self.pad = config.grid, -config.grid % config.window_size
        self.attn_drop = _attn_drop(config)
        self.qkv = nn.Linear(d, 3 * d)
        self.linformer = Linformer(self.window**2, config.linformer_k)
        self.proj = nn.Linear(d, d)
        self.proj_drop = Dropout(config.dropout)
        self.norm = nn.LayerNorm(d)  # of what is written to the bank

    def forward(self, x: Tensor, bank: Bank) -> Tensor:
        B, N, d = x.shape
        w, side = self.window, self.grid + self.pad
        s = side // w
        x = x.view(B, self.grid, self.grid, d)
        if self.pad:
            x = F.pad(x, (0, 0, 0, self.pad, 0, self.pad))
        x = x.view(B, s, w, s, w, d).transpose(2, 3).reshape(B * s * s, w * w, d)  # (B·W, w², d)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        k = _compress(self.linformer.E_k, k, bank.k)  # (B·W, k + M, d)
        v = _compress(self.linformer.E_v, v, bank.v)
        h = self.num_heads
        x = attention(_heads(q, h), _heads(k, h), _heads(v, h), self.attn_drop if self.training else 0.0)
        x = _merge(x).view(B, s, s, w, w, d).transpose(2, 3).reshape(B, side, side, d)
        x = x[:, : self.grid, : self.grid].reshape(B, N, d)  # the original keeps the padding, and fails there
        return self.proj_drop(self.proj(x))


def _compress(E: Tensor, x: Tensor, bank: Tensor) -> Tensor:
    """Eᵀ x with the bank's tokens below: E (L, k), x (B·W, L, d), bank (1 or B, M, d) -> (B·W, k + M, d).

    As one product, whose bias is the bank, under zero rows of Eᵀ: no copy is made to join the two.
    """
    rows = F.pad(E.T, (0, 0, 0, bank.shape[1]))  # (k + M, L)
    bias = F.pad(bank, (0, 0, E.shape[1], 0))  # (1 or B, k + M, d)
    if bank.shape[0] > 1:
        bias = bias.repeat_interleave(x.shape[0] // bank.shape[0], dim=0)
    return torch.baddbmm(bias, rows.expand(x.shape[0], -1, -1), x)


class MultiScaleDilatedAttention(nn.Module):
    """MSDA: tokens attend to the bank and to the grid at every r-th patch, r in (1, 2, 3), pooled, compressed to k.

    Sampling, pooling and compression are linear along the tokens, so they are one (k, N) matrix: C = Eᵀ A with A
    (L, N) the fixed matrix of sampling and pooling. K = C (x W + b) = (C x) W + (C 1) b projects k tokens instead of L.
    The original cuts the sequence to max(k, 128) tokens: on a 14 × 14 grid 128 of 135, so that most of the coarsest
    scale is lost (`msda_truncate=True`). By default E's rows are stretched over the whole sequence instead, as position
    embeddings are when a grid grows: same parameters, no token lost.
    """

    def __init__(self, config: QAViTConfig) -> None:
        super().__init__()
        d = config.embed_dim
        self.num_heads = config.num_heads
        self.attn_drop = _attn_drop(config)
        self.qkv = nn.Linear(d, 3 * d)
        self.linformer = Linformer(max(config.linformer_k, 128), config.linformer_k)
        self.truncate = config.msda_truncate
        self.register_buffer("sampling", _dilated_sampling(config), persistent=False)  # A
        self.sampling: Tensor
        self.proj = nn.Linear(d, d)
        self.proj_drop = Dropout(config.dropout)
        self.norm = nn.LayerNorm(d)

    def compression(self, E: Tensor) -> Tensor:
        """C (k, N) for E (L, k)."""
        length = self.sampling.shape[0]
        if length > E.shape[0] and not self.truncate:
            E = F.interpolate(E.T[None], size=length, mode="linear")[0].T
        rows = min(length, E.shape[0])  # a sequence shorter than L is padded with zero keys: the other rows of E idle
        return E[:rows].T @ self.sampling[:rows]

    def forward(self, x: Tensor, bank: Bank) -> Tensor:
        B = x.shape[0]
        w_q, w_k, w_v = self.qkv.weight.chunk(3)
        b_q, b_k, b_v = self.qkv.bias.chunk(3)
        q = F.linear(x, w_q, b_q)
        c_k, c_v = self.compression(self.linformer.E_k), self.compression(self.linformer.E_v)
        x_k, x_v = (torch.cat((c_k, c_v)) @ x).chunk(2, dim=1)  # (B, k, d) each
        k = F.linear(x_k, w_k) + c_k.sum(1, keepdim=True) * b_k
        v = F.linear(x_v, w_v) + c_v.sum(1, keepdim=True) * b_v
        k = torch.cat((k, bank.k.expand(B, -1, -1)), dim=1)  # (B, k + M, d)
        v = torch.cat((v, bank.v.expand(B, -1, -1)), dim=1)
        h = self.num_heads
        x = attention(_heads(q, h), _heads(k, h), _heads(v, h), self.attn_drop if self.training else 0.0)
        return self.proj_drop(self.proj(_merge(x)))


def _dilated_sampling(config: QAViTConfig) -> Tensor:
    """A (L, N): row l averages the tokens that landmark l of the sequence x[::r, ::r], r = 1, 2, 3, is pooled from."""
    tokens = torch.arange(config.grid**2).view(config.grid, config.grid)
    sequence = torch.cat([tokens[::r, ::r].flatten() for r in config.dilation_factors])
    stride = config.landmark_pooling_stride
    landmarks = sequence[: config.msda_length * stride].view(-1, stride)  # pooling drops an incomplete end
    return F.one_hot(landmarks, config.grid**2).float().mean(1)


class ChannelGroupAttention(nn.Module):
    """CGA: G groups of channels attend over the tokens apart, with shared projections to half the width."""

    def __init__(self, config: QAViTConfig) -> None:
        super().__init__()
        d, G = config.embed_dim, config.num_channel_groups
        self.num_groups, self.num_heads = G, config.num_heads
        self.attn_drop = _attn_drop(config)
        self.q_proj = nn.Linear(d // G, d // 2 // G)
        self.k_proj = nn.Linear(d // G, d // 2 // G)
        self.v_proj = nn.Linear(d // G, d // 2 // G)
        self.bank_k_proj = nn.Linear(d, d // 2 // G)
        self.bank_v_proj = nn.Linear(d, d // 2 // G)
        self.proj = nn.Linear(d // 2, d)
        self.proj_drop = Dropout(config.dropout)
        self.norm = nn.LayerNorm(d)

    def forward(self, x: Tensor, bank: Bank) -> Tensor:
        B, N, d = x.shape
        G, h = self.num_groups, self.num_heads
        projections = (self.q_proj, self.k_proj, self.v_proj)
        weight = torch.cat([p.weight for p in projections])
        bias = torch.cat([p.bias for p in projections])
        qkv = F.linear(x.view(B, N, G, d // G), weight, bias)  # (B, N, G, 3·d/2/G)
        # Heads are a few channels wide: laid out with the tokens last, as narrow products want them.
        q, k, v = qkv.view(B, N, G, 3, h, -1).permute(3, 0, 2, 4, 5, 1)  # (B, G, h, d/2/G/h, N)
        k = torch.cat((k, self._bank_heads(self.bank_k_proj(bank.k), B)), dim=-1)  # (B, G, h, d/2/G/h, N + M)
        v = torch.cat((v, self._bank_heads(self.bank_v_proj(bank.v), B)), dim=-1)
        q, k, v = (t.flatten(1, 2).transpose(2, 3) for t in (q, k, v))  # (B, G·h, N or N + M, d/2/G/h)
        x = attention(q, k, v, self.attn_drop if self.training else 0.0)
        return self.proj_drop(self.proj(_merge(x)))

    def _bank_heads(self, bank: Tensor, B: int) -> Tensor:
        heads = _heads(bank, self.num_heads).transpose(2, 3)  # (1 or B, h, d/2/G/h, M)
        return heads[:, None].expand(B, self.num_groups, -1, -1, -1)


class BankCrossAttention(nn.Module):
    """Cross-attention: tokens ask the bank.

    The bank has M tokens, far fewer than N, so the weights that meet it are multiplied first:
    scores q kᵀ = x (W_qᵀ kᵀ) and output (P v) W_o = P (v W_o): two products of width h·M replace two of width d.
    """

    def __init__(self, config: QAViTConfig) -> None:
        super().__init__()
        d = config.embed_dim
        self.num_heads, self.attn_drop = config.num_heads, _attn_drop(config)
        self.q_proj = nn.Linear(d, d)
        self.k_proj = nn.Linear(d, d)
        self.v_proj = nn.Linear(d, d)
        self.proj = nn.Linear(d, d)
        self.proj_drop = Dropout(config.dropout)

    def forward(self, x: Tensor, bank: Bank) -> Tensor:
        h, d = self.num_heads, x.shape[-1]
        k = _heads(self.k_proj(bank.k), h) * (d // h) ** -0.5  # (1 or B, h, M, d/h)
        v = _heads(self.v_proj(bank.v), h)
        w_scores = (k @ self.q_proj.weight.view(h, d // h, d)).flatten(1, 2)  # (1 or B, h·M, d)
        b_scores = (k @ self.q_proj.bias.view(h, d // h, 1)).flatten(1)[:, None]  # (1 or B, 1, h·M)
        w_out = (v @ self.proj.weight.view(d, h, d // h).permute(1, 2, 0)).flatten(1, 2)  # (1 or B, h·M, d)
        scores = torch.baddbmm(b_scores, x, w_scores.transpose(1, 2).expand(x.shape[0], -1, -1))
        p = scores.unflatten(-1, (h, -1)).softmax(dim=-1).flatten(2)  # (B, N, h·M), over each head's M
        p = dropout(p, self.attn_drop, self.training)
        return self.proj_drop(torch.baddbmm(self.proj.bias, p, w_out.expand(p.shape[0], -1, -1)))


def _attn_drop(config: QAViTConfig) -> float:
    return config.dropout if config.attn_drop is None else config.attn_drop


class HybridFusion(nn.Module):
    """Branches scaled by a softmax over four learned scalars, then concatenated: 4 × (B, N, d') -> (B, N, 4d')."""

    def __init__(self) -> None:
        super().__init__()
        self.fusion_weights = nn.Parameter(torch.ones(4))

    def forward(self, branches: list[Tensor]) -> Tensor:
        weights = self.fusion_weights.softmax(dim=0).repeat_interleave(branches[0].shape[-1])
        return torch.cat(branches, dim=-1) * weights


class BottleneckMLP(nn.Module):
    """4d' -> r = d/2 -> d."""

    def __init__(self, config: QAViTConfig) -> None:
        super().__init__()
        d, r = config.embed_dim, config.embed_dim // config.bottleneck_ratio
        self.fc1 = nn.Linear(4 * (d // config.compress_ratio), r)
        self.fc2 = nn.Linear(r, d)
        self.drop = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class CCFFFN(nn.Module):
    """Convolutional channel fusion feed-forward: d -> d/2, GELU, 3 × 3 depthwise convolution on the grid, -> d."""

    def __init__(self, config: QAViTConfig) -> None:
        super().__init__()
        d, hidden = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
        self.grid = config.grid
        self.fc1 = nn.Linear(d, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, d)
        self.drop = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.fc1(x))
        x = x.transpose(1, 2).unflatten(2, (self.grid, self.grid))  # (B, d/2, H, W), channels last in memory
        x = self.dwconv(x).flatten(2).transpose(1, 2)
        return self.drop(self.fc2(x))


class QuadAttentionBlock(nn.Module):
    def __init__(self, config: QAViTConfig, drop_path: float) -> None:
        super().__init__()
        d, d_branch = config.embed_dim, config.embed_dim // config.compress_ratio
        self.norm1 = nn.LayerNorm(d)
        self.swa = SpatialWindowAttention(config)
        self.msda = MultiScaleDilatedAttention(config)
        self.cga = ChannelGroupAttention(config)
        self.cross_attn = BankCrossAttention(config)
        self.norm_swa, self.compress_swa = nn.LayerNorm(d), nn.Linear(d, d_branch)
        self.norm_msda, self.compress_msda = nn.LayerNorm(d), nn.Linear(d, d_branch)
        self.norm_cga, self.compress_cga = nn.LayerNorm(d), nn.Linear(d, d_branch)
        self.norm_cross, self.compress_cross = nn.LayerNorm(d), nn.Linear(d, d_branch)
        self.fusion = HybridFusion()
        self.bottleneck_mlp = BottleneckMLP(config)
        self.norm2 = nn.LayerNorm(d)
        self.ccf_ffn = CCFFFN(config)
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
            raise ValueError(f"this model takes {self.img_size} x {self.img_size} images, got {tuple(x.shape[-2:])}")
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


def _square(size: Sequence[int]) -> int:
    if len(set(size)) != 1:
        raise ValueError(f"img_size must be square, got {tuple(size)}")
    return size[0]


class QAViT(TimmApi):
    """QAViT from a `QAViTConfig`, or from its fields as keywords; images (B, C, H, W) -> logits (B, num_classes).

    timm's names for the fields work too: in_chans, drop_rate, attn_drop_rate, drop_path_rate.
    Raises ValueError, with the rule, for a configuration that cannot work.
    """

    def __init__(self, config: QAViTConfig | None = None, **fields: Any) -> None:
        super().__init__()
        pool = fields.pop("global_pool", None)
        fields = own_names(fields)
        if isinstance(fields.get("img_size"), tuple | list):  # timm's form of a square: (224, 224)
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
        """Outside `functional` nothing that the gateway computes is differentiated: say so, to optimisers and DDP."""
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
        """Images (B, C, H, W) -> normalised tokens (B, N, d)."""
        return self.norm(self.run_blocks(x)[0])

    def run_blocks(self, x: Tensor, keep: Sequence[int] = (), stop: int | None = None) -> tuple[Tensor, list[Tensor]]:
        """Images -> tokens (B, N, d) after block `stop`, and those after the blocks in `keep`."""
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
