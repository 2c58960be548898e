"""Where a new run's ViT gets its weights: timm's model of that size from the hub, or a file."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import get_pretrained_cfg
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from vit_core.errors import UserError
from vit_core.flags import flag
from vit_core.training.checkpoint import load_checkpoint, mismatches

BACKBONE = "vit_base_patch16_224"
TAGS = ("augreg2_in21k_ft_in1k", "augreg_in21k_ft_in1k", "augreg_in21k", "augreg_in1k", "orig_in21k_ft_in1k", "dino",
        "mae")  # fmt: skip
OWN_HEAD = r"(head|head_dist|fc_norm)\."


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """What a new run starts from; a resumed run and an evaluation have their weights from the checkpoint."""

    backbone: ClassVar[str] = BACKBONE  # timm's name of the model whose weights these are
    pretrained: bool = flag(False, "start the backbone from timm's ViT weights (default: base models yes, micro no)")
    pretrained_tag: str = flag(TAGS[0], "which of timm's weights", choices=TAGS)
    weights: str | None = flag(
        None, "start the backbone from this file, without a network: safetensors of a timm ViT, or a run's checkpoint"
    )


def backbone_cfgs(name: str, backbone: str = BACKBONE, tags: Sequence[str] = TAGS) -> dict[str, Any]:
    """timm's settings of a backbone, for a model called `name` that is built on it: "name.tag" -> settings.

    A tag that this version of timm lacks is left out.
    """
    found = {tag: get_pretrained_cfg(f"{backbone}.{tag}", allow_unregistered=False) for tag in tags}
    return {f"{name}.{tag}": cfg.to_dict() for tag, cfg in found.items() if cfg is not None}


def initialise(model: nn.Module, start: StartOptions, own: str = OWN_HEAD) -> None:
    """Load the backbone's weights into a new ViT. own: see `load_backbone`.

    UserError, in one line, for what cannot be had or does not fit.
    """
    vit: Any = model
    advice = "give --weights FILE.safetensors, or --no-pretrained to start from random weights"
    if start.weights is not None:
        source = start.weights
        if not Path(source).is_file():
            raise UserError(f"--weights {source}: no such file")
        state = _read(source)
    elif start.pretrained:
        source = f"{start.backbone}.{start.pretrained_tag}"
        with torch.device("meta"):
            theirs: Any = timm.create_model(start.backbone)
        if (vit.embed_dim, len(vit.blocks)) != (theirs.embed_dim, len(theirs.blocks)):
            raise UserError(f"--pretrained: there are no weights for this size of model; {advice}")
        try:
            state = download(source)
        except Exception as e:  # whatever the hub's client, its transport or its cache raise
            reason = " ".join(str(e).split())[:160]
            raise UserError(f"{source}: the weights could not be downloaded ({reason}); {advice}") from e
    else:
        return
    try:
        load_backbone(model, state, own)
    except ValueError as e:
        listed = str(e).split("; ")
        more = f"; and {len(listed) - 3} more" if len(listed) > 3 else ""
        raise UserError(f"{source} does not fit the backbone: {'; '.join(listed[:3])}{more}") from e


def _read(file: str) -> Mapping[str, Any]:
    if Path(file).suffix == ".pth":
        checkpoint = load_checkpoint(file)
        state: Mapping[str, Any] = checkpoint.get("ema_state_dict") or checkpoint["model_state_dict"]
        return state
    try:
        return load_file(file)
    except SafetensorError as e:
        raise UserError(f"--weights {file} is not a safetensors file, or is damaged ({e})") from e


def download(name: str) -> Mapping[str, Tensor]:
    """The weights of one of timm's ViTs, from its cache or the network. Raises what timm's download raises."""
    return timm.create_model(name, pretrained=True, num_classes=0).state_dict()


def load_backbone(model: nn.Module, state_dict: Mapping[str, Tensor], own: str = OWN_HEAD) -> None:
    """Put the weights of one of timm's ViTs into a ViT, but for those whose names match `own` (a regular expression,
    at the name's start): these stay as they are.

    Position embeddings of another grid, and patches of another size, are resized by timm. Raises ValueError that lists
    what is missing, unexpected or wrongly shaped.
    """
    try:
        theirs = checkpoint_filter_fn(dict(state_dict), model)  # type: ignore[arg-type]
    except (RuntimeError, ValueError, KeyError, AssertionError) as e:
        raise ValueError(f"not a ViT of timm's: {' '.join(str(e).split())[:200]}") from e
    theirs = {k: v for k, v in theirs.items() if not re.match(own, k)}
    ours = {k: v for k, v in model.state_dict().items() if re.match(own, k)}
    problems = mismatches(model, {**ours, **theirs})
    if problems:
        raise ValueError("; ".join(problems))
    model.load_state_dict(theirs, strict=False)
