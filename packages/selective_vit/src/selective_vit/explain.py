"""Explanations of a ViT and its selective form, side by side: Grad-CAM, Captum's LayerGradCam, attention rollout.

    uv run selective-vit-explain --checkpoint DENSE.pth SELECTIVE.pth --image FILE_OR_DIR

One figure per image, one row per model. `--captum-raw` adds Captum's map without the adapter that presents tokens as a
grid: the original published such a map, which is over channels and not over image positions.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from selective_vit.captum_grad_cam import captum_grad_cam
from selective_vit.recipe import RECIPE
from vit_core.commands.trained_model import LoadingFlags, TrainedModel, load_trained
from vit_core.data.folder import find_images
from vit_core.data.images import read_pixels
from vit_core.errors import UserError
from vit_core.explain import attention_rollout, default_layer, denormalize, figure_of_maps, grad_cam
from vit_core.explain.grad_cam import EmptyMapError
from vit_core.flags import REQUIRED, command, flag, parse
from vit_core.training.distributed import pick_device


@dataclass(frozen=True, kw_only=True)
class Flags(LoadingFlags):
    """Draw explanations of several models side by side."""

    checkpoint: tuple[str, ...] = flag(
        REQUIRED,
        "checkpoints of one or more models, such as a dense and a selective one",
        aliases=("model_path",),
        metavar="FILE",
    )
    image: Path = flag(REQUIRED, "image file or folder of images", aliases=("image_path",))
    output_dir: Path = flag(Path("./explanations"), "folder for the figures", metavar="DIR")
    target: str | None = flag(None, "class to explain (default: the class that each model predicts)")
    captum_raw: bool = flag(False, "also show Captum's map of the raw tokens")
    max_images: int = flag(16, "maximum number of images from a folder", least=1)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Flags, argv, "selective-vit-explain")
    device = pick_device(args.device)
    models = [load_trained(RECIPE, file, device, raw_weights=args.raw_weights) for file in args.checkpoint]
    for other in models[1:]:
        if other.class_names != models[0].class_names:
            raise UserError(
                f"{other.source} and {models[0].source} were trained with different classes: explain them separately"
            )
    classes = models[0].class_names
    if args.target is not None and args.target not in classes:
        raise UserError(f"--target {args.target}: the models' classes are {', '.join(classes)}")
    files = find_images(args.image, args.max_images)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(files, 1):
        path = args.output_dir / f"{number:03d}_{file.stem}.png"
        says = draw(models, read_pixels(file), path, file.name, args.target, captum_raw=args.captum_raw)
        print(f"{file} -> {path}: {says}")
    return 0


def draw(
    models: Sequence[TrainedModel],
    pixels: Tensor,
    path: Path,
    title: str,
    target: str | None = None,
    *,
    captum_raw: bool = False,
) -> str:
    """Write the figure for one image, uint8 (3, H, W); returns the models' predictions as one line."""
    panels: list[tuple[str, Tensor | None]] = []
    says = []
    for row, trained in enumerate(models):
        device = next(trained.model.parameters()).device
        images = trained.transform()(pixels[None]).to(device)
        with torch.no_grad():
            probabilities = trained.model(images)[0].softmax(0)
        best = int(probabilities.argmax())
        explained = best if target is None else trained.class_names.index(target)
        name = f"{trained.source.parent.name}/{trained.source.stem}" if len(models) > 2 else trained.settings["model"]
        says.append(f"{name}: {trained.class_names[best]} ({100 * float(probabilities[best]):.1f}%)")
        if row == 0:
            picture = denormalize(images[0].cpu(), trained.settings["mean"], trained.settings["std"])
        else:
            panels.append((says[-1], None))  # the image once more, at the start of the row
        panels += maps_of(trained.model, images, explained, captum_raw=captum_raw).items()
    figure_of_maps(picture, panels, path, title=title, image_title=says[0], columns=4 + captum_raw)
    return "; ".join(says)


def maps_of(model: nn.Module, images: Tensor, target: int, *, captum_raw: bool = False) -> dict[str, Tensor]:
    """The maps of one image (1, 3, h, w); a map that is zero everywhere is shown as zero."""
    maps = {"Grad-CAM": grad_cam(model, images, target)[0].cpu()}
    try:
        maps["Captum LayerGradCam, as a grid"] = captum_grad_cam(model, images, target)[0].cpu()
    except EmptyMapError:
        maps["Captum LayerGradCam: zero"] = torch.zeros_like(maps["Grad-CAM"])
    maps["attention rollout"] = attention_rollout(model, images)[0].cpu()
    if captum_raw:
        raw = as_square(raw_captum_map(model, images, target)[0])
        maps[f"raw Captum: {raw.numel()} channels as {raw.shape[0]}×{raw.shape[1]} pixels"] = raw
    return maps


def raw_captum_map(model: nn.Module, images: Tensor, target: Tensor | int, layer: nn.Module | None = None) -> Tensor:
    """Captum's LayerGradCam for the tokens (B, N, C) of a layer: (B, 1, C), one value per channel."""
    from captum.attr import LayerGradCam

    with torch.enable_grad():
        raw = LayerGradCam(model, layer or default_layer(model)).attribute(images, target=target)
    assert isinstance(raw, Tensor)
    return raw.detach().cpu()


def as_square(raw: Tensor) -> Tensor:
    """(1, C) -> a roughly square array, as it would be shown if mistaken for a map of image positions."""
    channels = raw.shape[-1]
    rows = next(r for r in range(int(channels**0.5), 0, -1) if channels % r == 0)
    return raw.view(rows, -1)


if __name__ == "__main__":
    sys.exit(main())
