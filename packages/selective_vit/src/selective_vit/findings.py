"""Measures effects of bugs in the original: `uv run selective-vit-findings` (a minute; no training, no download).

1. It replaced the attention modules by new ones and so lost the pretrained projections.
2. With 197 tokens a uniform attention weight is 1/197, below τ = 0.01: how many are removed before the first step?
3. Its Captum figure is a map over channels.

For 2, the original's norms, MLPs and position embedding are pretrained. Here they are random by default, and so are
the images; `--checkpoint FILE` uses a trained dense ViT and the images that it was evaluated on.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from selective_vit.captum_grad_cam import captum_grad_cam
from selective_vit.explain import raw_captum_map
from selective_vit.model import make_selective
from selective_vit.recipe import RECIPE
from vit_core.commands.trained_model import ImageFlags, load_trained
from vit_core.explain import SparsityTracker, default_layer
from vit_core.flags import command, flag, parse
from vit_core.models.timm_weights import BACKBONE
from vit_core.training.distributed import World, pick_device


@dataclass(frozen=True, kw_only=True)
class Flags(ImageFlags):
    """Measure effects of bugs in the original."""

    images: int = flag(4, "images for measurement 2", least=1)
    seed: int = flag(0, "random seed of weights and images")
    checkpoint: str | None = flag(None, "trained dense ViT to test (default: one with random weights)", metavar="FILE")


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Flags, argv, "selective-vit-findings")
    torch.manual_seed(args.seed)
    lost = lost_weights()
    print(
        f"1. {lost.names} tensors with {lost.parameters:,} of {lost.of:,} weights differ after replacing the modules,"
    )
    print(f"   all of them in attention layers: {lost.all_in_attention}; with make_selective: {lost.with_ours}")
    vit: nn.Module = timm.create_model(BACKBONE)
    batches: Iterable[Tensor] = [torch.randn(args.images, 3, 224, 224)]
    others = "random, and so are the images (in the original these parts are pretrained)"
    if args.checkpoint:
        world = World(0, 1, pick_device(args.device))
        trained = load_trained(RECIPE, args.checkpoint, world.device, raw_weights=args.raw_weights)
        vit, others = trained.model, f"from {args.checkpoint}, epoch {trained.epoch}, on its evaluation images"
        size = {"batch_size": args.batch_size, "num_workers": args.num_workers}
        loader = trained.loader(trained.dataset(args, world)[0], world, limit=args.images, **size)
        batches = (images for images, _ in loader.epoch())
        torch.manual_seed(args.seed)
    print("2. with new attention modules: weights removed by τ = 0.01 and rows in which no weight passes, by block;")
    print(f"   the other parts are {others}:")
    tracker = first_step(vit, batches)
    for name, layer in tracker.layers.items():
        print(f"   {name:<15} {100 * layer.sparsity.mean():6.2f}%  {100 * layer.empty_rows.mean():6.2f}%")
    print(f"   {'mean':<15} {100 * tracker.mean('sparsity'):6.2f}%  {100 * tracker.mean('empty_rows'):6.2f}%")
    print(f"   a uniform weight is 1/{layer.keys} = {1 / layer.keys:.4f}")
    raw, grid, tokens = captum_shapes()
    print(f"3. Captum on tokens {tokens}: {raw}, one value per channel; presented as a grid: {grid}")
    return 0


@dataclass(frozen=True)
class Lost:
    names: int
    parameters: int
    of: int
    all_in_attention: bool
    with_ours: int  # tensors that differ if the layer's own modules are reused


def lost_weights(name: str = BACKBONE) -> Lost:
    """Which weights a ViT loses when its attention modules are replaced, in the original's way and in ours."""
    vit = timm.create_model(name)
    before = {k: v.clone() for k, v in vit.state_dict().items()}

    def changed() -> list[str]:
        return [k for k, v in vit.state_dict().items() if not torch.equal(v, before[k])]

    make_selective(vit)
    ours = len(changed())
    make_selective(vit, reinit_attention=True)
    names = changed()
    counts = sum(before[k].numel() for k in names), sum(v.numel() for v in before.values())
    return Lost(len(names), *counts, all(".attn." in k for k in names), ours)


def first_step(vit: nn.Module, batches: Iterable[Tensor], threshold: float = 0.01) -> SparsityTracker:
    """The notebook's model before its first step: a ViT whose attention modules are replaced by new ones."""
    make_selective(vit, threshold, "hard", "zero", reinit_attention=True)
    tracker = SparsityTracker()
    for images in batches:
        tracker.update(vit, images)
    return tracker


def captum_shapes() -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shapes for one image in a small ViT: Captum's map of raw tokens, its map of the grid, the tokens."""
    vit = VisionTransformer(img_size=64, patch_size=16, embed_dim=48, depth=2, num_heads=3, num_classes=5).eval()
    images = torch.randn(1, 3, 64, 64)
    shapes = []
    handle = default_layer(vit).register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    vit(images)
    handle.remove()
    return (
        tuple(raw_captum_map(vit, images, 0).shape),
        tuple(captum_grad_cam(vit, images, 0, relu=False).shape),
        shapes[0],
    )


if __name__ == "__main__":
    sys.exit(main())
