"""clear-vit: seven variants of one ViT-Tiny (original: github.com/4adex/clear-vit, ImageNet-100, 90 epochs each).

    uv run clear-vit-train                                       micro rope_mixed_ape on the digits: 90% in one minute
    uv run clear-vit-train --variant baseline --data-path DIR    claimed 48.11% top-1 on ImageNet-100 (not run here)
    uv run clear-vit-compare                                     all seven with the same training budget

`VARIANTS` lists the experiments; the four attentions and the backbone that they share follow.

Shapes: B batch, N patches in raster order, D embed_dim, h heads, d head_dim; tokens are 1 + N, the class token first.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed, to_2tuple
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from clear_vit.attention import differential_attention, suppressed_attention
from clear_vit.entropy import pixel_entropy, token_entropy, with_class_token
from clear_vit.rope import Grid, Rope, rotate
from vit_core.models.attention import attention

# The original's experiments, worst to best by its table, as arguments of `ClearViT`; the last is an extra baseline.
VARIANTS: dict[str, dict[str, Any]] = {
    "pos_dropout": {"pos_dropout": 0.1},
    "diff_similarity": {"attention": "diff_similarity"},
    "baseline": {},
    "suppression": {"attention": "suppression"},
    "rope": {"rope": "mixed", "pos_embed": "none"},
    "diff_entropy": {"attention": "diff_entropy"},
    "rope_mixed_ape": {"rope": "mixed"},
    "rope_axial": {"rope": "axial", "pos_embed": "none"},
}


class Attention(nn.Module):
    """Plain attention, softmax(Q Kᵀ / √d) V. The other attentions override `attend`."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        layer: int = 0,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_drop_rate = num_heads, dim // num_heads, attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, rope: Tensor | None = None, entropy: Tensor | None = None) -> Tensor:
        """x (B, 1 + N, D), normalized; rope: this layer's table; entropy (B, 1 + N), of pixels -> (B, 1 + N, D)."""
        out = self.attend(*self.project(x, rope), x, entropy)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))

    def project(self, x: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Q and K, rotated if there is a RoPE table, and V: (B, h, 1 + N, d) each."""
        qk, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).split((2, 1), dim=2)
        if rope is not None:
            qk = rotate(qk, rope, overwrite=not torch.is_grad_enabled())  # (B, 1 + N, 2, h, d)
        q, k, v = (t.transpose(1, 2) for t in (*qk.unbind(2), v.squeeze(2)))
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, entropy: Tensor | None) -> Tensor:
        return attention(q, k, v, self.dropout_p)

    @property
    def dropout_p(self) -> float:
        return self.attn_drop_rate if self.training else 0.0


class DiffSimilarityAttention(Attention):
    """softmax(ΔQ ΔKᵀ / √d) V with ΔQ_i = Q_i − Q_{i−1}, ΔK_j = K_j − K_{j−1}, along the sequence of tokens.

    No token comes before the first one, the class token: it keeps its own Q and K ("keep"), or gets zeros ("zero"), and
    then attends to all tokens equally. The README does not say which, and its figure is missing: this is our reading.
    """

    def __init__(self, *args: Any, first_difference: str = "keep", **fields: Any) -> None:
        super().__init__(*args, **fields)
        if first_difference not in ("keep", "zero"):
            raise ValueError(f"first_difference must be keep or zero, got {first_difference!r}")
        self.first_difference = first_difference

    def attend(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, entropy: Tensor | None) -> Tensor:
        return attention(self.difference(q), self.difference(k), v, self.dropout_p)

    def difference(self, t: Tensor) -> Tensor:
        first = t[:, :, :1] if self.first_difference == "keep" else torch.zeros_like(t[:, :, :1])
        return torch.cat([first, t[:, :, 1:] - t[:, :, :-1]], 2)


class SuppressionAttention(Attention):
    """softmax(S − DWConv(S)) V of the scores S = Q Kᵀ / √d, with one 3 × 3 kernel per head and no bias."""

    def __init__(self, *args: Any, **fields: Any) -> None:
        super().__init__(*args, **fields)
        self.kernel = nn.Parameter(torch.empty(self.num_heads, 3, 3).uniform_(-1 / 3, 1 / 3))  # nn.Conv2d's default

    def attend(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, entropy: Tensor | None) -> Tensor:
        return suppressed_attention(q, k, v, self.kernel, self.dropout_p)


class DiffEntropyAttention(Attention):
    """(1 − λ_init) RMSNorm((A₁ − λ A₂) V): Differential Transformer (Ye et al., 2024, eq. 1-3), with λ an entropy.

    A₁ and A₂ are the softmax maps of the two halves of a head's Q and K. λ is learned in that paper; here λ_i is the
    entropy of patch i: of its token, or of its pixels if `entropy` is given. The factor (1 − λ_init) is kept.
    """

    def __init__(self, *args: Any, layer: int = 0, **fields: Any) -> None:
        super().__init__(*args, **fields)
        if self.head_dim % 2:
            raise ValueError(f"diff_entropy splits each head in two: head_dim must be even, got {self.head_dim}")
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * layer)  # layer counts from 0
        self.head_norm = nn.RMSNorm(self.head_dim, eps=1e-5)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, entropy: Tensor | None) -> Tensor:
        if entropy is None:
            entropy = with_class_token(token_entropy(x[:, 1:]))
        out = differential_attention(q, k, v, entropy, self.dropout_p)
        norm = self.head_norm
        scale = norm.weight * (1 - self.lambda_init)
        return F.rms_norm(out.to(scale.dtype), norm.normalized_shape, scale, norm.eps).to(out.dtype)


ATTENTIONS: dict[str, type[Attention]] = {
    "plain": Attention,
    "diff_similarity": DiffSimilarityAttention,
    "suppression": SuppressionAttention,
    "diff_entropy": DiffEntropyAttention,
}


class Block(TimmBlock):
    """timm's pre-norm block that also passes the RoPE table and the entropy to the attention."""

    def forward(self, x: Tensor, rope: Tensor | None = None, entropy: Tensor | None = None) -> Tensor:  # type: ignore[override]
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), rope, entropy)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


# timm arguments with a fixed value: another value would change the shared backbone, or be ignored.
BACKBONE: dict[str, Any] = {
    "class_token": True,
    "reg_tokens": 0,
    "patch_drop_rate": 0.0,
    "no_embed_class": True,
    "pre_norm": False,
    "dynamic_img_size": True,
    "qk_norm": False,
    "scale_attn_norm": False,
    "proj_bias": True,
}


class ClearViT(VisionTransformer):
    """timm's VisionTransformer with the original's attentions and positions: images (B, C, H, W) -> (B, num_classes).

    H and W: any multiples of the patch size; the position embedding is interpolated, RoPE's grid is extended.

    attention: one of `ATTENTIONS`. first_difference: for diff_similarity, see `DiffSimilarityAttention`.
    rope: None, "mixed" or "axial", with any attention; rope_theta: see `Rope`.
    pos_embed: "learn", added to the patches but not to the class token, or "none".
    pos_dropout: dropout on the position embedding itself. pos_embed_std: standard deviation of its initialization.
    attn_init: initialization of the attention's Linear layers: "uniform" in ±√(3/D), or "linear", nn.Linear's default,
    whose standard deviation is 0.58 times that. None: as published, "linear" with RoPE and "uniform" without. This
    confounds RoPE with its initialization: use one value for all variants in a fair comparison.
    entropy_source: for diff_entropy, "tokens" (default) or "pixels"; entropy_bins: gray levels of "pixels" (32).
    Other arguments are timm's. Raises ValueError for invalid arguments and combinations.
    """

    blocks: Any
    patch_embed: Any
    cls_token: Any
    pos_embed: Any

    def __init__(
        self,
        *,
        attention: str = "plain",
        first_difference: str | None = None,
        rope: str | None = None,
        rope_theta: float | None = None,
        pos_embed: str = "learn",
        pos_dropout: float = 0.0,
        pos_embed_std: float = 0.02,
        attn_init: str | None = None,
        entropy_source: str | None = None,
        entropy_bins: int | None = None,
        img_size: int | tuple[int, int] = 256,
        patch_size: int | tuple[int, int] = 16,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        qkv_bias: bool = True,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        **fields: Any,
    ) -> None:
        if attention not in ATTENTIONS:
            raise ValueError(f"attention must be one of {', '.join(ATTENTIONS)}; got {attention!r}")
        requirements = {
            "first_difference": (first_difference, attention == "diff_similarity", "attention=diff_similarity"),
            "entropy_source": (entropy_source, attention == "diff_entropy", "attention=diff_entropy"),
            "entropy_bins": (entropy_bins, entropy_source == "pixels", "entropy_source=pixels"),
            "rope_theta": (rope_theta, rope is not None, "rope=mixed or rope=axial"),
            "pos_dropout": (pos_dropout or None, pos_embed == "learn", "pos_embed=learn"),
        }
        for name, (value, used, needed) in requirements.items():
            if value is not None and not used:
                raise ValueError(f"{name} has no effect on this variant: it requires {needed}")
        if entropy_source not in (None, "tokens", "pixels"):
            raise ValueError(f"entropy_source must be tokens or pixels, got {entropy_source!r}")
        if attn_init not in (None, "uniform", "linear"):
            raise ValueError(f"attn_init must be uniform or linear, got {attn_init!r}")
        if pos_embed not in ("learn", "none"):
            raise ValueError(f"pos_embed must be learn or none, got {pos_embed!r}")
        if not 0 <= pos_dropout < 1:
            raise ValueError(f"pos_dropout must lie in [0, 1), got {pos_dropout}")
        if not 0 <= pos_embed_std <= 1e6:
            raise ValueError(f"pos_embed_std must be 0 or more and at most 1e6, got {pos_embed_std}")
        if not (0 <= attn_drop_rate <= 1 and 0 <= proj_drop_rate <= 1):  # torch's own check accepts NaN
            raise ValueError(f"drop rates must lie in [0, 1], got {attn_drop_rate} and {proj_drop_rate}")
        if min(embed_dim, depth, num_heads) < 1 or embed_dim % num_heads:
            sizes = f"embed_dim={embed_dim}, num_heads={num_heads}, depth={depth}"
            raise ValueError(f"embed_dim must be a multiple of num_heads, and all sizes at least 1; got {sizes}")
        bins = 32 if entropy_bins is None else entropy_bins
        patch = to_2tuple(patch_size)
        if entropy_source == "pixels" and min(bins, patch[0] * patch[1]) < 2:
            got = f"{bins} bins and {patch[0]} × {patch[1]} pixels"
            raise ValueError(f"entropy_source=pixels needs at least 2 bins and 2 pixels per patch; got {got}")
        if min(patch) < 1 or any(side < 1 or side % p for side, p in zip(to_2tuple(img_size), patch, strict=True)):
            raise ValueError(f"img_size must be a multiple of patch_size, got {img_size} and {patch_size}")
        for name, value in BACKBONE.items():
            if fields.get(name, value) != value:
                raise ValueError(f"{name} is {value} in clear-vit's backbone and cannot be changed; got {fields[name]}")
        fields |= {name: BACKBONE[name] for name in ("no_embed_class", "dynamic_img_size")}
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            qkv_bias=qkv_bias,
            pos_embed=pos_embed,
            attn_drop_rate=attn_drop_rate,
            proj_drop_rate=proj_drop_rate,
            block_fn=Block,
            weight_init="skip",
            **fields,
        )
        own = {} if first_difference is None else {"first_difference": first_difference}
        for layer, block in enumerate(self.blocks):
            block.attn = ATTENTIONS[attention](
                embed_dim,
                num_heads,
                layer=layer,
                qkv_bias=qkv_bias,
                attn_drop=attn_drop_rate,
                proj_drop=proj_drop_rate,
                **own,
            )
        self.rope = None if rope is None else Rope(rope, depth, num_heads, embed_dim // num_heads, rope_theta)
        self.pos_dropout, self.pos_embed_std = pos_dropout, pos_embed_std
        self.attn_init = attn_init or ("uniform" if rope is None else "linear")
        published_zero = rope is None and attention != "suppression"
        self.zero_attn_bias = published_zero if attn_init is None else attn_init == "uniform"
        self.pixel_entropy = partial(pixel_entropy, bins=bins) if entropy_source == "pixels" else None
        self.init_weights()

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """The original's initialization (its models at commit 20e892b; see tests/clear_vit/test_fidelity.py)."""
        stem = self.patch_embed.proj
        std = math.prod(stem.weight.shape[1:]) ** -0.5 / 0.8796  # LeCun normal, truncated at two standard deviations
        nn.init.trunc_normal_(stem.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(stem.bias)
        nn.init.normal_(self.cls_token, std=0.02)
        if self.pos_embed is not None:
            nn.init.normal_(self.pos_embed, std=self.pos_embed_std)
        for block in self.blocks:
            for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
                linear.reset_parameters()
            for linear in (block.attn.qkv, block.attn.proj):
                if self.attn_init == "uniform":
                    nn.init.uniform_(linear.weight, -((3 / self.embed_dim) ** 0.5), (3 / self.embed_dim) ** 0.5)
                if self.zero_attn_bias and linear.bias is not None:
                    nn.init.zeros_(linear.bias)
        if isinstance(self.head, nn.Linear):
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Patches (B, rows, columns, D) -> tokens (B, 1 + N, D)."""
        grid = (x.shape[1], x.shape[2])
        x = x.flatten(1, 2)
        if self.pos_embed is not None:
            pos_embed = self.pos_embed
            if grid != self.patch_embed.grid_size:
                pos_embed = resample_abs_pos_embed(pos_embed, grid, self.patch_embed.grid_size, num_prefix_tokens=0)
            x = x + F.dropout(pos_embed, self.pos_dropout, self.training)
        return self.pos_drop(torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1))

    def run_blocks(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the tokens after each block. Raises ValueError if the image size is no multiple of the patch size."""
        grid = self.grid_of(images)
        x = self._pos_embed(self.patch_embed(images))
        ropes = [None] * len(self.blocks) if self.rope is None else self.rope(grid)
        pixels = self.pixel_entropy
        entropy = None if pixels is None else with_class_token(pixels(images, self.patch_embed.patch_size))
        for block, rope in zip(self.blocks, ropes, strict=False):  # a pruned model has fewer blocks than tables
            if self.grad_checkpointing and self.training:
                x = checkpoint(block, x, rope, entropy)
            else:
                x = block(x, rope, entropy)
            yield x

    def grid_of(self, images: Tensor) -> Grid:
        """Rows and columns of patches."""
        (H, W), (height, width) = images.shape[-2:], self.patch_embed.patch_size
        if H % height or W % width:
            raise ValueError(f"image size must be a multiple of the patch size {height} × {width}; got {H} × {W}")
        return H // height, W // width

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Images (B, C, H, W) -> normalized tokens (B, 1 + N, D)."""
        if attn_mask is not None or is_causal:
            raise ValueError("clear-vit's attentions do not support attn_mask or is_causal")
        tokens = x
        for tokens in self.run_blocks(x):  # noqa: B007 -- only the last is used
            pass
        return self.norm(tokens)

    def forward_intermediates(  # type: ignore[override]
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        **unsupported: Any,
    ) -> Any:
        """Features of the chosen blocks (None: all, int n: the last n), in timm's format.

        Returns a list of (B, D, rows, columns) grids ("NCHW") or (B, N, D) tokens ("NLC"), each with its class token
        (B, 1, D) if `return_prefix_tokens`; without `intermediates_only`, the pair (final tokens, that list).
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be NCHW or NLC, got {output_fmt!r}")
        if wanted := [k for k, v in unsupported.items() if v is not None and v is not False]:
            raise ValueError(f"not supported: {', '.join(wanted)}")
        take, last = feature_take_indices(len(self.blocks), indices)
        kept: list[Any] = []
        tokens = x
        for i, tokens in enumerate(self.run_blocks(x)):
            if i in take:
                kept.append(self.norm(tokens) if norm else tokens)
            if stop_early and i == last:
                break
        maps = [t[:, 1:] for t in kept]
        if output_fmt == "NCHW":
            maps = [m.transpose(1, 2).unflatten(2, self.grid_of(x)).contiguous() for m in maps]
        if return_prefix_tokens:
            maps = list(zip(maps, [t[:, :1] for t in kept], strict=True))
        return maps if intermediates_only else (self.norm(tokens), maps)

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token", "rope.freqs"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        groups = super().group_matcher(coarse)
        return {**groups, "stem": rf"{groups['stem']}|^rope"}
