"""Properties of the ZoomViT study's model, tried on many inputs: dense, pruned, and the flags of its train commands."""

from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from hostile_flags import flags, outcome
from model_properties import (
    HUGE,
    NONSENSE,
    OF_TIMMS_VIT,
    built,
    holds,
    images_for,
    nonsense,
    of_vit,
    refused_or_finite,
    same_when_exported_and_compiled,
)
from zoom_vit import cifar_train, flowers_train
from zoom_vit.importance import IMPORTANCES
from zoom_vit.recipe import CIFAR, FLOWERS


def arguments() -> st.SearchStrategy[dict[str, Any]]:
    """Small ViTs with and without class token and registers."""
    tokens = st.sampled_from(
        [
            {},
            {"reg_tokens": 2},
            {"class_token": False, "global_pool": "avg"},
            {"global_pool": "avg"},
            {"global_pool": "map"},
        ]
    )
    return st.tuples(of_vit(), tokens).map(lambda t: t[0] | t[1])


@given(arguments(), st.integers(1, 7), st.integers(1, 3))
def test_a_model_keeps_its_promises(config, num_classes, count):
    holds("zoom_vit_micro", config, num_classes, count)


@given(
    of_vit(head_dims=(3, 4, 8)),  # one channel alone is zero after its norm, and has no gradient for Grad-CAM
    st.integers(1, 7),
    st.integers(1, 3),
    st.one_of(st.floats(1e-6, 1.0), st.sampled_from(NONSENSE)),
    st.sampled_from(sorted(IMPORTANCES)),
)
def test_a_pruned_model_is_finite_and_independent_of_the_batch(config, num_classes, count, keep_ratio, importance):
    model = built("zoom_vit_micro", config | {"depth": 2}, num_classes).eval()
    images = images_for(model, count)
    if importance == "random":  # drawn for the batch
        count = 1
    valid = isinstance(keep_ratio, int | float) and 0 < keep_ratio <= 1
    with torch.no_grad():
        if not valid:
            with pytest.raises((ValueError, TypeError)):
                model.forward_pruned(images, keep_ratio, 1, importance)
            event("ValueError or TypeError")
            return
        together = model.forward_pruned(images[:count], keep_ratio, 1, importance)
        assert together.logits.isfinite().all()
        assert together.kept.shape == (count, max(1, int(keep_ratio * together.num_patches)))
        for i in range(count if importance != "random" else 0):
            alone = model.forward_pruned(images[i : i + 1], keep_ratio, 1, importance)
            assert_close(alone.logits[0], together.logits[i], rtol=1e-4, atol=1e-5)
    event("models")


@settings(max_examples=settings.default.max_examples // 10)  # slow
@given(arguments(), st.integers(1, 7), st.integers(1, 3))
def test_a_model_is_the_same_when_exported_and_compiled(config, num_classes, count):
    same_when_exported_and_compiled("zoom_vit_micro", config, num_classes, count)


@given(nonsense(OF_TIMMS_VIT, (*NONSENSE, *HUGE)))
def test_arguments_at_random_are_refused_or_make_a_model(config):
    refused_or_finite("zoom_vit_micro", config)


@given(flags(CIFAR))
def test_flags_at_random_end_in_a_run_or_in_one_line(words):
    outcome(cifar_train.main, ["--model", "micro", *words])


@given(flags(FLOWERS))
def test_flags_of_the_flowers_at_random_end_in_a_run_or_in_one_line(words):
    outcome(flowers_train.main, ["--model", "micro", *words])
