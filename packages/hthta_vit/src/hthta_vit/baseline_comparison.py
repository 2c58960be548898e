"""Compare timm models with HTHTA-ViT++, trained with one recipe (original: baseline_comparison.py).

    uv run hthta-vit-baseline-comparison --models vit_base swin_base hthta_vit_base --dataset cifar100 --data-path DIR

The flags of hthta-vit-train apply to all models. Writes measurements.csv, table.md and comparison.png. After an
interruption, run the same command again to resume.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from hthta_vit import recipe
from hthta_vit.focus import attention_map
from hthta_vit.model import HTHTAViT
from hthta_vit.recipe import RECIPE, ModelOptions
from hthta_vit.study import AttentionMaps, FocusFlags, run_study
from vit_core.commands.settings import parse_with
from vit_core.errors import UserError
from vit_core.explain import capture_attention
from vit_core.explain.evaluation_mode import evaluation_mode
from vit_core.flags import command, flag
from vit_core.models.create import create_model, input_size
from vit_core.models.timm_weights import TAGS, StartOptions
from vit_core.training.checkpoint import load_weights

# The original's names -> timm's. Other names are passed to timm unchanged.
MODELS = {
    "vit_base": "vit_base_patch16_224",
    "deit_base": "deit_base_patch16_224",
    "swin_base": "swin_base_patch4_window7_224",
    "convnext_base": "convnext_base",
    "hthta_vit_base": "hthta_vit_base_patch16_224",
}
# The original's tables: accuracy on CIFAR-100, and FAP on an unnamed dataset.
CLAIMED = {
    "vit_base": ("84.6", "53.7"),
    "swin_base": ("—", "61.2"),
    "convnext_base": ("89.2", "—"),
    "hthta_vit_base": ("93.3", "78.3"),
}


@dataclass(frozen=True, kw_only=True)
class Flags(FocusFlags):
    """Train timm models and HTHTA-ViT++ and compare them. The flags of hthta-vit-train apply to all models."""

    output_dir: Path = flag(Path("./comparison"), "folder of the study", metavar="DIR")
    models: tuple[str, ...] = flag(
        tuple(MODELS), "models to compare: the original's names, or any timm model names", metavar="NAME"
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    args, shared = parse_with(RECIPE, Flags, argv, "hthta-vit-baseline-comparison")
    names = {name: MODELS.get(name, name) for name in args.models}
    unknown = [name for name in names.values() if not timm.is_model(name.split(".")[0])]
    if unknown:
        raise UserError(
            f"--models: not a timm model: {', '.join(unknown)}; timm.list_models() in Python lists all names"
        )
    rows = {name: {**flags_for(source, shared), "model": name} for name, source in names.items()}
    compared = dataclasses.replace(RECIPE, models={**RECIPE.models, **names}, initialize=initialize)
    run_study(args, rows, maps_of, CLAIMED, "One recipe", name="comparison", recipe=compared)
    return 0


def flags_for(model: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The shared flags that apply to a model: plain timm models have no γ, for example, which --config files set."""
    if model.split(".")[0] in RECIPE.models.values():
        return dict(given)
    ours = {f.name for f in dataclasses.fields(ModelOptions)} - {"drop_path_rate"}
    return {k: v for k, v in given.items() if k not in ours}


def initialize(model: nn.Module, start: StartOptions) -> None:
    """Load timm's weights into a plain model, the backbone's into HTHTA-ViT++. UserError if they are unavailable."""
    if isinstance(model, HTHTAViT):
        recipe.initialize(model, start)
    elif start.weights is not None:
        raise UserError(
            "--weights is the backbone of HTHTA-ViT++ and does not fit the other --models; run them without --weights"
        )
    elif start.pretrained:
        if start.pretrained_tag != TAGS[0]:
            raise UserError(
                "--pretrained-tag selects HTHTA-ViT++'s backbone and does not apply to the other --models, which use "
                "timm's default tag; run them without --pretrained-tag"
            )
        source = str(model.pretrained_cfg["architecture"])  # type: ignore[index]
        try:
            like = create_model(source, {"pretrained": True}, model.num_classes, input_size(model))  # type: ignore
        except Exception as e:  # any error of the hub's client, its transport or its cache
            reason = " ".join(str(e).split())[:160]
            raise UserError(
                f"{source}: timm could not load its pretrained weights ({reason}); check the network connection, or "
                "give --no-pretrained"
            ) from e
        load_weights(model, like.state_dict(), source)


def maps_of(model: nn.Module) -> AttentionMaps | None:
    """The attention map for FAP: HTHTA's, the class token's, or Swin's; None for other models."""
    if getattr(model, "cls_token", None) is not None:
        return attention_map
    return received_attention if type(model).__name__ == "SwinTransformer" else None


def received_attention(model: nn.Module, images: Tensor) -> Tensor:
    """Swin has no class token: attention that each position of the last block receives, mean over queries and heads."""
    last = f"layers.{len(model.layers) - 1}.blocks.{len(model.layers[-1].blocks) - 1}."  # type: ignore
    with torch.no_grad(), evaluation_mode(model), capture_attention(model, lambda n: n.startswith(last)) as captured:
        model(images)
    weights = captured.calls[-1].weights  # (B · windows, heads, w², w²)
    if len(weights) != len(images):
        raise ValueError(
            "the last stage has more than one window, so there is no attention map of the whole image; use an image "
            "size at which it has one"
        )
    side = round(weights.shape[-1] ** 0.5)
    return weights.mean((1, 2)).view(len(images), side, side)


if __name__ == "__main__":
    sys.exit(main())
