"""Properties of clear-vit, tried on many inputs: its models, and the flags of its train command."""

from typing import Any

import timm
from hypothesis import given, settings
from hypothesis import strategies as st

import clear_vit  # noqa: F401 -- registers the models
from clear_vit.model import VARIANTS
from clear_vit.recipe import RECIPE
from clear_vit.train import main
from hostile_flags import flags, outcome
from model_properties import (
    HUGE,
    NONSENSE,
    OF_TIMMS_VIT,
    holds,
    nonsense,
    of_vit,
    refused_or_finite,
    same_when_exported_and_compiled,
    value_error_or_finite,
)

OURS = (
    "attention",
    "first_difference",
    "rope",
    "rope_theta",
    "pos_embed",
    "pos_dropout",
    "pos_embed_std",
    "attn_init",
    "entropy_source",
    "entropy_bins",
    "img_size",
    "patch_size",
    "embed_dim",
    "depth",
    "num_heads",
    "attn_drop_rate",
    "proj_drop_rate",
)
VARIANT = st.sampled_from(sorted(VARIANTS))


def arguments() -> st.SearchStrategy[dict[str, Any]]:
    """Every attention with every position embedding, on small ViTs."""
    attention = st.sampled_from(
        [
            {},
            {"attention": "suppression"},
            {"attention": "diff_similarity"},
            {"attention": "diff_entropy"},
            {"attention": "diff_similarity", "first_difference": "zero"},
            {"attention": "diff_entropy", "entropy_source": "pixels"},
            {"attention": "diff_entropy", "entropy_source": "pixels", "entropy_bins": 2},
        ]
    )
    places = st.sampled_from(
        [
            {},
            {"pos_dropout": 0.3},
            {"pos_embed": "none"},
            {"rope": "mixed"},
            {"rope": "axial"},
            {"rope": "mixed", "pos_embed": "none", "rope_theta": 1.0},
            {"rope": "axial", "pos_embed": "none"},
            {"global_pool": "avg"},
            {"pos_embed_std": 0.0},
            {"attn_init": "uniform", "rope": "mixed"},
            {"attn_init": "linear"},
        ]
    )
    return st.tuples(of_vit(head_dims=(4, 8, 64)), attention, places).map(lambda t: t[0] | t[1] | t[2])


@given(arguments(), st.integers(1, 7), st.integers(1, 3))
def test_a_model_keeps_its_promises(config, num_classes, count):
    holds("clear_vit_micro_baseline", config, num_classes, count)


@settings(max_examples=settings.default.max_examples // 10)  # slow
@given(arguments(), st.integers(1, 7), st.integers(1, 3))
def test_a_model_is_the_same_when_exported_and_compiled(config, num_classes, count):
    same_when_exported_and_compiled("clear_vit_micro_baseline", config, num_classes, count)


@given(VARIANT, nonsense((*OURS, *OF_TIMMS_VIT), (*NONSENSE, *HUGE)))
def test_arguments_at_random_are_refused_or_make_a_model(variant, config):
    refused_or_finite(f"clear_vit_micro_{variant}", config)


@given(VARIANT, nonsense(OURS))
def test_the_papers_own_arguments_at_random_are_a_value_error_or_make_a_model(variant, config):
    value_error_or_finite(timm.model_entrypoint(f"clear_vit_micro_{variant}"), config)


@given(VARIANT, flags(RECIPE))
def test_flags_at_random_end_in_a_run_or_in_one_line(variant, words):
    outcome(main, ["--model", f"micro_{variant}", *words])
