"""Explanation methods (captured attention, rollout, relevance, sparsity, Grad-CAM), their metrics, and figures."""

from vit_core.explain.attention_capture import AttentionCall, CapturedAttention, capture_attention
from vit_core.explain.attention_relevance import attention_relevance
from vit_core.explain.attention_statistics import AttentionStatistics, LayerAttention, measure_attention
from vit_core.explain.class_token import class_token_attention
from vit_core.explain.deletion import Curves, deletion_insertion
from vit_core.explain.focused_attention import (
    FocusSummary,
    chance_level,
    focused_attention,
    measure_focus,
    random_control,
    top_places,
)
from vit_core.explain.grad_cam import default_layer, grad_cam
from vit_core.explain.grids import token_grid
from vit_core.explain.head_table import draw_heads
from vit_core.explain.overlay import denormalize, figure_of_maps, overlay
from vit_core.explain.pointing_game import pointing_game
from vit_core.explain.rollout import attention_rollout
from vit_core.explain.sparsity import LayerSparsity, SparsityTracker, measure_sparsity

__all__ = [
    "AttentionCall",
    "AttentionStatistics",
    "CapturedAttention",
    "Curves",
    "FocusSummary",
    "LayerAttention",
    "LayerSparsity",
    "SparsityTracker",
    "attention_relevance",
    "attention_rollout",
    "capture_attention",
    "chance_level",
    "class_token_attention",
    "default_layer",
    "deletion_insertion",
    "denormalize",
    "draw_heads",
    "figure_of_maps",
    "focused_attention",
    "grad_cam",
    "measure_attention",
    "measure_focus",
    "measure_sparsity",
    "overlay",
    "pointing_game",
    "random_control",
    "token_grid",
    "top_places",
]
