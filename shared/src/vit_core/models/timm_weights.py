"""Initial weights of a new run's ViT: timm's pretrained weights from the hub, or a file."""

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
TAGS = (
    "augreg2_in21k_ft_in1k",
    "augreg_in21k_ft_in1k",
    "augreg_in21k",
    "augreg_in1k",
    "orig_in21k_ft_in1k",
    "dino",
    "mae",
)
OWN_HEAD = r"(head|head_dist|fc_norm)\."


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """Initial weights of a new run; resumed runs and evaluations use the weights of their checkpoint."""

    backbone: ClassVar[str] = BACKBONE  # timm name of the pretrained model
    pretrained: bool = flag(False, "initialize the backbone with timm's ViT weights (base models: on, micro: off)")
    pretrained_tag: str = flag(TAGS[0], "timm pretrained tag", choices=TAGS)
    weights: str | None = flag(
        None, "initialize the backbone from this local file: safetensors of a timm ViT, or a checkpoint of a run"
    )


def backbone_cfgs(name: str, backbone: str = BACKBONE, tags: Sequence[str] = TAGS) -> dict[str, Any]:
    """timm's pretrained configs of a backbone, for a model `name` built on it: "name.tag" -> config.

    Tags that this version of timm lacks are left out.
    """
    found = {tag: get_pretrained_cfg(f"{backbone}.{tag}", allow_unregistered=False) for tag in tags}
    return {f"{name}.{tag}": cfg.to_dict() for tag, cfg in found.items() if cfg is not None}


def initialize(model: nn.Module, start: StartOptions, own: str = OWN_HEAD) -> None:
    """Load the backbone's weights into a new ViT. own: see `load_backbone`.

    UserError if the weights are not available or do not fit.
    """
    vit: Any = model
    advice = "use --weights FILE.safetensors, or --no-pretrained for random initialization"
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
            raise UserError(f"--pretrained: there are no pretrained weights for this model size; {advice}")
        try:
            state = download(source)
        except Exception as e:  # the hub client, its transport or its cache may raise anything
            reason = " ".join(str(e).split())[:160]
            raise UserError(f"{source}: the weights could not be loaded from the hub ({reason}); {advice}") from e
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
        raise UserError(f"--weights {file} cannot be read as a safetensors file ({e})") from e


def download(name: str) -> Mapping[str, Tensor]:
    """The weights of a timm ViT, from the local cache or the network. Raises the errors of timm's download."""
    return timm.create_model(name, pretrained=True, num_classes=0).state_dict()


def load_backbone(model: nn.Module, state_dict: Mapping[str, Tensor], own: str = OWN_HEAD) -> None:
    """Load the weights of a timm ViT into a ViT, except those whose names match `own` (a regular expression matched at
    the start), which are unchanged.

    timm resizes position embeddings and patch embeddings if necessary. Raises ValueError that lists missing and
    unexpected keys and wrong shapes.
    """
    try:
        theirs = checkpoint_filter_fn(dict(state_dict), model)  # type: ignore[arg-type]
    except (RuntimeError, ValueError, KeyError, AssertionError) as e:
        raise ValueError(f"not the weights of a timm ViT: {' '.join(str(e).split())[:200]}") from e
    theirs = {k: v for k, v in theirs.items() if not re.match(own, k)}
    ours = {k: v for k, v in model.state_dict().items() if re.match(own, k)}
    problems = mismatches(model, {**ours, **theirs})
    if problems:
        raise ValueError("; ".join(problems))
    model.load_state_dict(theirs, strict=False)
