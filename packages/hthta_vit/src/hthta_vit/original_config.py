"""Convert the original's configuration files to flags of hthta-vit-train: the layout of its configs/cifar100.yaml or of
the example in its README.
"""

from collections.abc import Mapping
from typing import Any

# Key in the original's file -> our flag; the value is used unchanged.
FLAGS = {
    ("model", "bigru", "num_layers"): "gru_layers", ("model", "gru_layers"): "gru_layers",
    ("model", "cls_fusion", "gamma"): "gamma", ("model", "fusion_params", "gamma"): "gamma",
    ("model", "cls_fusion", "beta"): "beta", ("model", "fusion_params", "beta"): "beta",
    ("model", "backbone", "drop_path_rate"): "drop_path_rate",
    ("dataset", "name"): "dataset", ("dataset", "root"): "data_path", ("dataset", "download"): "download",
    ("training", "epochs"): "epochs", ("training", "batch_size"): "batch_size",
    ("training", "num_workers"): "num_workers",
    ("training", "optimizer", "lr"): "lr", ("training", "learning_rate"): "lr",
    ("training", "optimizer", "weight_decay"): "weight_decay", ("training", "weight_decay"): "weight_decay",
    ("training", "scheduler", "eta_min"): "min_lr",
    ("training", "warmup", "steps"): "warmup_steps", ("training", "warmup_steps"): "warmup_steps",
    ("training", "gradient_clipping", "max_norm"): "grad_clip",
    ("training", "early_stopping", "patience"): "early_stopping",
    ("reproducibility", "seed"): "seed",
}  # fmt: skip
# Key in the original's file -> argument of the model.
ARGUMENTS = {
    ("model", "backbone", "dropout"): "proj_drop_rate",
    ("model", "backbone", "attention_dropout"): "attn_drop_rate",
    ("model", "classifier", "dropout"): "drop_rate",
    ("model", "attention_pooling", "num_heads"): "pool_heads",
    ("model", "attention_heads"): "pool_heads",
    ("model", "attention_pooling", "context_dim"): "pool_head_dim",
}
# Keys that must have the published value: other values would need a different model or recipe.
FIXED = {
    ("model", "backbone", "model_name"): "vit_base_patch16_224", ("model", "backbone", "embed_dim"): 768,
    ("model", "backbone", "num_heads"): 12, ("model", "backbone", "num_layers"): 12,
    ("model", "backbone", "patch_size"): 16, ("model", "backbone", "img_size"): 224,
    ("model", "embed_dim"): 768, ("model", "num_heads"): 12, ("model", "num_layers"): 12,
    ("model", "bigru", "hidden_size"): 768, ("model", "bigru", "bidirectional"): True,
    ("training", "optimizer", "name"): "AdamW", ("training", "scheduler", "name"): "CosineAnnealingLR",
}  # fmt: skip


def is_originals(values: Mapping[str, Any]) -> bool:
    """Whether a file has the original's sections instead of our flags."""
    return isinstance(values.get("model"), Mapping) or isinstance(values.get("training"), Mapping)


def flags_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flags with the settings of the original's file; prints one note with the settings that have no counterpart.

    Raises ValueError with the key for a model or recipe other than the published one.
    """
    if not is_originals(values):
        return dict(values)
    flags: dict[str, Any] = {"model": "base", "decay_all": True}
    arguments: dict[str, Any] = {}
    unused = []
    for place, value in _leaves(values):
        name = ".".join(place)
        if place in FLAGS:
            flags[FLAGS[place]] = value
        elif place in ARGUMENTS:
            arguments[ARGUMENTS[place]] = value
        elif place in FIXED:
            if value != FIXED[place]:
                raise ValueError(f"{name} must be {FIXED[place]}, as in the published model or recipe, got {value}")
        elif place[:3] == ("dataset", "augmentation", "train"):
            flags |= _augmentation(value)
        elif place[0] in ("model", "training") and not name.endswith(
            ("enabled", "num_classes", "T_max", "betas", "eps")
        ):
            unused.append(name)
    for section, flag in (
        ("warmup", "warmup_steps"),
        ("gradient_clipping", "grad_clip"),
        ("early_stopping", "early_stopping"),
    ):
        if _at(values, "training", section, "enabled") is False:
            flags.pop(flag, None)
    if unused:
        print(
            f"note: these settings of the original's configuration are not supported and ignored: {', '.join(unused)}"
        )
    return flags | ({"model_kwargs": arguments} if arguments else {})


def _leaves(values: Mapping[str, Any], place: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    found = []
    for key, value in values.items():
        here = (*place, str(key))
        found += _leaves(value, here) if isinstance(value, Mapping) else [(here, value)]
    return found


def _at(values: Mapping[str, Any], *place: str) -> Any:
    found: Any = values
    for key in place:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _augmentation(steps: Any) -> dict[str, Any]:
    """Convert torchvision transforms, given by name and arguments, to flags."""
    flags: dict[str, Any] = {"hflip": 0.0}
    for step in steps if isinstance(steps, list) else []:
        kind = step.get("type") if isinstance(step, Mapping) else None
        if kind == "RandomResizedCrop":
            low, high = step.get("scale", (0.08, 1.0))
            flags |= {"crop": "resized", "crop_scale_min": low, "crop_scale_max": high}
        elif kind == "RandomHorizontalFlip":
            flags["hflip"] = step.get("p", 0.5)
        elif kind == "RandomRotation":
            flags["rotation"] = step.get("degrees", 0)
        elif kind == "ColorJitter":
            flags |= {"color_jitter": step.get("brightness", 0.0), "hue_jitter": step.get("hue", 0.0)}
        elif kind not in ("Normalize", "Resize", "ToTensor"):
            raise ValueError(
                f"dataset.augmentation.train: transform {kind!r} is not supported; use RandomResizedCrop, "
                "RandomHorizontalFlip, RandomRotation, ColorJitter, Normalize, Resize or ToTensor"
            )
    return flags
