"""Record the attention weights of a running model: `with capture_attention(model) as captured: model(images)`.

Recorded are `F.scaled_dot_product_attention` (timm's fused attention, Swin's windows, `nn.MultiheadAttention`),
`vit_core.models.attention.attention` with any backend, weights passed to `vit_core.models.attention.observed`, and the
input of each dropout named `attn_drop` (timm's non-fused attention). A softmax that uses none of these is not recorded,
nor is a model under `torch.compile`.

Shapes: B batch (for Swin: images × windows), h heads, N queries, M keys, d head_dim.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vit_core.models.attention import attention, masked_softmax, observed

Where = Callable[[str], bool] | Iterable[str]


class AttentionCall(NamedTuple):
    module: str  # its name in the model
    weights: Tensor  # (B, h, N, M), after the softmax, before dropout


class CapturedAttention:
    """The recorded calls in order; `captured["blocks.0.attn"]` lists the weights of one module's calls."""

    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []

    @property
    def by_module(self) -> dict[str, list[Tensor]]:
        modules: dict[str, list[Tensor]] = {}
        for name, weights in self.calls:
            modules.setdefault(name, []).append(weights)
        return modules

    def __getitem__(self, module: str) -> list[Tensor]:
        return self.by_module[module]

    def __len__(self) -> int:
        return len(self.calls)

    def clear(self) -> None:
        """Delete the recorded calls, for example between batches."""
        self.calls.clear()


@contextmanager
def capture_attention(
    model: nn.Module, where: Where | None = None, *, keep_graph: bool = False
) -> Iterator[CapturedAttention]:
    """Record the attention weights of every call of `model` inside the context.

    The model's outputs are bit-identical, unless `keep_graph`: then fused attention is computed from the recorded
    weights, so that gradients with respect to them exist, and outputs are equal up to rounding. The model is restored
    afterwards, also after an exception.

    Args:
        where: names of the modules to record (those that compute attention, like "blocks.0.attn"), or a predicate on
            the name. Default: all.
        keep_graph: keep the weights in the autograd graph instead of detaching them.
    Raises: ValueError for an unknown module name.
    """
    if where is None or callable(where):
        wanted: Callable[[str], bool] = where or (lambda name: True)
    else:
        names = set(where)
        if unknown := names - {name for name, _ in model.named_modules()}:
            raise ValueError(f"no such module: {', '.join(sorted(unknown))}; see model.named_modules()")
        wanted = names.__contains__
    captured = CapturedAttention()
    running: list[str] = []  # stack of the modules being called, innermost last

    def record(name: str, weights: Tensor) -> None:
        captured.calls.append(AttentionCall(name, weights if keep_graph else weights.detach()))

    def entering(name: str) -> Callable[..., None]:
        owner, _, last = name.rpartition(".")

        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            running.append(name)
            if last == "attn_drop" and isinstance(module, nn.Dropout | nn.Identity) and wanted(owner):
                record(owner, args[0])

        return hook

    def leaving(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            if running and running[-1] == name:  # otherwise another hook failed before `entering`
                running.pop()

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(entering(name)).remove)
            stack.callback(module.register_forward_hook(leaving(name), always_call=True).remove)
        stack.enter_context(
            _Onlooker(
                lambda: bool(running) and wanted(running[-1]), keep_graph, lambda weights: record(running[-1], weights)
            )
        )
        yield captured


class _Onlooker(TorchFunctionMode):
    """Passes every torch function through and records attention. Inside its handler the mode is disabled."""

    def __init__(self, wanted: Callable[[], bool], keep_graph: bool, record: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.wanted, self.keep_graph, self.record = wanted, keep_graph, record

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _SEEN and self.wanted():
            if func is F.multi_head_attention_forward:
                return self._multi_head(*args, **kwargs)
            if func is not observed:
                return self._attend(func, *args, **kwargs)
            self.record(args[0])
        return func(*args, **kwargs)

    def _attend(self, func: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.set_grad_enabled(self.keep_graph and torch.is_grad_enabled()):
            weights, dropout_p = _softmax_weights(query, key, *args, **kwargs)
        self.record(weights)
        if not self.keep_graph:
            return func(query, key, value, *args, **kwargs)
        device = query.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
        with torch.autocast(device, enabled=False):
            return F.dropout(weights, dropout_p).to(kind) @ _for_each_head(value.to(kind), query)

    def _multi_head(self, *args: Any, need_weights: bool = True, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """`nn.MultiheadAttention` calls SDPA if no weights are requested; patch SDPA for this call."""
        func: Any = F.multi_head_attention_forward
        fused = F.scaled_dot_product_attention
        silent = need_weights and not self.keep_graph  # an extra call only for recording: must not draw a dropout mask
        with mock.patch.object(F, "scaled_dot_product_attention", partial(self._attend, fused)):
            out, _ = func(*args, need_weights=False, **(kwargs | {"training": False} if silent else kwargs))
        if not need_weights:
            return out, None
        theirs = func(*args, need_weights=True, **kwargs)
        return theirs if silent else (out, theirs[1])


_SEEN = {attention, observed, F.scaled_dot_product_attention, F.multi_head_attention_forward}


def _softmax_weights(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, float]:
    """The weights that SDPA applies for these arguments, before dropout, in float32 or higher; and dropout_p."""
    kind = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        q, k = query.to(kind), _for_each_head(key.to(kind), query)
        scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
        return masked_softmax(scores, attn_mask, is_causal), dropout_p


def _for_each_head(t: Tensor, query: Tensor) -> Tensor:
    """Expand keys or values (B, h', M, d) to (B, h, M, d) for grouped-query attention."""
    if t.ndim < 4 or t.shape[-3] == query.shape[-3]:
        return t
    return t.repeat_interleave(query.shape[-3] // t.shape[-3], -3)
