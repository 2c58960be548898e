"""Checks of claims.yaml's instant entries: the study's published numbers, and its token pruning with random weights.

The pruning runs in our model; tests/zoom_vit/test_parity.py tests that it matches the original's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import timm
import torch

from vit_core.bench.pair import multiply_adds
from vit_core.ledger.claims import Value
from zoom_vit.model import ZoomViT

KEEP, LAYER = 0.3, 6  # published pruning


class Published(NamedTuple):
    """One of the study's three images: confidence in percent and predicted class, dense and pruned."""

    dense: float
    dense_class: int
    pruned: float
    pruned_class: int


IMAGES = {  # pruning_results.txt: test images 1143, 5238 and 204 of Flowers-102
    "good": Published(3.29, 84, 3.46, 71),
    "inverted": Published(3.19, 23, 3.10, 25),
    "diffuse": Published(5.53, 6, 5.19, 6),
}


def own_changes() -> Value:
    """Arithmetic on the published numbers: whether pruning raises or lowers the confidence of each image."""
    return {name: {"confidence": "rises" if image.pruned > image.dense else "falls"} for name, image in IMAGES.items()}


def own_least_confident() -> str:
    """Arithmetic on the published numbers: the image for which the dense model is least confident."""
    return min(IMAGES, key=lambda name: IMAGES[name].dense)


def flowers_model() -> ZoomViT:
    """The study's model for Flowers-102, with random weights."""
    model = timm.create_model("zoom_vit_tiny_patch16_224", num_classes=102).eval()
    assert isinstance(model, ZoomViT)
    return model


def token_pruning() -> Value:
    """Pruned forward pass with random weights: number of blocks that process all tokens; share of the kept patches that
    are among the most important; largest change of a logit when the tokens to be pruned are changed before pruning.
    """
    model, images, scores = flowers_model(), torch.randn(2, 3, 224, 224), torch.rand(2, 196)
    sizes: list[int] = []
    hooks = [b.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[1])) for b in model.blocks]
    with torch.no_grad():
        out = model.forward_pruned(images, KEEP, importance=scores)
        for hook in hooks:
            hook.remove()
        top = scores.topk(out.num_kept).indices
        dropped = torch.ones(2, 197, 1).scatter_(1, out.kept[:, :, None] + 1, 0.0)
        dropped[:, 0] = 0

        def disturb(module: torch.nn.Module, args: Any, tokens: torch.Tensor) -> torch.Tensor:
            return tokens + 10 * dropped * torch.randn_like(tokens)

        model.blocks[sizes.count(197) - 1].register_forward_hook(disturb)  # the last block before pruning
        again = model.forward_pruned(images, KEEP, importance=scores)
    return {
        "token pruning": {
            "blocks with all tokens": sizes.count(197),
            "kept among the most important, %": 100 * float(torch.isin(out.kept, top).float().mean()),
            "change by what was pruned": float((again.logits - out.logits).abs().max()),
        }
    }


def recomputed_attention() -> float:
    """Largest difference in a logit between pruning after block 6 and dropping the same tokens after the last block."""
    model, images = flowers_model(), torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        pruned = model.forward_pruned(images, KEEP, LAYER)
        tokens = model.forward_features(images)
        kept = tokens[:, 1:].gather(1, pruned.kept[:, :, None].expand(-1, -1, tokens.shape[2]))
        at_the_end = model.forward_head(torch.cat([tokens[:, :1], kept], 1))
    return float((pruned.logits - at_the_end).abs().max())


def multiply_adds_share() -> float:
    """Multiply-adds of the model pruned to 0.3 after block 6, divided by those of the dense model, counted."""
    with torch.device("meta"), torch.no_grad():
        model, image = flowers_model(), torch.zeros(1, 3, 224, 224)
        pruned = multiply_adds(lambda: model.forward_pruned(image, KEEP, LAYER))
        return pruned / multiply_adds(lambda: model(image))


CHECKS: dict[str, Callable[[], Value]] = {
    f.__name__: f for f in (own_changes, own_least_confident, token_pruning, recomputed_attention, multiply_adds_share)
}
