"""Properties of HTHTA-ViT++, tried on many inputs: its models, and the flags of its train command."""

from typing import Any

import pytest
import timm
from hypothesis import given, settings
from hypothesis import strategies as st

import hthta_vit  # noqa: F401 -- registers the models
from hostile_flags import flags, outcome
from hthta_vit.model import COMPONENTS
from hthta_vit.recipe import RECIPE
from hthta_vit.train import main
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

OURS = ("components", "gru_layers", "pool_heads", "pool_head_dim", "gamma", "beta", "frozen_blocks", "pos_embed_std")


def arguments() -> st.SearchStrategy[dict[str, Any]]:
    """Every row of the ablation, on small ViTs."""
    ours = st.fixed_dictionaries(
        {"components": st.sampled_from([*COMPONENTS, ("bigru", "pooling"), ()])},
        optional={
            "gru_layers": st.integers(1, 2),
            "pool_heads": st.integers(1, 3),
            "pool_head_dim": st.integers(1, 5),
            "gamma": st.sampled_from([0.0, 0.3, 1.0]),
            "beta": st.sampled_from([0.0, 0.1, -1.0]),
            "frozen_blocks": st.integers(0, 1),
            "global_pool": st.sampled_from(["token", "avg"]),
        },
    )
    return st.tuples(of_vit(), ours).map(lambda both: both[0] | both[1])


def without_gradient(config: dict[str, Any]) -> tuple[str, ...]:
    """timm's own pooling leaves the paper's parts out."""
    return ("guided.",) if config.get("global_pool", "token") != "token" else ()


@given(arguments(), st.integers(1, 7), st.integers(1, 3))
def test_a_model_keeps_its_promises(config, num_classes, count):
    holds("hthta_vit_micro", config, num_classes, count, without_gradient(config))


@pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights:UserWarning")  # torch's, of its own nn.GRU
@settings(max_examples=settings.default.max_examples // 10)  # slow
@given(arguments(), st.integers(1, 7), st.integers(1, 3))
def test_a_model_is_the_same_when_exported_and_compiled(config, num_classes, count):
    # The compiler leaves a GRU to Python: no full graph.
    same_when_exported_and_compiled("hthta_vit_micro", config, num_classes, count, fullgraph=False)


@given(nonsense((*OURS, *OF_TIMMS_VIT), (*NONSENSE, *HUGE)))
def test_arguments_at_random_are_refused_or_make_a_model(config):
    refused_or_finite("hthta_vit_micro", config)


@given(nonsense(OURS))
def test_the_papers_own_arguments_at_random_are_a_value_error_or_make_a_model(config):
    value_error_or_finite(timm.model_entrypoint("hthta_vit_micro"), config)


@given(flags(RECIPE))
def test_flags_at_random_end_in_a_run_or_in_one_line(words):
    outcome(main, ["--model", "micro", *words])
