"""Configuration of a QAViT, with the field names of the original code (`QAViTConfig`)."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

BankUpdate = Literal["inplace", "functional", "frozen"]


@dataclass(kw_only=True)
class QAViTConfig:
    """Architecture of a QAViT. The defaults are QAViT-Tiny. Raises ValueError with the rule that a value breaks."""

    img_size: int = 224  # pixels, height and width
    patch_size: int = 16
    in_channels: int = 3
    num_classes: int = 1000  # 0: no classifier, the model returns pooled features
    embed_dim: int = 256  # d
    depth: int = 12
    num_heads: int = 4  # h
    compress_ratio: int = 4  # d' = d / 4: width of a branch after its compression
    bottleneck_ratio: int = 2  # r = d / 2: hidden width of the bottleneck MLP
    mlp_ratio: float = 0.5  # hidden width of the CCF-FFN divided by d
    global_bank_size: int = 16  # M
    dropout: float = 0.1
    attn_drop: float | None = None  # dropout rate for attention weights; None: same as `dropout`, as published
    drop_path: float = 0.1  # stochastic depth rate of the last block; increases linearly from 0
    window_size: int = 7  # side of the windows in SWA, in patches
    dilation_factors: tuple[int, ...] = (1, 2, 3)
    landmark_pooling_stride: int = 2  # pooling stride along the dilated sequence, in tokens
    num_channel_groups: int = 8  # G
    linformer_k: int = 64  # k: number of keys after compression, for each window and for the dilated sequence
    bank_update: BankUpdate = "inplace"
    init_std: float = 0.02  # of Linear weights, truncated normal; the compressions E are Xavier-uniform, as published
    msda_truncate: bool = False  # True: truncate the dilated sequence to max(k, 128) tokens, as published

    def __post_init__(self) -> None:
        self.dilation_factors = tuple(self.dilation_factors)
        d, G = self.embed_dim, self.num_channel_groups
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
            _require(type(getattr(self, name)) is int, f"{name} must be an integer, got {getattr(self, name)!r}")
        for name in ("dropout", "attn_drop", "drop_path"):
            if getattr(self, name) is not None and not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        _require(self.num_classes >= 0, f"num_classes must not be negative, got {self.num_classes}")
        _require(
            self.img_size % self.patch_size == 0,
            f"img_size must be a multiple of patch_size, got {self.img_size} and {self.patch_size}",
        )
        _require(
            d % self.num_heads == 0,
            f"embed_dim must be a multiple of num_heads, got {d} and {self.num_heads}",
        )
        _require(
            d % self.compress_ratio == 0,
            f"embed_dim must be a multiple of compress_ratio, got {d} and {self.compress_ratio}",
        )
        _require(
            d % self.bottleneck_ratio == 0,
            f"embed_dim must be a multiple of bottleneck_ratio, got {d} and {self.bottleneck_ratio}",
        )
        _require(
            1 <= d * self.mlp_ratio < math.inf,
            f"embed_dim x mlp_ratio must be finite and at least 1, got {d} and {self.mlp_ratio}",
        )
        _require(0.0 < self.init_std <= 1.0, f"init_std must lie in (0, 1], got {self.init_std}")
        _require(d % (2 * G) == 0, f"embed_dim must be a multiple of 2 x num_channel_groups, got {d} and {G}")
        _require(
            d // 2 // G % self.num_heads == 0,
            f"a channel group's width embed_dim / 2 / num_channel_groups ({d // 2 // G}) must be a multiple of "
            f"num_heads ({self.num_heads})",
        )
        _require(
            bool(self.dilation_factors) and min(self.dilation_factors) >= 1,
            f"dilation_factors must be positive integers, got {self.dilation_factors}",
        )
        _require(
            self.msda_length >= 1,
            f"landmark_pooling_stride {self.landmark_pooling_stride} leaves no token of the dilated sequence on a "
            f"{self.grid} x {self.grid} grid; give a smaller one",
        )
        _require(
            self.bank_update in ("inplace", "functional", "frozen"),
            f"bank_update must be inplace, functional or frozen, got {self.bank_update!r}",
        )

    @property
    def grid(self) -> int:
        """Number of patches along one side."""
        return self.img_size // self.patch_size

    @property
    def msda_length(self) -> int:
        """Tokens of the dilated sequence after pooling: 135 on the 14 x 14 grid of the published models."""
        return sum((-(-self.grid // r)) ** 2 for r in self.dilation_factors) // self.landmark_pooling_stride

    def replace(self, **changes: Any) -> "QAViTConfig":
        """Return a validated copy with some fields changed."""
        return dataclasses.replace(self, **changes)


_COUNTS = (
    "img_size",
    "patch_size",
    "in_channels",
    "embed_dim",
    "depth",
    "num_heads",
    "compress_ratio",
    "bottleneck_ratio",
    "global_bank_size",
    "window_size",
    "landmark_pooling_stride",
    "num_channel_groups",
    "linformer_k",
)


def _require(condition: bool, rule: str) -> None:
    if not condition:
        raise ValueError(rule)


# The original README's models; the micro model is ours, for 32 x 32 images on a CPU.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": {"embed_dim": 384, "depth": 16, "num_heads": 6, "global_bank_size": 32, "drop_path": 0.15},
    "micro": {
        "img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 2, "global_bank_size": 8,
        "window_size": 4, "num_channel_groups": 4, "linformer_k": 16, "dropout": 0.0, "drop_path": 0.05,
        "init_std": 0.1,  # about 1/√64: with 0.02 so narrow a model trains slowly at first (87% on digits, not 97%)
    },
}  # fmt: skip

TIMM_NAMES = {  # timm's argument name -> field
    "in_chans": "in_channels",
    "drop_rate": "dropout",
    "attn_drop_rate": "attn_drop",
    "drop_path_rate": "drop_path",
}


def own_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Map timm's argument names to `QAViTConfig` fields. ValueError if a field is given two different values."""
    named: dict[str, Any] = {}
    for name, value in fields.items():
        own = TIMM_NAMES.get(name, name)
        if own in named and named[own] != value:
            raise ValueError(
                f"{own} is given twice, as {named[own]} and as {value}: timm's name and ours mean the same; give one"
            )
        named[own] = value
    return named
