"""What claims.yaml's instant entries measure: QAViT's widths, and the README's own sums; with `CHECKS`, all of them.

Widths are read from models on torch's meta device, which have shapes but no values. Behaviour is measured in
property_checks.py, the recipe in recipe_checks.py.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

import qavit  # registers the models with timm
from qavit.bank import GlobalTokenBank
from qavit.model import Linformer, QAViT, QuadAttentionBlock
from qavit.property_checks import PROPERTIES
from qavit.recipe_checks import RECIPE_CHECKS, named
from qavit.registry import qavit_small, qavit_tiny
from vit_core.bench import multiply_adds
from vit_core.claims import Value

SIZES: dict[str, Callable[..., QAViT]] = {"tiny": qavit_tiny, "small": qavit_small}

# ── widths ────────────────────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def _shape(size: str, **fields: Any) -> QAViT:
    """A model without values, with 100 classes, in evaluation."""
    with torch.device("meta"):
        return SIZES[size](num_classes=100, **fields).eval()


def _first(model: QAViT) -> QuadAttentionBlock:
    return cast(QuadAttentionBlock, model.blocks[0])


def _block(size: str) -> QuadAttentionBlock:
    """One block without values: all are alike."""
    return _first(_shape(size, depth=1))


def _millions(size: str, **fields: Any) -> Value:
    return sum(p.numel() for p in _shape(size, **fields).parameters()) / 1e6


WIDTHS: dict[str, tuple[str, Callable[[QAViT], int]]] = {
    "embed_dim": ("Channels of the position embedding", lambda m: m.pos_embed.shape[-1]),
    "branch_dim": ("Outputs of the window branch's compression", lambda m: _first(m).compress_swa.out_features),
    "bottleneck": ("Hidden width of the bottleneck MLP", lambda m: _first(m).bottleneck_mlp.fc1.out_features),
    "num_heads": ("Heads of the window attention", lambda m: _first(m).swa.num_heads),
    "depth": ("Blocks", lambda m: len(m.blocks)),
}


def _width(size: str, key: str) -> Value:
    return WIDTHS[key][1](_shape(size))


def _sizes() -> dict[str, Callable[[], Value]]:
    """The cells of the README's table of models."""
    checks: dict[str, Callable[[], Value]] = {}
    for size in SIZES:
        name = f"QAViT-{size.capitalize()} as it is built"
        for key, (what, _) in WIDTHS.items():
            checks[f"{size}_{key}"] = named(f"{what} of {name}.", functools.partial(_width, size, key))
        checks[f"{size}_params"] = named(
            f"Parameters of {name} with 100 classes, in millions.", functools.partial(_millions, size)
        )
        checks[f"{size}_params_two_blocks"] = named(
            f"Parameters of {name}, but with two blocks, and 100 classes, in millions.",
            functools.partial(_millions, size, depth=2),
        )
    return checks


def compress_ratio() -> Value:
    """Input over output width of the four branches' compressions, in Tiny, then in Small."""
    branches = [_block(size).get_submodule(f"compress_{b}") for size in SIZES for b in ("swa", "msda", "cga", "cross")]
    return [linear.in_features / linear.out_features for linear in cast(list[nn.Linear], branches)]


def bottleneck_ratio() -> Value:
    """Width of the tokens over hidden width of the bottleneck MLP, in Tiny and in Small."""
    return [b.norm1.normalized_shape[0] / b.bottleneck_mlp.fc1.out_features for b in map(_block, SIZES)]


def bottleneck_widths() -> Value:
    """Inputs, hidden units and outputs of QAViT-Tiny's bottleneck MLP."""
    mlp = _block("tiny").bottleneck_mlp
    return f"{mlp.fc1.in_features} -> {mlp.fc1.out_features} -> {mlp.fc2.out_features}"


def _bottleneck_cost(replaced: nn.Module) -> float:
    """Multiply-adds of QAViT-Tiny's bottleneck MLP over those of what might stand in its place."""
    x = torch.empty(1, 196, 256, device="meta")
    mlp = _block("tiny").bottleneck_mlp
    return multiply_adds(lambda: mlp(x)) / multiply_adds(lambda: replaced.to("meta")(x))


def bottleneck_beside_linear() -> Value:
    """Multiply-adds of QAViT-Tiny's bottleneck MLP over those of one Linear from 4d' to d."""
    return _bottleneck_cost(nn.Linear(256, 256))


def bottleneck_beside_mlp() -> Value:
    """Multiply-adds of QAViT-Tiny's bottleneck MLP over those of a ViT's MLP, d to 4d to d."""
    return _bottleneck_cost(nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256)))


def mlp_ratio() -> Value:
    """Hidden width of the CCF-FFN over the width of the tokens, in Tiny and in Small."""
    return [b.ccf_ffn.fc1.out_features / b.norm1.normalized_shape[0] for b in map(_block, SIZES)]


def linformer_k() -> Value:
    """Keys that each of QAViT-Tiny's learned compressions (windows, dilated scales) leaves."""
    return [m.E_k.shape[1] for m in _block("tiny").modules() if isinstance(m, Linformer)]


def msda_reduction() -> Value:
    """Length of MSDA's sampled and pooled sequence over the keys that its compression makes of it, in QAViT-Tiny."""
    msda = _block("tiny").msda
    return msda.sampling.shape[0] / msda.linformer.E_k.shape[1]


def swa_reduction() -> Value:
    """Tokens of a window over the keys that SWA's compression makes of them, in QAViT-Tiny."""
    length, k = _block("tiny").swa.linformer.E_k.shape
    return length / k


def bank_size() -> Value:
    """Tokens in QAViT-Tiny's bank, which is also what a write reduces the N tokens to."""
    return _shape("tiny").global_bank.global_k.shape[1]


def banks() -> Value:
    """Global token banks in QAViT-Tiny's twelve blocks and around them."""
    return sum(isinstance(m, GlobalTokenBank) for m in _shape("tiny").modules())


def dwconv_weights() -> Value:
    """Weights that each channel of QAViT-Tiny's CCF-FFN convolution has: 9 where 3 × 3 and depthwise."""
    weight = _block("tiny").ccf_ffn.dwconv.weight
    return weight.numel() // weight.shape[0]


def _output(size: str) -> Value:
    return str(tuple(_shape(size)(torch.empty(2, 3, 224, 224, device="meta")).shape))


def tiny_output() -> Value:
    """Shape of QAViT-Tiny's logits of two 224 × 224 images."""
    return _output("tiny")


def small_output() -> Value:
    """Shape of QAViT-Small's logits of two 224 × 224 images."""
    return _output("small")


def custom_output() -> Value:
    """Shape of the logits of one 224 × 224 image from the README's custom configuration, with one of its 12 blocks."""
    config = qavit.QAViTConfig(
        img_size=224, patch_size=16, num_classes=1000, embed_dim=256, depth=12, num_heads=4, compress_ratio=4,
        bottleneck_ratio=2, mlp_ratio=0.5, global_bank_size=16, window_size=7, dilation_factors=(1, 2, 3),
        num_channel_groups=8,
    )  # fmt: skip
    with torch.device("meta"):
        return str(tuple(QAViT(config.replace(depth=1)).eval()(torch.empty(1, 3, 224, 224)).shape))


# ── the README's own arithmetic ───────────────────────────────────────────────────────────────────────────────────


def hours_tiny() -> Value:
    """300 epochs of the README's 25 seconds, in hours."""
    return 300 * 25 / 3600


def hours_tiny_with_evaluation() -> Value:
    """300 epochs of the README's 25 seconds, and 10,000 images at its 5660.2 a second after each, in hours."""
    return 300 * (25 + 10_000 / 5660.2) / 3600


def hours_of_both() -> Value:
    """300 epochs of the README's 25 seconds (Tiny), and of its 45 (Small), in hours."""
    return [300 * seconds / 3600 for seconds in (25, 45)]


def images_a_second() -> Value:
    """The README's batch of 256 over its 45.23 milliseconds."""
    return 256 / 45.23e-3


CHECKS: dict[str, Callable[[], Value]] = {
    **_sizes(),
    **PROPERTIES,
    **RECIPE_CHECKS,
    **{
        check.__name__: check
        for check in (
            compress_ratio, bottleneck_ratio, bottleneck_widths, bottleneck_beside_linear,
            bottleneck_beside_mlp, mlp_ratio, linformer_k, msda_reduction, swa_reduction, bank_size, banks,
            dwconv_weights, tiny_output, small_output, custom_output, hours_tiny, hours_tiny_with_evaluation,
            hours_of_both, images_a_second,
        )
    },
}  # fmt: skip
