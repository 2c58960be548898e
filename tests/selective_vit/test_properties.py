"""Properties of SelectiveViT, tried on many inputs: its models, and the flags of its train command."""

from typing import Any

import timm
from hypothesis import given, settings
from hypothesis import strategies as st

import selective_vit  # noqa: F401 -- registers the models
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
from selective_vit.recipe import RECIPE
from selective_vit.train import main

OURS = (
    "threshold",
    "mode",
    "empty_row",
    "blocks",
    "relative_threshold",
    "learned_threshold",
    "threshold_growth",
    "eps",
    "kernel",
    "reinit_attention",
    "sparsity_weight",
)


def arguments() -> st.SearchStrategy[dict[str, Any]]:
    """Every form of the threshold, on small ViTs with and without class token and registers."""
    threshold = st.one_of(
        st.fixed_dictionaries({"threshold": st.sampled_from([0.01, 0.2, 0.6, 0.999])}),
        st.fixed_dictionaries({"threshold": st.sampled_from([0.0, 1e-30])}),
        st.fixed_dictionaries(
            {"threshold": st.sampled_from([0.3, 1.0, 3.0, 100.0]), "relative_threshold": st.just(True)}
        ),
    )
    form = st.fixed_dictionaries(
        {},
        optional={
            "mode": st.sampled_from(["relu", "hard"]),
            "empty_row": st.sampled_from(["argmax", "zero"]),
            "learned_threshold": st.sampled_from(["layer", "head"]),
            "threshold_growth": st.sampled_from([0.0, 0.5, 1.0]),
            "sparsity_weight": st.sampled_from([0.0, 0.1]),
            "kernel": st.sampled_from(["auto", "weights"]),
            "blocks": st.sampled_from([[0], [-1], []]),
            "reinit_attention": st.booleans(),
            "eps": st.sampled_from([1e-6, 1e-3]),
        },
    )
    tokens = st.sampled_from(
        [{}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}, {"global_pool": "map"}]
    )
    return st.tuples(of_vit(), threshold, form, tokens).map(
        lambda parts: _learned_above_zero({k: v for part in parts for k, v in part.items()})
    )


def _learned_above_zero(config: dict[str, Any]) -> dict[str, Any]:
    """A threshold of zero cannot be learned, and takes nothing away."""
    above = ("learned_threshold", "sparsity_weight")
    return config if config["threshold"] else {k: v for k, v in config.items() if k not in above}


@given(arguments(), st.integers(1, 7), st.integers(1, 3))
def test_a_model_keeps_its_promises(config, num_classes, count):
    holds("selective_vit_micro", config, num_classes, count)


@settings(max_examples=settings.default.max_examples // 10)  # slow
@given(arguments(), st.integers(1, 7), st.integers(1, 3))
def test_a_model_is_the_same_when_exported_and_compiled(config, num_classes, count):
    same_when_exported_and_compiled("selective_vit_micro", config, num_classes, count)


@given(nonsense((*OURS, *OF_TIMMS_VIT), (*NONSENSE, *HUGE)))
def test_arguments_at_random_are_refused_or_make_a_model(config):
    refused_or_finite("selective_vit_micro", config)


@given(nonsense(OURS))
def test_the_papers_own_arguments_at_random_are_a_value_error_or_make_a_model(config):
    value_error_or_finite(timm.model_entrypoint("selective_vit_micro"), config)


@given(st.sampled_from(["selective_micro", "vit_micro", "both_micro"]), flags(RECIPE))
def test_flags_at_random_end_in_a_run_or_in_one_line(model, words):
    outcome(main, ["--model", model, *words])
