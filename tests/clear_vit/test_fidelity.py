"""What converted weights cannot show: initial values of every row, and the recipe.

Recorded from the original's four published models and its trainer at commit 20e892b, 100 classes, 256 x 256 images.
"""

import re

import pytest
import timm
import torch

from clear_vit.model import VARIANTS
from clear_vit.paper import PAPER
from clear_vit.recipe import RECIPE
from vit_core.commands.settings import parse, settle

UNIFORM, LINEAR, ZERO = (0.0722, 0.1251), (0.0417, 0.0722), (0.0, 0.0)
NORMAL = (0.02, 0.12)
# Of all rows: (parameters, (standard deviation, largest absolute value)).
COMMON = {
    r"cls_token|pos_embed": NORMAL, r"patch_embed\.proj\.weight": (0.0361, 0.0821), r"patch_embed\.proj\.bias": ZERO,
    r".*norm\d?\.weight": (0.0, 1.0), r".*norm\d?\.bias": ZERO, r".*mlp\.fc1\.(weight|bias)": LINEAR,
    r".*mlp\.fc2\.(weight|bias)": (0.0208, 0.0361), r"head\.(weight|bias)": ZERO,
    r"rope\.freqs": (0.352, 1.0), r".*attn\.kernel": (0.192, 0.3334),
}  # fmt: skip
# Of the attention's Linear layers: row -> (weights, biases).
ATTENTION = {
    "baseline": (UNIFORM, ZERO),
    "suppression": (UNIFORM, LINEAR),
    "rope": (LINEAR, LINEAR),
    "rope_mixed_ape": (LINEAR, LINEAR),
    # not published: as the baseline
    "pos_dropout": (UNIFORM, ZERO),
    "diff_similarity": (UNIFORM, ZERO),
    "diff_entropy": (UNIFORM, ZERO),
}


def groups(model, patterns):
    """pattern -> all values of the parameters that match it first."""
    found = {pattern: [] for pattern in patterns}
    for name, parameter in model.named_parameters():
        pattern = next(p for p in patterns if re.fullmatch(p, name))  # every parameter has one
        found[pattern].append(parameter.detach().flatten())
    return {p: torch.cat(values) for p, values in found.items() if values}


@pytest.mark.parametrize("row", ATTENTION)
def test_each_group_of_parameters_starts_as_in_the_original(row):
    torch.manual_seed(0)
    weights, biases = ATTENTION[row]
    patterns = {r".*attn\.(qkv|proj)\.weight": weights, r".*attn\.(qkv|proj)\.bias": biases} | COMMON
    for pattern, values in groups(timm.create_model(f"clear_vit_tiny_{row}"), patterns).items():
        std, bound = patterns[pattern]
        tolerance = 0.03 if len(values) > 1000 else 0.2
        assert float(values.std()) == pytest.approx(std, rel=tolerance, abs=1e-6), pattern
        assert float(values.abs().max()) <= bound + 1e-5, pattern


def test_the_rows_start_from_unequal_logits():
    """Deviation of the first block's attention logits of normalized tokens: RoPE's rows 0.33, the others 1.00."""
    spread = {}
    for row in ("baseline", "rope"):
        torch.manual_seed(0)
        attn = timm.create_model(f"clear_vit_tiny_{row}", depth=1).blocks[0].attn
        qkv = attn.qkv(torch.nn.functional.layer_norm(torch.randn(8, 64, 192), (192,)))
        q, k, _ = qkv.view(8, 64, 3, 3, 64).permute(2, 0, 3, 1, 4)
        spread[row] = float((q @ k.mT / 8).detach().std())
    assert spread == pytest.approx({"baseline": 1.0, "rope": 0.33}, abs=0.05)


@pytest.mark.parametrize("row", VARIANTS)
@pytest.mark.parametrize(("attn_init", "std"), [("uniform", 0.0722), ("linear", 0.0417)])
def test_one_initialization_can_be_chosen_for_all_rows(row, attn_init, std):
    model = timm.create_model(f"clear_vit_tiny_{row}", attn_init=attn_init, depth=2)
    for block in model.blocks.requires_grad_(False):
        assert float(block.attn.qkv.weight.std()) == pytest.approx(std, rel=0.03)
        assert (float(block.attn.qkv.bias.abs().max()) == 0) == (attn_init == "uniform")


def test_an_unknown_initialization_is_refused():
    with pytest.raises(ValueError, match="attn_init must be uniform or linear, got 'xavier'"):
        timm.create_model("clear_vit_micro_rope", attn_init="xavier")


@pytest.mark.parametrize("flag", ["--recipe", "--preset"])
def test_the_recipe_original_is_what_its_trainer_does(flag):
    run = settle(RECIPE, parse(RECIPE, ["--variant", "baseline", flag, "original"]), None)
    train, augment = run.train, run.augment
    assert (train.epochs, train.batch_size, train.lr, train.warmup_steps, train.min_lr) == (90, 256, 1e-4, 5000, 0.0)
    assert (train.optimizer, train.beta1, train.beta2) == ("adamw", 0.9, 0.999)
    assert (train.weight_decay, train.decay_all) == (0.05, True), "its two groups of parameters have the same decay"
    assert (train.grad_clip, train.label_smoothing) == (1.0, 0.1)
    assert (train.mixup, train.cutmix, train.mix_prob, train.mix_switch_prob) == (0.8, 1.0, 1.0, 0.5)
    assert (augment.crop, augment.crop_scale_min, augment.crop_scale_max, augment.hflip) == ("resized", 0.08, 1.0, 0.5)
    assert (augment.randaugment_ops, augment.randaugment_magnitude) == (3, 0.3)
    assert "Identity" in augment.randaugment_names
    assert "Cutout" not in augment.randaugment_names
    assert len(augment.randaugment_names) == 16
    assert augment.randaugment_rule == "fixed"
    assert (augment.erasing, augment.erasing_area, augment.erasing_fill) == (0.25, 0.4, "random")
    assert (augment.rotation, augment.color_jitter, augment.hue_jitter) == (0, 0, 0)
    assert augment.eval_crop_pct == 1, "evaluation squeezes the whole image"
    ours = settle(RECIPE, parse(RECIPE, ["--variant", "baseline", "--preset", "imagenet100"]), None)
    assert not ours.train.decay_all


def test_reproduce_trains_every_row_by_the_recipe_original():
    """On about 130,000 images: the notebook prints 45,703 steps, a share of 90 epochs in batches of 256."""
    (training,) = PAPER.published
    assert round(training.images * 90 / 256) == 45_703
    for flags in training.rows.values():
        assert settle(RECIPE, flags, None).train.decay_all
