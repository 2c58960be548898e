"""Draw the attention of an HTHTA-ViT++ (original: visualize_attention.py).

    uv run hthta-vit-visualize-attention --model_path checkpoints/RUN/best.pth --image_path FILE_OR_DIR

One picture per image: the attention of each pooling head, their mean, Grad-CAM, and the overlap of mean and Grad-CAM.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hthta_vit.focus import attention_map
from hthta_vit.recipe import RECIPE
from vit_core.commands.trained_model import CheckpointFlags, LoadingFlags, TrainedModel, load_trained
from vit_core.data.folder import find_images
from vit_core.data.images import read_pixels
from vit_core.errors import UserError
from vit_core.explain import denormalize, figure_of_maps, focused_attention, grad_cam, top_places
from vit_core.flags import REQUIRED, command, flag, parse
from vit_core.training.distributed import pick_device


@dataclass(frozen=True, kw_only=True)
class Flags(CheckpointFlags, LoadingFlags):
    """Draw attention maps and Grad-CAM."""

    image_path: Path = flag(REQUIRED, "an image, or a folder of images")
    output_dir: Path = flag(Path("./attention"), "output folder", metavar="DIR")
    target: str | None = flag(None, "class that Grad-CAM explains (default: the predicted class)")
    max_images: int = flag(16, "maximum number of images from a folder", least=1)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Flags, argv, "hthta-vit-visualize-attention")
    device = pick_device(args.device)
    trained = load_trained(RECIPE, args.checkpoint, device, raw_weights=args.raw_weights)
    classes = trained.class_names
    if args.target is not None and args.target not in classes:
        raise UserError(f"--target {args.target}: not a class of the model; its classes are {', '.join(classes)}")
    files = find_images(args.image_path, args.max_images)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(files, 1):
        path = args.output_dir / f"{number:03d}_{file.stem}.png"
        images = trained.transform()(read_pixels(file)[None]).to(device)
        print(f"{file} -> {path}: {draw(trained, images, path, file.name, args.target)}")
    return 0


def draw(trained: TrainedModel, images: Tensor, path: Path, name: str, target: str | None = None) -> str:
    """Write the picture of one normalized image (1, 3, S, S); returns the prediction and FAP in one line."""
    with torch.no_grad():
        probabilities = trained.model(images)[0].softmax(0)
    predicted = int(probabilities.argmax())
    explained = predicted if target is None else trained.class_names.index(target)
    cam = grad_cam(trained.model, images, explained)[0]  # (rows, columns)
    mean = attention_map(trained.model, images)[0]
    with torch.no_grad():
        alpha = trained.model(images, return_attention=True)[1]
    maps = {}
    if alpha is not None:  # (1, heads, N)
        maps = {f"head {j + 1}": head.view_as(mean) for j, head in enumerate(alpha[0])}
    own = "mean of the heads" if alpha is not None else "class token, last block"
    maps |= {own: mean, f"Grad-CAM of {trained.class_names[explained]}": cam}
    fap = float(focused_attention(mean[None], cam[None]))
    if fap == fap:  # an empty Grad-CAM has no top places
        both = (top_places(mean[None])[0] + top_places(cam[None])[0]) / 2
        maps[f"top 15%: 1 = both, ½ = one of them (FAP {fap:.0f}%)"] = both
    says = f"{trained.class_names[predicted]} ({100 * float(probabilities[predicted]):.1f}%)"
    picture = denormalize(images[0].cpu(), trained.settings["mean"], trained.settings["std"])
    figure_of_maps(picture, maps, path, title=f"{name}: {says}")
    return says + (f", FAP {fap:.1f}%" if fap == fap else ", Grad-CAM is zero everywhere")


if __name__ == "__main__":
    sys.exit(main())
