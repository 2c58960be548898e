"""Plain models of timm beside HTHTA-ViT++, under one recipe (original: baseline_comparison.py).

    uv run hthta-vit-baseline-comparison --models vit_base swin_base hthta_vit_base --dataset cifar100 --data-path DIR

Flags that are not listed below are those of hthta-vit-train, for all models. Writes measurements.csv, table.md and
comparison.png; the same command given again goes on where it was interrupted.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from hthta_vit import recipe
from hthta_vit.focus import attention_map
from hthta_vit.model import HTHTAViT
from hthta_vit.recipe import RECIPE, ModelOptions
from hthta_vit.study import AttentionMaps, run_study, study_parser
from vit_core.errors import UserError
from vit_core.explain import capture_attention
from vit_core.explain.evaluation_mode import evaluation_mode
from vit_core.flags import command
from vit_core.models.timm_weights import TAGS, StartOptions
from vit_core.recipe import create_model, input_size
from vit_core.training.checkpoint import load_weights

# The original's names -> timm's. Any other name is timm's own.
MODELS = {
    "vit_base": "vit_base_patch16_224",
    "deit_base": "deit_base_patch16_224",
    "swin_base": "swin_base_patch4_window7_224",
    "convnext_base": "convnext_base",
    "hthta_vit_base": "hthta_vit_base_patch16_224",
}
# The seed's tables, CIFAR-100: accuracy; and FAP, of which it does not say on which images.
CLAIMED = {
    "vit_base": ("84.6", "53.7"), "swin_base": ("—", "61.2"), "convnext_base": ("89.2", "—"),
    "hthta_vit_base": ("93.3", "78.3"),
}  # fmt: skip


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = study_parser(
        "baseline-comparison", "Train and measure models of timm beside HTHTA-ViT++.", seeds=(0,), folder="./comparison"
    )
    parser.add_argument(
        "--models", nargs="+", default=list(MODELS), metavar="NAME",
        help=f"{', '.join(MODELS)}, or any name of timm's (default: all of these)",
    )  # fmt: skip
    args, flags = parser.parse_known_args(argv)
    names = {name: MODELS.get(name, name) for name in args.models}
    unknown = [name for name in names.values() if not timm.is_model(name.split(".")[0])]
    if unknown:
        raise UserError(f"--models: timm knows no {', '.join(unknown)}")
    shared = RECIPE.parse(flags)
    rows = {name: {**flags_for(source, shared), "model": name} for name, source in names.items()}
    compared = dataclasses.replace(RECIPE, models={**RECIPE.models, **names}, initialise=initialise)
    run_study(args, rows, maps_of, CLAIMED, "One recipe", name="comparison", recipe=compared)
    return 0


def flags_for(model: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The shared flags that a model of timm takes: a plain one has no γ, which the shipped files of --config set."""
    if model.split(".")[0] in RECIPE.models.values():
        return dict(given)
    ours = {f.name for f in dataclasses.fields(ModelOptions)} - {"drop_path_rate"}
    return {k: v for k, v in given.items() if k not in ours}


def initialise(model: nn.Module, start: StartOptions) -> None:
    """timm's weights for a plain model; the backbone's for HTHTA-ViT++. UserError where they cannot be had."""
    if isinstance(model, HTHTAViT):
        recipe.initialise(model, start)
    elif start.weights is not None:
        raise UserError("--weights is a backbone of HTHTA-ViT++: it does not fit the other --models")
    elif start.pretrained:
        if start.pretrained_tag != TAGS[0]:
            raise UserError(
                "--pretrained-tag chooses HTHTA-ViT++'s backbone: plain models start from timm's own choice"
            )
        source = str(model.pretrained_cfg["architecture"])  # type: ignore[index]
        try:
            like = create_model(source, {"pretrained": True}, model.num_classes, input_size(model))  # type: ignore
        except Exception as e:  # whatever the hub's client, its transport or its cache raise
            reason = " ".join(str(e).split())[:160]
            raise UserError(f"{source}: the weights could not be downloaded ({reason}); give --no-pretrained") from e
        load_weights(model, like.state_dict(), source)


def maps_of(model: nn.Module) -> AttentionMaps | None:
    """The map that FAP compares: HTHTA's, a class token's, Swin's; None for a model without attention."""
    if getattr(model, "cls_token", None) is not None:
        return attention_map
    return received_attention if type(model).__name__ == "SwinTransformer" else None


def received_attention(model: nn.Module, images: Tensor) -> Tensor:
    """Swin has no class token: what each place gets from all places of the last block, mean over heads. One window."""
    last = f"layers.{len(model.layers) - 1}.blocks.{len(model.layers[-1].blocks) - 1}."  # type: ignore
    with torch.no_grad(), evaluation_mode(model), capture_attention(model, lambda n: n.startswith(last)) as captured:
        model(images)
    weights = captured.calls[-1].weights  # (B · windows, heads, w², w²)
    if len(weights) != len(images):
        raise ValueError("the last stage has more than one window: no map of the whole image")
    side = round(weights.shape[-1] ** 0.5)
    return weights.mean((1, 2)).view(len(images), side, side)


if __name__ == "__main__":
    sys.exit(main())
