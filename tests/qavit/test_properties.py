"""Properties of QAViT, tried on many inputs: its models, and the flags of its train command."""

from typing import Any

import timm
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import qavit  # noqa: F401 -- registers the models
from hostile_flags import flags, outcome
from model_properties import (
    HUGE,
    NONSENSE,
    holds,
    nonsense,
    refused_or_finite,
    same_when_exported_and_compiled,
    value_error_or_finite,
)
from qavit.config import QAViTConfig
from qavit.recipe import RECIPE
from qavit.train import main

OURS = (*QAViTConfig.__dataclass_fields__, "no_such_argument", "drop_rate", "global_pool", "in_chans")


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Small and valid: widths that the groups and heads divide, windows that do and do not fit the grid."""
    heads, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4]))
    width = 2 * groups * heads * draw(st.integers(1, 2))
    patch, grid = draw(st.sampled_from([(4, 2), (4, 3), (8, 1), (8, 2), (8, 5), (16, 1), (2, 5)]))
    ratios = st.sampled_from([r for r in (1, 2, 4) if width % r == 0])
    config = {
        "img_size": patch * grid,
        "patch_size": patch,
        "embed_dim": width,
        "num_heads": heads,
        "depth": draw(st.integers(1, 2)),
        "num_channel_groups": groups,
        "compress_ratio": draw(ratios),
        "bottleneck_ratio": draw(ratios),
        "mlp_ratio": draw(st.sampled_from([0.5, 1.0, 1.7])),
        "global_bank_size": draw(st.integers(1, 5)),
        "window_size": draw(st.integers(1, 6)),
        "linformer_k": draw(st.sampled_from([1, 5, 16])),
        "dilation_factors": draw(st.sampled_from([(1, 2, 3), (1,), (3, 1), (2, 7)])),
        "landmark_pooling_stride": draw(st.integers(1, 3)),
        "msda_truncate": draw(st.booleans()),
        "bank_update": draw(st.sampled_from(["inplace", "functional", "frozen"])),
        "dropout": draw(st.sampled_from([0.0, 0.3])),
        "attn_drop": draw(st.sampled_from([None, 0.0, 0.3])),
        "drop_path": draw(st.sampled_from([0.0, 0.3])),
        "init_std": draw(st.sampled_from([0.02, 0.2])),
    }
    try:
        QAViTConfig(**config)
    except ValueError:  # a stride that leaves no token
        assume(False)
    return config


@given(arguments(), st.integers(1, 7), st.integers(1, 3))
def test_a_model_keeps_its_promises(config, num_classes, count):
    holds("qavit_micro", config, num_classes, count)


@settings(max_examples=settings.default.max_examples // 10)  # slow
@given(arguments(), st.integers(1, 7), st.integers(1, 3))
def test_a_model_is_the_same_when_exported_and_compiled(config, num_classes, count):
    same_when_exported_and_compiled("qavit_micro", config, num_classes, count)


@given(nonsense(OURS, (*NONSENSE, *HUGE)))
def test_arguments_at_random_are_refused_or_make_a_model(config):
    refused_or_finite("qavit_micro", config)


@given(nonsense(OURS))
def test_the_papers_own_arguments_at_random_are_a_value_error_or_make_a_model(config):
    value_error_or_finite(timm.model_entrypoint("qavit_micro"), config)


@given(flags(RECIPE))
def test_flags_at_random_end_in_a_run_or_in_one_line(words):
    outcome(main, ["--model", "micro", *words])
