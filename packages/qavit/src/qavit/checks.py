"""Checks of claims.yaml's instant entries: sizes on PyTorch's meta device, and arithmetic on published numbers.

Behavior is measured in property_checks.py. tests/qavit/test_parity.py tests that the model matches the original.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

import qavit  # registers the models with timm
from qavit.bank import GlobalTokenBank
from qavit.model import Linformer, QAViT, QuadAttentionBlock, quad_blocks
from qavit.property_checks import PROPERTIES, window_tokens
from qavit.registry import qavit_small, qavit_tiny
from vit_core.ledger.claims import Value

SIZES: dict[str, Callable[..., QAViT]] = {"Tiny": qavit_tiny, "Small": qavit_small}


@functools.cache
def _shape(size: str, depth: int | None = None) -> QAViT:
    """A published model on the meta device with 100 classes, in evaluation mode; depth overrides its own."""
    with torch.device("meta"):
        fields = {} if depth is None else {"depth": depth}
        return SIZES[size](num_classes=100, msda_truncate=True, **fields).eval()


def _block(size: str) -> QuadAttentionBlock:
    """One block on the meta device; all blocks have the same shapes."""
    return quad_blocks(_shape(size, depth=1))[0]


def _millions(depth: int | None = None) -> Value:
    counts = {size: sum(p.numel() for p in _shape(size, depth).parameters()) / 1e6 for size in SIZES}
    return {f"QAViT-{size}": {"million parameters": count} for size, count in counts.items()}


def parameters() -> Value:
    """Number of parameters of both models with 100 classes, in millions."""
    return _millions()


def parameters_of_two_blocks() -> Value:
    """Number of parameters of both models with 100 classes and only two blocks, in millions."""
    return _millions(depth=2)


def widths() -> Value:
    """Widths, number of heads and depth of both models, read from their modules."""
    found = {}
    for size in SIZES:
        model, block = _shape(size), _block(size)
        found[f"QAViT-{size}"] = {
            "d": model.pos_embed.shape[-1],
            "d'": block.compress_swa.out_features,
            "r": block.bottleneck_mlp.fc1.out_features,
            "heads": block.swa.num_heads,
            "depth": len(model.blocks),
        }
    return found


def constraints() -> Value:
    """Width ratios in one block of both models (d / d' of the branch that deviates most from 4), and k."""
    found = {}
    for size in SIZES:
        block = _block(size)
        d = block.norm1.normalized_shape[0]
        compressions = (block.compress_swa, block.compress_msda, block.compress_cga, block.compress_cross)
        ratios = [c.in_features / c.out_features for c in compressions]
        keys = {m.E_k.shape[1] for m in block.modules() if isinstance(m, Linformer)}
        found[f"QAViT-{size}"] = {
            "d / d'": max(ratios, key=lambda ratio: abs(ratio - 4)),
            "d / r": d / block.bottleneck_mlp.fc1.out_features,
            "FFN / d": block.ccf_ffn.fc1.out_features / d,
            "k": max(keys, key=lambda k: abs(k - 64)),
        }
    return found


def structure() -> Value:
    """Structure of a QAViT-Tiny block, read from its modules; window, dilations and groups from changed inputs."""
    block, model = _block("Tiny"), _shape("Tiny")
    mlp, kernel = block.bottleneck_mlp, block.ccf_ffn.dwconv
    found: dict[str, Any] = {
        "block": {"branches": PROPERTIES["branches"]()},
        "SWA": {"window side": math.isqrt(window_tokens())},
        "MSDA": {"dilation rates": PROPERTIES["dilations"]()},
        "CGA": {"channel groups": PROPERTIES["channel_groups"]()},
        "bottleneck MLP": {
            "4d' -> r -> d": f"{mlp.fc1.in_features} -> {mlp.fc1.out_features} -> {mlp.fc2.out_features}"
        },
        "CCF-FFN": {"kernel side": kernel.weight.shape[-1], "depthwise": kernel.weight.shape[1] == 1},
        "global token bank": {
            "tokens": model.global_bank.global_k.shape[1],
            "banks in the model": sum(isinstance(m, GlobalTokenBank) for m in model.modules()),
        },
    }
    return found


def _landmarks(block: QuadAttentionBlock) -> int:
    return block.msda.landmarks(torch.empty(1, 196, 1, device="meta")).shape[1]


def linformer_reduction() -> Value:
    """Number of tokens before a compression of QAViT-Tiny divided by the number after it."""
    block = _block("Tiny")
    k = block.msda.linformer.E_k.shape[1]
    window = block.swa.linformer.E_k.shape[0]
    return {"dilated sequence": {"N / 64": _landmarks(block) / k}, "window": {"N / 64": window / k}}


def landmarks_compressed() -> Value:
    """Number of landmarks of QAViT-Tiny's dilated sequence that are compressed, as published."""
    block = _block("Tiny")
    return min(_landmarks(block), block.msda.linformer.E_k.shape[0])


def outputs() -> Value:
    """Shape of the logits for two images (Tiny, Small), and for one image (the README's custom configuration)."""
    with torch.device("meta"):
        config = qavit.QAViTConfig(
            img_size=224,
            patch_size=16,
            num_classes=1000,
            embed_dim=256,
            depth=1,
            num_heads=4,
            compress_ratio=4,
            bottleneck_ratio=2,
            mlp_ratio=0.5,
            global_bank_size=16,
            window_size=7,
            dilation_factors=(1, 2, 3),
            num_channel_groups=8,
        )
        custom = tuple(QAViT(config).eval()(torch.empty(1, 3, 224, 224)).shape)
        both = {size: tuple(_shape(size)(torch.empty(2, 3, 224, 224)).shape) for size in SIZES}
    return {name: {"output": str(shape)} for name, shape in {**both, "custom": custom}.items()}


# ── arithmetic on published numbers ──────────────────────────────────────────────────────────────────────────────────


def batches_per_second() -> Value:
    """390 batches of 128 images divided by the 30 and 25 seconds per epoch of train_configs.md."""
    return [50_000 // 128 / seconds for seconds in (30, 25)]


def hours_tiny() -> Value:
    """300 epochs at the README's 25 seconds per epoch, in hours."""
    return 300 * 25 / 3600


def hours_of_both() -> Value:
    """300 epochs at the README's 25 (Tiny) and 45 (Small) seconds per epoch, in hours."""
    return [300 * seconds / 3600 for seconds in (25, 45)]


def images_per_second() -> Value:
    """50,000 images divided by the seconds per epoch."""
    return {f"{seconds} s": {"images/s": 50_000 / seconds} for seconds in (25, 18, 45, 55)}


def example_throughput() -> Value:
    """The README's batch size of 256 divided by its 45.23 ms."""
    return 256 / 45.23e-3


CHECKS: dict[str, Callable[[], Value]] = PROPERTIES | {
    check.__name__: check
    for check in (
        parameters,
        parameters_of_two_blocks,
        widths,
        constraints,
        structure,
        linformer_reduction,
        landmarks_compressed,
        outputs,
        batches_per_second,
        hours_tiny,
        hours_of_both,
        images_per_second,
        example_throughput,
    )
}
