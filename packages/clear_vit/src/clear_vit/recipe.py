"""clear-vit's models, flags and hyperparameters for the shared commands."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clear_vit.model import VARIANTS
from vit_core.flags import flag
from vit_core.models.sizes import MICRO_POS_EMBED_STD
from vit_core.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Flags that change the model; None keeps the variant's own value."""

    pos_dropout: float | None = flag(
        None, "dropout on the position embedding (default: 0.1 for the variant pos_dropout, else 0)"
    )
    pos_embed_std: float | None = flag(
        None,
        f"standard deviation of the position embedding's initialization (default: 0.02; micro {MICRO_POS_EMBED_STD:g})",
    )
    attn_init: str | None = flag(
        None,
        "initialization of the attention: uniform in ±√(3/D), or nn.Linear's default (default: as published)",
        choices=("uniform", "linear"),
    )
    first_difference: str | None = flag(
        None,
        "diff_similarity: the class token keeps its own Q and K, or gets zeros (default: keep)",
        choices=("keep", "zero"),
    )
    entropy_source: str | None = flag(
        None,
        "diff_entropy: use the entropy of a patch's token, or of its pixels (default: tokens)",
        choices=("tokens", "pixels"),
    )
    rope_theta: float | None = flag(None, "RoPE's θ: the lowest frequency is about 1/θ (default: 10; axial: 100)")
    drop_path_rate: float | None = flag(None, "stochastic depth rate of the last block (default: 0)")


RANDAUGMENT = (  # from the original's dataloader/get_data.py
    "AutoContrast",
    "Equalize",
    "Rotate",
    "Solarize",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Posterize",
    "SolarizeAdd",
    "Invert",
    "Identity",
)


def presets(given: Mapping[str, Any]) -> dict[str, Any]:
    """Default model and dataset where they are not given, and the hyperparameters that belong to them.

    imagenet100: close to the original, but with no weight decay on biases, norms and position embeddings, and with
    torchvision's RandAugment and random erasing. original: as in the original's trainer and loader, including weight
    decay on every parameter. Two differences remain: its 90 epochs are 45,703 steps (a fraction of all images), ours
    45,630 (whole batches); it drops the last validation batch, ours evaluates all images. The micro models have their
    own short recipe, unless one of these two is requested.
    """
    model, dataset, published = given.get("model"), given.get("dataset"), given.get("preset") is not None
    small = dataset == "digits" or (dataset is None and not published)
    model = model or ("micro_rope_mixed_ape" if small else "rope_mixed_ape")
    short = model.startswith("micro_") and not published
    dataset = dataset or ("digits" if short else "imagenet100")
    values: dict[str, Any] = {"model": model, "dataset": dataset}
    if short:
        values |= {
            "epochs": 12, "batch_size": 32, "lr": 2e-3, "weight_decay": 0.05, "warmup_epochs": 2, "crop": "none",
            "label_smoothing": 0.1,
        }  # fmt: skip
    else:
        values |= {
            "epochs": 90, "batch_size": 256, "lr": 1e-4, "min_lr": 0.0, "weight_decay": 0.05, "warmup_steps": 5000,
            "grad_clip": 1.0, "crop": "resized", "crop_scale_min": 0.08, "crop_scale_max": 1.0, "hflip": 0.5,
            "randaugment_ops": 3, "randaugment_magnitude": 0.3, "erasing": 0.25, "mixup": 0.8, "cutmix": 1.0,
            "mix_switch_prob": 0.5, "label_smoothing": 0.1,
            "eval_freq": 5,  # about every 2,500 steps; ImageNet-100 has 507 per epoch
        }  # fmt: skip
        if given.get("preset") == "original":
            values |= {
                "decay_all": True,
                "randaugment_choice": ",".join(RANDAUGMENT),
                "randaugment_rule": "fixed",
                "erasing_area": 0.4,
                "erasing_fill": "random",
            }
    if dataset == "digits":
        values |= {"hflip": 0.0}  # a mirrored 2 is not a 2
    return values


def of_variant(variant: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given flags that have an effect on this variant, to run several variants with the same flags."""
    fields = VARIANTS[variant]
    has = {
        "pos_dropout": "pos_dropout" in fields,
        "first_difference": fields.get("attention") == "diff_similarity",
        "entropy_source": fields.get("attention") == "diff_entropy",
        "rope_theta": "rope" in fields,
    }
    return {k: v for k, v in given.items() if has.get(k, True)}


RECIPE = Recipe(
    paper="clear-vit",
    description="Train one of clear-vit's variants, in the original's ViT-Tiny size or in our micro size. Without "
    "arguments: the micro rope_mixed_ape model on the embedded digits. With only --variant rope_mixed_ape: "
    "ImageNet-100 with a recipe close to the original's; add --recipe original for the published one.",
    command="clear-vit",
    models={
        **{variant: f"clear_vit_tiny_{variant}" for variant in VARIANTS},
        **{f"micro_{variant}": f"clear_vit_micro_{variant}" for variant in VARIANTS},
    },
    presets=presets,
    options=ModelOptions,
    aliases={"variant": "model", "data_dir": "data_path", "output_dir": "save_dir", "recipe": "preset"},
    preset_names=("imagenet100", "original"),
)
