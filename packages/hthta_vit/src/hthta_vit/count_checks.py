"""Parameter and multiply-add counts of HTHTA-ViT++, ViT-B/16 and ConvNeXt-B.

The models are built on PyTorch's meta device, without memory. `hthta_vit.checks` has the other checks and lists all.
"""

import functools
from collections.abc import Callable

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hthta_vit.model import HTHTAViT
from vit_core.bench.pair import multiply_adds
from vit_core.ledger.claims import Value

VIT, CONVNEXT = "vit_base_patch16_224", "convnext_base"
ONE, TWO = "hthta_vit_base_patch16_224", "hthta_vit_base_patch16_224_gru2"


def described(how: str, measure: Callable[[], Value]) -> Callable[[], Value]:
    """A check with the docstring `how`, which the report shows; for checks that differ only in the model."""

    def check() -> Value:
        return measure()

    check.__doc__ = how
    return check


@functools.cache
def _on_meta(name: str, classes: int = 100) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, num_classes=classes).eval()


def base_model(layers: int) -> HTHTAViT:
    """The paper's model with one or two GRU layers and 100 classes, on the meta device."""
    model = _on_meta("hthta_vit_base_patch16_224" if layers == 1 else "hthta_vit_base_patch16_224_gru2")
    assert isinstance(model, HTHTAViT)
    return model


def parameters(module: nn.Module | None) -> int:
    assert module is not None
    return sum(p.numel() for p in module.parameters())


def millions(name: str, classes: int) -> Callable[[], Value]:
    how = f"Number of parameters of {name} with {classes} classes, in millions, counted on the built model."
    return described(how, lambda: parameters(_on_meta(name, classes)) / 1e6)


def _gru_and_pooling(layers: int) -> float:
    guided = base_model(layers).guided
    return (parameters(guided.bigru) + parameters(guided.attention_pooling)) / 1e6


@functools.cache
def gmacs(name: str) -> float:
    """Multiply-adds of the forward pass for one 224 x 224 image, in 10⁹, including attention."""
    model = _on_meta(name)
    with torch.no_grad():
        return multiply_adds(lambda: model(torch.empty(1, 3, 224, 224, device="meta"))) / 1e9


@functools.cache
def gmacs_without_fused_attention() -> float:
    """PyTorch's count for torchvision's ViT-B/16 in eval mode, which misses attention: a fused, unknown operator."""
    from torchvision.models import vit_b_16

    with torch.device("meta"):
        vit = vit_b_16(num_classes=100).eval()
    vit = vit.to_empty(device="cpu")  # the operator does not support meta tensors; the values do not matter
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for p in vit.parameters():
            p.zero_()
        vit(torch.zeros(1, 3, 224, 224))
    return counter.get_total_flops() / 2e9


def _seen_by_the_counter(name: str) -> float:
    return gmacs_without_fused_attention() + gmacs(name) - gmacs(VIT)


def count_of(name: str) -> Callable[[], Value]:
    how = f"Multiply-adds of {name} for one 224 x 224 image, in 10⁹, by PyTorch's counter with unfused attention."
    return described(how, lambda: gmacs(name))


def baselines() -> Value:
    """Parameters with 100 classes, and multiply-adds for a 224 x 224 image, of timm's ViT-B/16 and ConvNeXt-B."""
    names = {"ViT-B/16": VIT, "ConvNeXt-B": CONVNEXT}
    return {
        name: {"million parameters": parameters(_on_meta(model)) / 1e6, "10⁹ multiply-adds": gmacs(model)}
        for name, model in names.items()
    }


COUNTS: dict[str, Callable[[], Value]] = {
    "baselines": baselines,
    "parameters_two_layers": millions(TWO, 100),
    "parameters_one_layer": millions(ONE, 100),
    "gru_and_pooling_two": described(
        "Parameters of the two-layer GRU, its projection and the pooling, in millions, counted on the built model.",
        lambda: _gru_and_pooling(2),
    ),
    "gru_and_pooling_one": described(
        "Parameters of the one-layer GRU, its projection and the pooling, in millions, counted on the built model.",
        lambda: _gru_and_pooling(1),
    ),
    "gmacs_two_layers": count_of(TWO),
    "gmacs_one_layer": count_of(ONE),
    "gmacs_seen_two": described(
        "PyTorch's count for torchvision's ViT-B/16 in eval mode, which misses its fused "
        "attention, plus the full count of the paper's modules with two GRU layers.",
        lambda: _seen_by_the_counter(TWO),
    ),
    "reduction_two": described(
        "Multiply-adds saved by the model with two GRU layers, in percent of ViT-B/16's; negative: it needs more.",
        lambda: 100 * (1 - gmacs(TWO) / gmacs(VIT)),
    ),
    "reduction_one": described(
        "Multiply-adds saved by the model with one GRU layer, in percent of ViT-B/16's; negative: it needs more.",
        lambda: 100 * (1 - gmacs(ONE) / gmacs(VIT)),
    ),
}
