"""Checks for claims.yaml's instant entries: the published table and properties of the published models.

The variants' formulas are in `variant_checks`. Models of the published size are built on the meta device.
"""

import functools
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from clear_vit import variant_checks
from clear_vit.compare import CLAIMED
from vit_core.ledger.claims import Value

Check = Callable[[], Value]


# ── the published table ──────────────────────────────────────────────────────────────────────────────────────────


def best_of_the_table() -> Value:
    """The row of the paper's table with the largest value in each column."""
    columns = enumerate(("acc@1", "acc@5"))
    return {"best": {name: max(CLAIMED, key=lambda row: CLAIMED[row][i]) for i, name in columns}}


# ── the published models ─────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def _tiny(variant: str) -> Any:
    """A model of the published size, on the meta device."""
    with torch.device("meta"):
        return timm.create_model(f"clear_vit_tiny_{variant}", num_classes=100)


def _micro(variant: str, **fields: Any) -> Any:
    return timm.create_model(f"clear_vit_micro_{variant}", num_classes=5, **fields)


def kind_of_positions() -> str:
    """Whether the baseline's position embedding is a trainable parameter."""
    pos_embed = _tiny("baseline").pos_embed
    return "learnable" if isinstance(pos_embed, nn.Parameter) and pos_embed.requires_grad else "fixed"


def baseline_to_timms() -> float:
    """Largest logit difference between the micro baseline and timm's VisionTransformer with the same weights."""
    ours = _micro("baseline").double().eval()
    nn.init.normal_(ours.head.weight)
    theirs = VisionTransformer(
        img_size=32, patch_size=4, embed_dim=64, depth=4, num_heads=4, mlp_ratio=2.0, num_classes=5, no_embed_class=True
    )
    theirs.double().eval().load_state_dict(ours.state_dict())
    images = torch.randn(4, 3, 32, 32).double()
    with torch.no_grad():
        return float((ours(images) - theirs(images)).abs().max())


def kernels_a_layer() -> int:
    """Number of kernels in each attention of clear_vit_tiny_suppression."""
    return len(_tiny("suppression").blocks[0].attn.kernel)


def best_has_both() -> bool:
    """Whether clear_vit_tiny_rope_mixed_ape has both a position embedding and RoPE."""
    best = _tiny("rope_mixed_ape")
    return best.pos_embed is not None and best.rope is not None


def parameters_of_the_baseline() -> int:
    """Number of parameters of clear_vit_tiny_baseline with 100 classes."""
    return sum(p.numel() for p in _tiny("baseline").parameters())


CHECKS: dict[str, Check] = variant_checks.CHECKS | {
    f.__name__: f
    for f in (
        best_of_the_table,
        kind_of_positions,
        baseline_to_timms,
        kernels_a_layer,
        best_has_both,
        parameters_of_the_baseline,
    )
}
