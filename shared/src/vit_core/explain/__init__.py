"""What a model looks at: attention weights as it runs, Grad-CAM, how far the two agree, and pictures of them."""

from vit_core.explain.attention_capture import AttentionCall, CapturedAttention, capture_attention
from vit_core.explain.class_token import class_token_attention
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
from vit_core.explain.overlay import denormalise, figure_of_maps, overlay

__all__ = [
    "AttentionCall",
    "CapturedAttention",
    "FocusSummary",
    "capture_attention",
    "chance_level",
    "class_token_attention",
    "default_layer",
    "denormalise",
    "figure_of_maps",
    "focused_attention",
    "grad_cam",
    "measure_focus",
    "overlay",
    "random_control",
    "token_grid",
    "top_places",
]
