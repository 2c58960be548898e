"""Where each registered model starts its position embedding: micro models at one value, published sizes at theirs."""

import pytest
import timm
import torch

from vit_core.models.sizes import MICRO_POS_EMBED_STD
from vit_core.papers import load_papers

PAPERS, _ = load_papers()  # registers the models
PUBLISHED_STD = 0.02
CUT_AT_TWO = 0.8796  # deviation of a standard normal that is drawn anew beyond ±2

# name -> deviation of what is drawn, as a share of the value that is asked for; None: no position embedding
MICRO = {
    "clear_vit_micro_baseline": 1.0,
    "clear_vit_micro_diff_entropy": 1.0,
    "clear_vit_micro_diff_similarity": 1.0,
    "clear_vit_micro_pos_dropout": 1.0,
    "clear_vit_micro_rope": None,
    "clear_vit_micro_rope_axial": None,
    "clear_vit_micro_rope_mixed_ape": 1.0,
    "clear_vit_micro_suppression": 1.0,
    "dense_vit_micro": CUT_AT_TWO,
    "hthta_vit_micro": CUT_AT_TWO,
    "qavit_micro": CUT_AT_TWO,
    "selective_vit_micro": CUT_AT_TWO,
    "zoom_vit_micro": CUT_AT_TWO,
}
PUBLISHED = [name for name in timm.list_models(module="registry") if name not in MICRO]


def deviation_of_positions(name: str) -> float | None:
    """Of a new model's position embedding; one block is enough, for it lies before the blocks."""
    torch.manual_seed(0)
    positions = timm.create_model(name, depth=1).pos_embed
    return None if positions is None else positions.std().item()


def test_the_table_has_every_micro_model():
    assert sorted(MICRO) == sorted(name for name in timm.list_models(module="registry") if "micro" in name)


@pytest.mark.parametrize("name", MICRO)
def test_micro_models_start_at_the_shared_value(name):
    drawn = MICRO[name]
    expected = None if drawn is None else pytest.approx(drawn * MICRO_POS_EMBED_STD, rel=0.05)
    assert deviation_of_positions(name) == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_start_at_their_own(name):
    without = name in ("clear_vit_tiny_rope", "clear_vit_tiny_rope_axial")
    assert deviation_of_positions(name) == (None if without else pytest.approx(PUBLISHED_STD, rel=0.05))
