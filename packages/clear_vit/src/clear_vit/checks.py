"""What claims.yaml's instant entries measure: the published table, the backbone and the recipe.

The variants' formulas are in `variant_checks`. The published size is built without memory (the device "meta").
"""

import functools
import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import clear_vit  # noqa: F401 -- registers the models with timm
from clear_vit import variant_checks
from clear_vit.compare import CLAIMED
from clear_vit.recipe import RECIPE
from vit_core.claims import Value
from vit_core.recipe import Run, settle

Check = Callable[[], Value]
VAL_IMAGES = 5000  # of ImageNet-100: 50 a class


# ── the published table ──────────────────────────────────────────────────────────────────────────────────────────


def _gap(variant: str, to: str = "baseline") -> Check:
    def check() -> float:
        return round(CLAIMED[variant][0] - CLAIMED[to][0], 3)

    check.__doc__ = f"Arithmetic on the paper's table: acc@1 of {variant} less that of {to}, in points."
    return check


def _steps_up(column: int) -> Check:
    def check() -> int:
        values = [cells[column] for cells in CLAIMED.values()]
        return sum(a < b for a, b in itertools.pairwise(values))

    check.__doc__ = "Arithmetic on the paper's table: of the six steps from a row to the next, how many go up."
    return check


def shares_of_the_images() -> int:
    """Of the 14 cells, how many are k / 5,000 images to the published three decimals."""
    cells = [c for pair in CLAIMED.values() for c in pair]
    return sum(abs(c / 100 * VAL_IMAGES - round(c / 100 * VAL_IMAGES)) * 100 / VAL_IMAGES < 0.00051 for c in cells)


def shares_of_batches() -> int:
    """Of the 14 cells, how many can be a mean over batches of 256, the last one, of 136 images, counting as much."""
    full, last = divmod(VAL_IMAGES, 256)
    in_full, in_last = torch.arange(full * 256 + 1) / 256, torch.arange(last + 1) / last
    means = (100 / (full + 1) * (in_full[:, None].double() + in_last)).flatten().sort().values
    cells = torch.tensor([c for pair in CLAIMED.values() for c in pair], dtype=torch.double)
    after = torch.searchsorted(means, cells).clamp(1, len(means) - 1)
    nearest = torch.minimum((means[after] - cells).abs(), (means[after - 1] - cells).abs())
    return int((nearest < 0.00051).sum())


def standard_errors_of_entropys_gain() -> float:
    """The gain of diff_entropy over the baseline in standard errors of two independent accuracies on 5,000 images."""
    p, q = (CLAIMED[v][0] / 100 for v in ("diff_entropy", "baseline"))
    return (p - q) / math.sqrt((p * (1 - p) + q * (1 - q)) / VAL_IMAGES)


# ── backbone and recipe ──────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def _tiny(variant: str) -> Any:
    """The published size, as shapes alone."""
    with torch.device("meta"):
        return timm.create_model(f"clear_vit_tiny_{variant}", num_classes=100)


def _micro(variant: str, **fields: Any) -> Any:
    return timm.create_model(f"clear_vit_micro_{variant}", num_classes=5, **fields)


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _millions(variant: str) -> Check:
    def check() -> float:
        return _parameters(_tiny(variant)) / 1e6

    check.__doc__ = f"Parameters of clear_vit_tiny_{variant} with 100 classes, counted, in millions."
    return check


def _size(what: str, read: Callable[[Any], Value]) -> Check:
    def check() -> Value:
        return read(_tiny("baseline"))

    check.__doc__ = f"{what}, read off the modules of clear_vit_tiny_baseline."
    return check


def kind_of_positions() -> str:
    """Whether the baseline's position embedding is a parameter that training changes."""
    places = _tiny("baseline").pos_embed
    return "learnable" if isinstance(places, nn.Parameter) and places.requires_grad else "fixed"


def baseline_to_timms() -> float:
    """Largest difference of logits between the micro baseline and timm's VisionTransformer with the same weights."""
    ours = _micro("baseline").double().eval()
    nn.init.normal_(ours.head.weight)
    theirs = VisionTransformer(
        img_size=32, patch_size=4, embed_dim=64, depth=4, num_heads=4, mlp_ratio=2.0, num_classes=5, no_embed_class=True
    )
    theirs.double().eval().load_state_dict(ours.state_dict())
    images = torch.randn(4, 3, 32, 32).double()
    with torch.no_grad():
        return float((ours(images) - theirs(images)).abs().max())


BACKBONE: dict[str, Callable[[Any], int]] = {
    "layers": lambda m: len(m.blocks),
    "heads": lambda m: m.blocks[0].attn.num_heads,
    "hidden_dimension": lambda m: m.patch_embed.proj.out_channels,
    "mlp_dimension": lambda m: m.blocks[0].mlp.fc1.out_features,
    "patch_size": lambda m: m.patch_embed.proj.stride[0],
}


def backbones() -> int:
    """How many different sets of layers, heads, widths and patch sizes the seven models' modules are."""
    return len({tuple(read(_tiny(v)) for read in BACKBONE.values()) for v in CLAIMED})


def kernels_a_layer() -> int:
    """Kernels in each attention of clear_vit_tiny_suppression."""
    return len(_tiny("suppression").blocks[0].attn.kernel)


def position_parameters_of_the_best() -> int:
    """Parameters that rope_mixed_ape has and rope has not."""
    return _parameters(_tiny("rope_mixed_ape")) - _parameters(_tiny("rope"))


def frequencies() -> int:
    """Learned frequencies of rope_mixed_ape: parameters that it has and the baseline has not."""
    return _parameters(_tiny("rope_mixed_ape")) - _parameters(_tiny("baseline"))


def recipes() -> int:
    """How many different sets of data, training and augmentation settings the seven variants' presets are."""
    runs = [_run(v) for v in CLAIMED]
    return len({json.dumps([vars(r.data), vars(r.train), vars(r.augment)], sort_keys=True, default=str) for r in runs})


def _run(variant: str) -> Run:
    return settle(RECIPE, {"model": variant, "preset": "imagenet100"}, None)


def _setting(name: str) -> Check:
    def check() -> Value:
        run = _run("baseline")
        values = vars(run.data) | vars(run.train) | vars(run.augment)
        value: Value = values[name]
        return value

    check.__doc__ = f"The value of {name} in the preset imagenet100: a setting, not a result."
    return check


SETTINGS = (
    "dataset", "epochs", "batch_size", "lr", "weight_decay", "warmup_steps", "grad_clip", "label_smoothing", "mixup",
    "cutmix", "mix_switch_prob", "randaugment_ops", "randaugment_magnitude", "erasing", "crop_scale_min",
)  # fmt: skip
CHECKS: dict[str, Check] = {
    **{f"gap_{v}": _gap(v) for v in CLAIMED if v != "baseline"},
    "gap_ape_to_rope": _gap("rope_mixed_ape", "rope"),
    "acc1_steps_up": _steps_up(0), "acc5_steps_up": _steps_up(1),
    "parameters_baseline": _millions("baseline"), "parameters_rope_mixed_ape": _millions("rope_mixed_ape"),
    "layers": _size("Number of blocks", BACKBONE["layers"]),
    "heads": _size("Number of heads", BACKBONE["heads"]),
    "hidden_dimension": _size("Width of a token", BACKBONE["hidden_dimension"]),
    "mlp_dimension": _size("Width of the MLP's hidden layer", BACKBONE["mlp_dimension"]),
    "patch_size": _size("Side of a patch in pixels", BACKBONE["patch_size"]),
    "places": _size("Length of the position embedding", lambda m: m.pos_embed.shape[1]),
    **{f"setting_{name}": _setting(name) for name in SETTINGS},
    **{
        f.__name__: f for f in (
            shares_of_the_images, shares_of_batches, standard_errors_of_entropys_gain, kind_of_positions,
            baseline_to_timms, backbones, recipes, kernels_a_layer, position_parameters_of_the_best, frequencies,
        )
    },
    **variant_checks.CHECKS,
}  # fmt: skip
