"""Importance of each patch for the model's prediction: six measures.

An importance is a function from `Seen`, which holds the results of a forward pass so far, to values (B, N); larger
values are more important. `forward_pruned` evaluates it at the pruning layer, `importance_map` after the last block.
Any such function can be used, for example the distilled network of the full Zoomer.

    token_norm      L2 norm of a patch's token, as in the study's pruning; after the last block, L2 norm in that block's
                    attention output, as in the study's maps
    cls_attention   attention of the class token in the last block so far, mean over heads
    rollout         attention rollout through the blocks so far (Abnar and Zuidema)
    grad_rollout    attention times its gradient, through all blocks (Chefer et al., ICCV 2021)
    gradcam         Grad-CAM of the whole model
    random          control

The two with gradients need a full forward and backward pass before pruning, so they save no computation; they show what
a better choice of patches could gain. They explain the predicted class.

Shapes: B images, N patches, P prefix tokens, D embed_dim, h heads.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.models import VisionTransformer, checkpoint
from torch import Tensor, nn

from vit_core.explain import attention_relevance, grad_cam, token_grid
from vit_core.explain.evaluation_mode import evaluation_mode
from vit_core.explain.rollout import reading_of_patches, rolled_out


class Seen(NamedTuple):
    """Input of an importance function."""

    model: VisionTransformer
    images: Tensor  # (B, 3, H, W)
    states: tuple[Tensor, ...]  # tokens (B, P + N, D): input of each block so far, and output of the last one
    targets: Tensor | None = None  # (B,) classes to explain; default: the predicted classes

    @property
    def tokens(self) -> Tensor:
        return self.states[-1]

    @property
    def layer(self) -> int:
        """Number of blocks that have run."""
        return len(self.states) - 1

    @property
    def patches(self) -> slice:
        """Positions of the patches among the tokens."""
        return slice(self.model.num_prefix_tokens, None)


Importance = Callable[[Seen], Tensor]


def see(model: VisionTransformer, images: Tensor, layers: int | None = None) -> Seen:
    """Run the first `layers` blocks (default: all) and return the embedded tokens and each block's output."""
    states = [model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))]
    for block in list(model.blocks)[:layers]:
        states.append(through(model, block, states[-1]))
    return Seen(model, images, tuple(states))


def through(model: VisionTransformer, block: nn.Module, x: Tensor) -> Tensor:
    """The output of one of the model's blocks, with gradient checkpointing if the model uses it."""
    out: Tensor = checkpoint(block, x) if model.grad_checkpointing else block(x)
    return out


def token_norm(seen: Seen) -> Tensor:
    tokens = seen.tokens
    if seen.layer == len(seen.model.blocks):
        block: Any = seen.model.blocks[-1]
        tokens = block.attn(block.norm1(seen.states[-2]))
    return tokens[:, seen.patches].norm(dim=-1)


def cls_attention(seen: Seen) -> Tensor:
    """Attention of the class token: computes only its row of the attention matrix."""
    if seen.model.cls_token is None:
        raise ValueError("cls_attention needs a model with a class token; use another importance, such as token_norm")
    block: Any = seen.model.blocks[seen.layer - 1]
    return attention_weights(block, seen.states[-2], rows=1).mean(1)[:, 0, seen.patches]


def rollout(seen: Seen) -> Tensor:
    layers = [attention_weights(b, x) for b, x in zip(seen.model.blocks, seen.states[:-1], strict=False)]
    return reading_of_patches(rolled_out(layers), seen.model, seen.images, None).flatten(1)


def grad_rollout(seen: Seen) -> Tensor:
    return attention_relevance(seen.model, seen.images, seen.targets).flatten(1)


def gradcam(seen: Seen) -> Tensor:
    return grad_cam(seen.model, seen.images, seen.targets).flatten(1)


class Random:
    """Values in [0, 1) that depend only on the image, the patch and the seed, not on the batch or the RNG state.

    The image is hashed from about 4,000 evenly spaced values.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __call__(self, seen: Seen) -> Tensor:
        N = seen.tokens.shape[1] - seen.model.num_prefix_tokens
        values = seen.images.flatten(1)
        values = values[:, :: max(1, values.shape[1] // 4096)]
        bits = values.float().contiguous().view(torch.int32).long() % PRIME
        place = torch.arange(1, bits.shape[1] + 1, device=bits.device)
        image = _mixed((bits * (_mixed(place) + 1) % PRIME).sum(1) % PRIME + self.seed % PRIME)
        return _mixed(image[:, None] + 7919 * torch.arange(1, N + 1, device=bits.device)).double() / 2**31


PRIME = 2**31 - 1  # products of two smaller numbers fit in 63 bits


def _mixed(x: Tensor) -> Tensor:
    """Hash int64 values in [0, 2⁴⁰) to [0, 2³¹): three rounds of shift, exclusive or and multiply."""
    for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39), (15, 0x5F356495)):
        x = (x ^ (x >> shift)) % PRIME * factor % PRIME
    return x ^ (x >> 16)


IMPORTANCES: dict[str, Importance] = {
    "token_norm": token_norm,
    "cls_attention": cls_attention,
    "rollout": rollout,
    "grad_rollout": grad_rollout,
    "gradcam": gradcam,
    "random": Random(),
}


def named(name: str) -> Importance:
    if name not in IMPORTANCES:
        raise ValueError(f"importance must be one of {', '.join(IMPORTANCES)}; got {name!r}")
    return IMPORTANCES[name]


def importance_map(
    model: VisionTransformer,
    images: Tensor,
    importance: str | Importance = "token_norm",
    targets: Tensor | None = None,
) -> Tensor:
    """The importance of each patch after the last block: (B, rows, columns).

    The model runs in evaluation mode, and its mode is restored; the result has no gradient.
    targets: classes (B,) that grad_rollout and gradcam explain. Default: the predicted classes.
    """
    with torch.no_grad(), evaluation_mode(model):
        return as_map(see(model, images)._replace(targets=targets), importance)


def as_map(seen: Seen, importance: str | Importance) -> Tensor:
    """The importance of each patch as a map (B, rows, columns)."""
    values = (named(importance) if isinstance(importance, str) else importance)(seen)
    return values.unflatten(1, token_grid(seen.model, values.shape[1], None, seen.images.shape[-2:]))


def attention_weights(block: nn.Module, x: Tensor, rows: int | None = None) -> Tensor:
    """Attention weights of a timm block for its input x (B, P + N, D): (B, h, P + N, P + N), or only the first rows."""
    attn: Any = block.attn
    x = block.norm1(x)  # type: ignore[operator]

    def project(part: int, t: Tensor) -> Tensor:  # part: queries (0) or keys (1)
        which = slice(part * attn.num_heads * attn.head_dim, (part + 1) * attn.num_heads * attn.head_dim)
        bias = None if attn.qkv.bias is None else attn.qkv.bias[which]
        return F.linear(t, attn.qkv.weight[which], bias).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)

    q, k = attn.q_norm(project(0, x[:, :rows])), attn.k_norm(project(1, x))
    return (q @ k.transpose(-2, -1) * attn.scale).softmax(-1)
