"""What every model of every paper promises, for any valid arguments; and that no others make a model."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from hypothesis import event
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from vit_core.errors import UserError
from vit_core.explain import capture_attention
from vit_core.models.create import create_model, input_size
from vit_core.training.checkpoint import KEYS, load_checkpoint, load_weights, save_checkpoint

NONSENSE: tuple[Any, ...] = (
    0, -1, 1, 3, 7, 1.5, 1e-3, float("nan"), float("inf"), 1e308, -0.5, None, "", "none", "é", [],
    [0], [1, 2], {}, {"a": 1}, "9" * 50, b"x", (2, 3),
)  # fmt: skip
# Whether there is memory for them is not the model's to judge; and True is 1 to Python, but no size to torch.
HUGE = (2**40, 2**62, 10**30, True)
OF_TIMMS_VIT = (
    "img_size", "patch_size", "in_chans", "global_pool", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias",
    "qk_norm", "proj_bias", "init_values", "class_token", "pos_embed", "no_embed_class", "reg_tokens", "pre_norm",
    "final_norm", "fc_norm", "dynamic_img_size", "dynamic_img_pad", "drop_rate", "pos_drop_rate", "patch_drop_rate",
    "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "weight_init", "fix_init", "embed_layer", "norm_layer",
    "act_layer", "block_fn", "mlp_layer", "features_only", "no_such_argument",
)  # fmt: skip


def of_vit(head_dims: tuple[int, ...] = (1, 3, 4, 8)) -> st.SearchStrategy[dict[str, Any]]:
    """Small valid arguments of timm's VisionTransformer: 8 to 40 pixels, grids odd and even, one block or two."""
    return st.tuples(
        st.fixed_dictionaries(
            {"depth": st.integers(1, 2), "num_heads": st.integers(1, 3), "mlp_ratio": st.sampled_from([0.5, 1, 2.5])},
            optional={
                "qkv_bias": st.booleans(),
                "init_values": st.sampled_from([1e-4, 0.1]),
                "drop_path_rate": st.sampled_from([0.0, 0.3]),
                "drop_rate": st.sampled_from([0.0, 0.3]),
                "proj_drop_rate": st.sampled_from([0.0, 0.3]),
                "attn_drop_rate": st.sampled_from([0.0, 0.3]),
            },
        ),
        st.sampled_from(head_dims),
        st.sampled_from([(4, 2), (4, 3), (8, 1), (8, 2), (8, 5), (16, 1), (2, 5)]),
    ).map(
        lambda t: {**t[0], "embed_dim": t[0]["num_heads"] * t[1], "patch_size": t[2][0], "img_size": t[2][0] * t[2][1]}
    )


def nonsense(names: tuple[str, ...], values: tuple[Any, ...] = NONSENSE) -> st.SearchStrategy[dict[str, Any]]:
    """One to three arguments with any value at all."""
    return st.dictionaries(st.sampled_from(names), st.sampled_from(values), min_size=1, max_size=3)


def images_for(model: nn.Module, count: int, seed: int = 0) -> Tensor:
    side = input_size(model)
    channels = next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def built(name: str, arguments: Mapping[str, Any], num_classes: int, seed: int = 0) -> nn.Module:
    """The model with weights of this seed, its zeros replaced: a head of zeros gives every image the same logits."""
    torch.manual_seed(seed)
    model = create_model(name, arguments, num_classes, None)
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=0.1)
    return model


def holds(
    name: str,
    arguments: Mapping[str, Any],
    num_classes: int,
    count: int,
    without_gradient: tuple[str, ...] = (),
) -> None:
    """Finite and independent of the batch, trainable in all its parameters, and the same after save and load."""
    model = built(name, arguments, num_classes)
    images = images_for(model, count)
    with torch.no_grad():
        logits = model.eval()(images)
        assert logits.shape == (count, num_classes)
        assert logits.isfinite().all()
        for i in range(count):
            assert_close(model(images[i : i + 1])[0], logits[i], rtol=1e-4, atol=1e-5)
    _same_after_save_and_load(model, logits, images, lambda: built(name, arguments, num_classes, seed=1))
    loss = nn.functional.cross_entropy(model.train()(images), torch.arange(count) % num_classes, label_smoothing=0.1)
    loss.backward()
    assert loss.isfinite()
    for parameter, p in model.named_parameters():
        if p.requires_grad and not parameter.startswith(without_gradient):
            assert p.grad is not None, f"{parameter} got no gradient"
            assert p.grad.isfinite().all(), parameter


def _same_after_save_and_load(
    model: nn.Module, logits: Tensor, images: Tensor, another: Callable[[], nn.Module]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "last.pth")
        save_checkpoint(file, dict.fromkeys(KEYS, 0) | {"model_state_dict": model.state_dict()})
        fresh = another()
        load_weights(fresh, load_checkpoint(file)["model_state_dict"], file)
    with torch.no_grad():
        assert torch.equal(fresh.eval()(images), logits)


def same_when_exported_and_compiled(
    name: str, arguments: Mapping[str, Any], num_classes: int, count: int, *, fullgraph: bool = True
) -> None:
    """In evaluation: torch.export, and torch.compile without the code generator, which takes minutes."""
    model = built(name, arguments, num_classes).eval()
    images = images_for(model, count)
    torch.compiler.reset()
    with torch.no_grad():
        logits = model(images)
        exported = torch.export.export(model, (images,)).module()
        assert_close(exported(images), logits, rtol=1e-4, atol=1e-5)
        assert_close(
            torch.compile(model, backend="aot_eager", fullgraph=fullgraph)(images), logits, rtol=1e-4, atol=1e-5
        )


def takes_its_kernel_only_unwatched(
    model: nn.Module, x: Tensor, calls: Callable[[], int], expected: int, remove_kernel: Callable[[], None]
) -> None:
    """A forward pass calls the kernel `expected` times; captured, under autocast, traced, exported or without it none.

    calls: how often the kernel was called so far. The logits are the same in all but the half precision of autocast.
    """
    with torch.no_grad():
        logits = model(x)
        assert calls() == expected
        with capture_attention(model):
            assert_close(model(x), logits, rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            model(x)
        assert_close(torch.jit.trace(model, x, check_trace=False)(x), logits, rtol=1e-4, atol=1e-5)
        assert_close(torch.export.export(model, (x,)).module()(x), logits, rtol=1e-4, atol=1e-5)
        assert calls() == expected
        remove_kernel()
        assert_close(model(x), logits, rtol=1e-4, atol=1e-5)


def refused_or_finite(name: str, arguments: Mapping[str, Any]) -> None:
    """Whatever the arguments: UserError, or a model that gives finite logits."""
    torch.manual_seed(0)
    try:
        model = create_model(name, arguments, 3, None)
    except UserError:
        event("lines with exit code 2")
        return
    with torch.no_grad():
        assert model.eval()(images_for(model, 2)).isfinite().all()
    event("models")


def value_error_or_finite(create: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> None:
    """As `refused_or_finite`, for arguments that are a paper's own: ValueError or TypeError, as the docstrings say."""
    torch.manual_seed(0)
    try:
        model = create(num_classes=3, **arguments)
    except (ValueError, TypeError):
        event("ValueError or TypeError")
        return
    with torch.no_grad():
        assert model.eval()(images_for(model, 2)).isfinite().all()
    event("models")
