"""A bidirectional GRU that is fast on a CPU: torch's `nn.GRU` in parameters, initialisation and results.

nn.GRU's CPU kernel takes 240 ms for the base model's layer (batch 4, two cores) where its multiplications need 70: each
step reads all of W_hh anew with a product that is slow for few rows, and the backward pass adds a weight gradient of
7 MB at each step. Here
- the input's products of all steps are one large product a direction;
- a step multiplies both directions at once, by weights that oneDNN has reordered for it: W_hh h over 2 groups is a
  1 × 1 convolution whose pixels are the batch, and it adds to what is there;
- the backward recursion carries dh alone; the gates' derivatives before it and the weights' gradients after it are
  large operations over all steps.
On other devices and in half precision torch's own kernel runs (cuDNN's on a GPU).

    r = σ(W_ir x + b_ir + W_hr h + b_hr)        n = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))
    z = σ(W_iz x + b_iz + W_hz h + b_hz)        h ← n + z ⊙ (h − n)

Shapes: B batch, N steps, d input width, h hidden width, 2 directions (the second runs from the last token to the first;
inside, step s of it is token N − 1 − s).
"""

import math
import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

MIN_PACKED = 3 * 256**2  # entries of W_hh
Weights = list[Tensor]  # of one layer: weight_ih, weight_hh, bias_ih, bias_hh, and the four of the reverse direction


class BiGRU(nn.GRU):
    """Tokens (B, N, d) -> (B, N, 2h), as nn.GRU(d, h, num_layers, batch_first=True, bidirectional=True)(x)[0].

    Gradients of gradients are refused with a RuntimeError on a CPU.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1) -> None:
        super().__init__(input_size, hidden_size, num_layers, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        if x.device.type not in ("cpu", "meta") or self.weight_ih_l0.dtype not in (torch.float32, torch.float64):
            return super().forward(x)[0]
        with torch.autocast("cpu", enabled=False):
            x = x.to(self.weight_ih_l0.dtype)
            directions = self.all_weights
            for i in range(0, len(directions), 2):
                x = torch.ops.hthta_vit.bigru(x, directions[i] + directions[i + 1])[0]
        return x


class _StepProduct:
    """out += x Wᵀ for each direction: x (B, 2, k), out (B, 2, m), with W (m, k) of each direction."""

    def __init__(self, w_forward: Tensor, w_reverse: Tensor, batch: int) -> None:
        (m, k), self.batch = w_forward.shape, batch
        self.weights = w_forward.new_empty(2, m, k)
        self.weights[0].copy_(w_forward)
        self.weights[1].copy_(w_reverse)
        self.packed = None
        # A call of oneDNN costs 40 µs beside its work: in layers narrower than about 256 the plain product is faster.
        if w_forward.dtype == torch.float32 and m * k >= MIN_PACKED and _onednn_packs():
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(
                self.weights.view(2 * m, k, 1, 1), [0, 0], [1, 1], [1, 1], 2, [1, 2 * k, 1, batch]
            )

    def steps(self, t: Tensor) -> tuple[Tensor, ...]:
        """The steps of t (N, B, 2, c), each as `add` wants it."""
        N, B, _, c = t.shape
        if self.packed is None:
            return t.transpose(1, 2).unbind(0)  # N × (2, B, c)
        return t.view(N, 1, 1, B, 2 * c).permute(0, 1, 4, 2, 3).unbind(0)  # N × (1, 2c, 1, B), channels last

    def add(self, out: Tensor, x: Tensor) -> None:
        if self.packed is None:
            out.baddbmm_(x, self.weights.transpose(1, 2))
        else:
            torch.ops.mkldnn._convolution_pointwise_.binary(
                out, x, self.packed, None, [0, 0], [1, 1], [1, 1], 2, "add", 1.0, None, [], None
            )


def _onednn_packs() -> bool:
    """oneDNN's reordered weights, by the operators that torch's own compiler uses; measured on x86 only."""
    return (
        torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and platform.machine() in ("x86_64", "AMD64")
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise_")
        and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
    )


def _in_steps(x: Tensor, direction: int) -> Tensor:
    """x (B, N, c) -> (N·B, c), in the order in which the direction meets the tokens."""
    x = x.transpose(0, 1)
    return (x.flip(0) if direction else x).reshape(-1, x.shape[-1])


@torch.library.custom_op("hthta_vit::bigru", mutates_args=())
def _bigru(x: Tensor, weights: Weights) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One layer. x (B, N, d) -> output (B, N, 2h), and for the backward pass, by step:
    gates (N, B, 2, 3h): r, z and W_hn h + b_hn; new (N, B, 2, h): n; states (N + 1, B, 2, h) from the zero state on.
    """
    B, N, _ = x.shape
    h = weights[1].shape[1]
    gates, new, states = x.new_empty(N, B, 2, 3 * h), x.new_empty(N, B, 2, h), x.new_empty(N + 1, B, 2, h)
    states[0] = 0
    for k in (0, 1):
        w_ih, _, b_ih, b_hh = weights[4 * k : 4 * k + 4]
        tokens = _in_steps(x, k)
        rz = gates[:, :, k, : 2 * h].view(N * B, 2 * h)
        torch.addmm(b_ih[: 2 * h] + b_hh[: 2 * h], tokens, w_ih[: 2 * h].t(), out=rz)
        torch.addmm(b_ih[2 * h :], tokens, w_ih[2 * h :].t(), out=new[:, :, k].view(N * B, h))
        gates[:, :, k, 2 * h :] = b_hh[2 * h :]
    product = _StepProduct(weights[1], weights[5], B)
    steps = zip(
        product.steps(gates), product.steps(states), gates[..., : 2 * h].unbind(0), gates[..., :h].unbind(0),
        gates[..., h : 2 * h].unbind(0), gates[..., 2 * h :].unbind(0), new.unbind(0), states.unbind(0),
        states[1:].unbind(0), strict=False,
    )  # fmt: skip
    # Few operations, in place: each costs as much to start as its work takes.
    for gate, state, rz, r, z, hn, n, before, after in steps:
        product.add(gate, state)
        rz.sigmoid_()
        n.addcmul_(r, hn).tanh_()
        torch.lerp(n, before, z, out=after)
    y = x.new_empty(B, N, 2 * h)
    y[..., :h] = states[1:, :, 0].transpose(0, 1)
    y[..., h:] = states[1:, :, 1].flip(0).transpose(0, 1)
    return y, gates, new, states


@torch.library.custom_op("hthta_vit::bigru_backward", mutates_args=())
def _bigru_backward(
    dy: Tensor, x: Tensor, weights: Weights, gates: Tensor, new: Tensor, states: Tensor, for_input: bool,
    for_weights: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients: that of x if `for_input`, then those of the eight weights if `for_weights`."""
    B, N, d = x.shape
    h = weights[1].shape[1]
    r, z, hn = gates.split(h, dim=-1)
    # The derivatives of the gates' arguments by the state that they make: dn = a_n dh, d(r, z, hn) = a dh.
    a_n = (1 - z).mul_(1 - new * new)
    a = torch.empty_like(gates)
    a_r, a_z, a_hn = a.split(h, dim=-1)
    torch.mul(a_n, r, out=a_hn)
    torch.mul(a_hn, hn, out=a_r).mul_(1 - r)
    torch.sub(states[:-1], new, out=a_z).mul_(z).mul_(1 - z)
    dh = x.new_empty(N, B, 2, h)
    dh[:, :, 0] = dy[..., :h].transpose(0, 1)
    dh[:, :, 1] = dy[..., h:].transpose(0, 1).flip(0)
    product = _StepProduct(weights[1].t(), weights[5].t(), B)
    a_steps, dh_steps = product.steps(a), product.steps(dh)
    a_by_gate, dh_by_gate = a.view(N, B, 2, 3, h).unbind(0), dh[:, :, :, None].unbind(0)
    dh_by_step, z_by_step = dh.unbind(0), z.unbind(0)
    for s in range(N - 1, -1, -1):
        a_by_gate[s].mul_(dh_by_gate[s])
        if s:
            dh_by_step[s - 1].addcmul_(dh_by_step[s], z_by_step[s])
            product.add(dh_steps[s - 1], a_steps[s])
    grads: dict[int, Tensor] = {}
    if for_weights:
        for k in (0, 1):
            d_gates, before = a[:, :, k].view(N * B, 3 * h), states[:-1, :, k].view(N * B, h)
            grads[4 * k + 1], grads[4 * k + 3] = d_gates.t() @ before, d_gates.sum(0)
    torch.mul(a_n, dh, out=a_hn)  # from here on the derivatives by W_i x + b_i: they differ in n's part only
    dx = None
    for k in (0, 1):
        d_gates = a[:, :, k].view(N * B, 3 * h)
        if for_weights:
            grads[4 * k], grads[4 * k + 2] = d_gates.t() @ _in_steps(x, k), d_gates.sum(0)
        if for_input:
            part = (d_gates @ weights[4 * k]).view(N, B, d)
            dx = part if dx is None else dx.add_(part.flip(0))
    of_input = [] if dx is None else [dx.transpose(0, 1).contiguous()]
    return of_input + [grads[i] for i in sorted(grads)]


@_bigru.register_fake
def _(x: Tensor, weights: Weights) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (B, N, _), h = x.shape, weights[1].shape[1]
    return (
        x.new_empty(B, N, 2 * h), x.new_empty(N, B, 2, 3 * h), x.new_empty(N, B, 2, h), x.new_empty(N + 1, B, 2, h)
    )  # fmt: skip


@_bigru_backward.register_fake
def _(
    dy: Tensor, x: Tensor, weights: Weights, gates: Tensor, new: Tensor, states: Tensor, for_input: bool,
    for_weights: bool,
) -> list[Tensor]:  # fmt: skip
    return [x.new_empty(x.shape)] * for_input + [w.new_empty(w.shape) for w in weights] * for_weights


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weights = inputs
    ctx.save_for_backward(x, *weights, *output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, list[Tensor | None]]:
    x, *weights, gates, new, states = ctx.saved_tensors
    needs_x, needs_weights = ctx.needs_input_grad
    needs_weights = any(needs_weights) if isinstance(needs_weights, list | tuple) else bool(needs_weights)
    if dy is None:
        return None, [None] * 8
    grads = torch.ops.hthta_vit.bigru_backward(dy, x, weights, gates, new, states, needs_x, needs_weights)
    return (grads[0] if needs_x else None), (grads[-8:] if needs_weights else [None] * 8)


_bigru.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.hthta_vit.bigru)
def bigru_flops(x_shape: Any, weights_shape: Any, *args: Any, **kwargs: Any) -> int:
    """Twice the multiply-adds of W_ih x and W_hh h over all steps, as torch counts a product."""
    return 2 * math.prod(x_shape[:2]) * sum(math.prod(weights_shape[i]) for i in (0, 1, 4, 5))


@register_flop_formula(torch.ops.hthta_vit.bigru_backward)
def bigru_backward_flops(
    dy: Any, x_shape: Any, weights_shape: Any, gates: Any, new: Any, states: Any, for_input: bool, for_weights: bool,
    *args: Any, **kwargs: Any,
) -> int:  # fmt: skip
    inner = sum(math.prod(weights_shape[i]) for i in (1, 5))
    outer = sum(math.prod(weights_shape[i]) for i in (0, 4))
    return 2 * math.prod(x_shape[:2]) * (inner + for_weights * (inner + outer) + for_input * outer)
