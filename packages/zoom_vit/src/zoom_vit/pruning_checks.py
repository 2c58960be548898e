"""What claims.yaml's instant entries measure of token pruning and of importance maps, with random weights."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

import zoom_vit  # noqa: F401 -- registers the models with timm
from vit_core.bench import multiply_adds
from vit_core.claims import Value
from zoom_vit.importance import Seen, as_map, importance_map

KEEP = 0.3  # of the published pruning


@functools.cache
def flowers_model() -> Any:
    """The published size, as shapes alone."""
    with torch.device("meta"):
        return timm.create_model("zoom_vit_tiny_patch16_224", num_classes=102).eval()


def _cifar_model() -> Any:
    """The size of the CIFAR-10 study with random weights: 12 blocks, 16 patches."""
    return timm.create_model("zoom_vit_tiny_patch8_32", num_classes=10).eval()


def _largest(t: Tensor) -> float:
    return float(t.detach().abs().max())


# ── pruning ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Pass(NamedTuple):
    """A pruned forward pass: the tokens that each block takes, its result, and the patches' scores."""

    inputs: list[Tensor]
    kept: Tensor
    logits: Tensor
    scores: Tensor
    model: Any


@functools.cache
def _pruned() -> Pass:
    """Two images through zoom_vit_tiny_patch16_224 with random weights, as published but for given scores."""
    model: Any = timm.create_model("zoom_vit_tiny_patch16_224", num_classes=102).eval()
    inputs: list[Tensor] = []
    hooks = [b.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for b in model.blocks]
    images, scores = torch.randn(2, 3, 224, 224), torch.rand(2, 196)
    with torch.no_grad():
        out = model.forward_pruned(images, KEEP, importance=scores)
    for hook in hooks:
        hook.remove()
    return Pass(inputs, out.kept, out.logits, scores, model)


def blocks_before_pruning() -> int:
    """How many blocks take all 197 tokens in a pruned pass of zoom_vit_tiny_patch16_224."""
    return sum(x.shape[1] == 197 for x in _pruned().inputs)


def tokens_behind_pruning() -> int:
    """How many tokens the last block takes in a pruned pass with keep 0.3 of 196 patches."""
    return int(_pruned().inputs[-1].shape[1])


def kept_that_are_on_top() -> float:
    """Percentage of the kept patches whose score is among the 58 largest."""
    p = _pruned()
    on_top = p.scores.topk(p.kept.shape[1]).indices
    return 100 * float((p.kept[:, :, None] == on_top[:, None]).any(2).float().mean())


def class_token_changed() -> float:
    """Largest difference of the class token between the 6th block's output and the 7th block's input."""
    p = _pruned()
    with torch.no_grad():
        before = p.model.blocks[5](p.inputs[5])
    return _largest(before[:, 0] - p.inputs[6][:, 0])


def seen_of_pruned_tokens() -> float:
    """Largest change of the logits when all pruned patches get other values before they are pruned."""
    model, images, scores = _cifar_model(), torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    with torch.no_grad():
        first = model.forward_pruned(images, KEEP, importance=scores)
        pruned = torch.ones(2, 17, 1).scatter_(1, first.kept[:, :, None] + 1, 0.0)
        pruned[:, 0] = 0
        model.blocks[5].register_forward_hook(lambda _, args, out: out + 10 * pruned * torch.randn_like(out))
        return _largest(model.forward_pruned(images, KEEP, importance=scores).logits - first.logits)


def pruning_to_removal() -> float:
    """Largest difference of the logits to a pass that drops the same tokens and runs blocks 7 to 12 as they are."""
    p = _pruned()
    with torch.no_grad():
        x = p.model.blocks[5](p.inputs[5])
        x = torch.stack([row[[0, *(kept + 1)]] for row, kept in zip(x, p.kept, strict=True)])
        for block in p.model.blocks[6:]:
            x = block(x)
        return _largest(p.model.forward_head(p.model.norm(x)) - p.logits)


@functools.cache
def _share() -> float:
    dense, pruned = _multiply_adds(flowers_model(), "token_norm", torch.device("meta"))
    return pruned / dense


def multiply_adds_share() -> float:
    """Multiply-adds of zoom_vit_tiny_patch16_224, pruned to 0.3 after block 6, by those of the dense model, counted."""
    return _share()


def _share_with(importance: str) -> Callable[[], float]:
    def check() -> float:
        model = timm.create_model("zoom_vit_tiny_patch16_224", num_classes=102).eval()
        dense, pruned = _multiply_adds(model, importance, torch.device("cpu"))
        return pruned / dense

    check.__doc__ = (
        f"Multiply-adds of zoom_vit_tiny_patch16_224, pruned to 0.3 after block 6 by {importance}, those of the "
        "importance included, by those of the dense model, counted."
    )
    return check


def _multiply_adds(model: Any, importance: str, device: torch.device) -> tuple[float, float]:
    image = torch.zeros(1, 3, 224, 224, device=device)
    with torch.no_grad():
        dense = multiply_adds(lambda: model(image))
        return dense, multiply_adds(lambda: model.forward_pruned(image, KEEP, 6, importance))


# ── importance ───────────────────────────────────────────────────────────────────────────────────────────────────


def _change_by_classifier(importance: str) -> Callable[[], float]:
    def check() -> float:
        model, images = _cifar_model(), torch.randn(2, 3, 32, 32)
        nn.init.normal_(model.head.weight)
        before = importance_map(model, images, importance, targets=torch.tensor([3, 3]))
        nn.init.normal_(model.head.weight)
        after = importance_map(model, images, importance, targets=torch.tensor([3, 3]))
        return 100 * _largest(after - before) / _largest(before)

    check.__doc__ = (
        f"How much the map of {importance} changes when the classifier gets other weights, so that other regions "
        "decide the class: largest change, in percent of the map's maximum."
    )
    return check


def _layers_read(importance: str) -> Callable[[], float]:
    def check() -> int:
        model, images = _cifar_model(), torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            seen: Seen = model.see(images)
            before = as_map(seen, importance)
            count = 0
            for layer in range(len(model.blocks)):
                states = list(seen.states)
                states[layer] = torch.randn_like(states[layer])
                count += not torch.equal(as_map(seen._replace(states=tuple(states)), importance), before)
        return count

    check.__doc__ = (
        f"How many of the 12 blocks the map of {importance} reads: the tokens that a block takes are replaced by "
        "noise, one block at a time, and the maps that change are counted."
    )
    return check


def norm_to_formula() -> float:
    """Largest difference between the published map and the L2 norms of the last attention's output, taken by a hook."""
    model, images, outputs = _cifar_model(), torch.randn(2, 3, 32, 32), []
    handle = model.blocks[-1].attn.register_forward_hook(lambda _, args, out: outputs.append(out))
    with torch.no_grad():
        model(images)
    handle.remove()
    expected = outputs[0][:, 1:].square().sum(-1).sqrt().unflatten(1, (4, 4))
    return _largest(importance_map(model, images) - expected)


CHECKS: dict[str, Callable[[], Value]] = {
    "share_with_grad_rollout": _share_with("grad_rollout"),
    **{f"change_by_classifier_{name}": _change_by_classifier(name) for name in ("token_norm", "grad_rollout")},
    **{f"layers_read_{name}": _layers_read(name) for name in ("token_norm", "rollout")},
    **{
        f.__name__: f
        for f in (
            blocks_before_pruning,
            tokens_behind_pruning,
            kept_that_are_on_top,
            class_token_changed,
            seen_of_pruned_tokens,
            pruning_to_removal,
            multiply_adds_share,
            norm_to_formula,
        )
    },
}
