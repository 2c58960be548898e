"""What claims.yaml's instant entries measure of HTHTA-ViT++: counts, formulas, behaviour, recipe, and its tables' sums.

Formulas and behaviour are measured on small parts with random weights; counts, on the paper's sizes, are in
`hthta_vit.count_checks`.
"""

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn

from hthta_vit.ablation_study import CLAIMED
from hthta_vit.count_checks import COUNTS, base_model, described
from hthta_vit.model import AttentionPooling, ClassTokenFusion, HTHTAViT, SequenceModel
from hthta_vit.recipe import RECIPE
from vit_core.claims import Value
from vit_core.explain import random_control
from vit_core.recipe import Run, settle

# Table "Benchmark Results" of the README: accuracies in percent, millions of parameters, 10⁹ multiply-adds.
DATASETS = ("CIFAR-10", "CIFAR-100", "Tiny-ImageNet", "Intel")
_COLUMNS = (*DATASETS, "params", "flops")
BENCHMARK = {
    "ViT-B/16": dict(zip(_COLUMNS, (96.5, 84.6, 76.8, 93.1, 86.0, 17.6), strict=True)),
    "ConvNeXt-B": dict(zip(_COLUMNS, (98.1, 89.2, 82.6, 95.8, 88.6, 15.4), strict=True)),
    "HTHTA-ViT++": dict(zip(_COLUMNS, (98.7, 93.3, 88.9, 97.9, 99.3, 15.3), strict=True)),
}
FAP = {"HTHTA-ViT++": 78.3, "ViT-B/16": 53.7, "Swin-B": 61.2}  # its section "Focused Attention Percentage"
# Table "Ablation on CIFAR-100": row -> (accuracy, FAP).
ABLATION = {row: (float(acc), float(fap)) for row, (acc, fap) in CLAIMED.items()}
FULL, POOLED, GRU_ONLY, PLAIN = "bigru+pooling+fusion", "bigru+pooling", "bigru", "none"


# ── formulas ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _largest(difference: Tensor) -> float:
    return float(difference.detach().abs().max())


def pooling_difference() -> Value:
    """Largest difference of the pooled vectors to the printed formula, computed by a loop over heads and tokens."""
    dim, heads, width = 12, 3, 5
    pooling, h = AttentionPooling(dim, heads, width).double(), torch.randn(7, dim, dtype=torch.float64)
    contexts = pooling(h[None])[0][0].unflatten(0, (heads, dim))
    worst = 0.0
    for j in range(heads):
        W, b = (t[width * j : width * (j + 1)] for t in (pooling.proj.weight, pooling.proj.bias))
        e = torch.stack([pooling.score[j] @ torch.tanh(W @ h_i + b) for h_i in h])
        a = e.exp() / e.exp().sum()
        worst = max(worst, _largest(contexts[j] - sum(a_i * h_i for a_i, h_i in zip(a, h, strict=True))))
    return worst


def attention_sum() -> Value:
    """Largest distance from one of the sum over tokens of the attention weights, in the micro model."""
    _, alpha = _micro()(torch.randn(2, 3, 32, 32), return_attention=True)
    return _largest(alpha.sum(-1) - 1)


def fusion_difference() -> Value:
    """Largest difference of the fused vector to γ cls + (1 − γ) p + β cls p, written out number by number."""
    fusion = ClassTokenFusion(6, 2, 0.3, 0.2, fusion=True).double()
    cls, contexts = torch.randn(6, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    W, b = fusion.projection.weight, fusion.projection.bias
    gamma, beta = fusion.gamma.item(), fusion.beta.item()
    fused = fusion(cls[None], contexts[None])[0]
    p = [sum(W[i, k] * contexts[k] for k in range(12)) + b[i] for i in range(6)]
    return max(_largest(fused[i] - (gamma * cls[i] + (1 - gamma) * p[i] + beta * cls[i] * p[i])) for i in range(6))


def gru_difference() -> Value:
    """Largest difference of the part's output to torch's own bidirectional nn.GRU with the same weights."""
    part, x = SequenceModel(8, 2).double(), torch.randn(2, 9, 8, dtype=torch.float64)
    gru = nn.GRU(8, 8, num_layers=2, batch_first=True, bidirectional=True).double()
    gru.load_state_dict(part.bigru.state_dict())
    return _largest(part(x) - part.projection(gru(x)[0]))


# ── behaviour ────────────────────────────────────────────────────────────────────────────────────────────────────


def _micro(**fields: Any) -> HTHTAViT:
    model = timm.create_model("hthta_vit_micro", num_classes=10, **fields).eval()
    assert isinstance(model, HTHTAViT)
    return model


def token_pairs_that_interact() -> Value:
    """Percent of the ordered pairs of patch tokens (i, j) in which the sequence model's output i depends on input j."""
    part, x = SequenceModel(8, 1).double(), torch.randn(1, 6, 8, dtype=torch.float64, requires_grad=True)
    out = part(x)
    grads = [torch.autograd.grad(out[0, i].sum(), x, retain_graph=True)[0][0] for i in range(6)]
    depends = torch.stack([g.abs().sum(-1) > 0 for g in grads])
    return 100 * float(depends.double().mean())


def effect_of_order() -> Value:
    """How far, in percent of its norm, the mean of the sequence model's output moves if the patches are shuffled."""
    part, x = SequenceModel(16, 1), torch.randn(4, 64, 16)
    with torch.no_grad():
        mean, shuffled = part(x).mean(1), part(x[:, torch.randperm(64)]).mean(1)
    return 100 * float((shuffled - mean).norm() / mean.norm())


def weakest_cue() -> Value:
    """Of class token and patch tokens, the smaller share (percent) of the gradient of the fused vector's sum."""
    cls, patches = torch.randn(1, 64, requires_grad=True), torch.randn(1, 64, 64, requires_grad=True)
    grads = torch.autograd.grad(_micro().guided(patches, cls)[0].sum(), (cls, patches), materialize_grads=True)
    norms = [float(g.norm()) for g in grads]
    return 100 * min(norms) / sum(norms)


def attention_map_by_class() -> Value:
    """Percent by which the pooling's map for class 1 differs from that for class 0: the classifier's two rows are
    exchanged, and the map taken again.
    """
    model, images = _micro(), torch.randn(2, 3, 32, 32)
    head = model.get_classifier()
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        first = model.attention_map(images)
        head.weight[[0, 1]] = head.weight[[1, 0]].clone()
        second = model.attention_map(images)
    assert first is not None
    assert second is not None
    return 100 * float((first - second).abs().sum() / first.abs().sum())


def fap_of_random_maps() -> Value:
    """FAP in percent of 2,000 random maps beside other random maps, on ViT-B/16's grid of 14 x 14 patches."""
    return float(random_control(torch.rand(2000, 14, 14)).mean())


# ── recipe ───────────────────────────────────────────────────────────────────────────────────────────────────────


def settled(*flags: str) -> Run:
    return settle(RECIPE, RECIPE.parse(["--model", "base", *flags]), None)


def recipe(part: str, name: str, *flags: str) -> Callable[[], Value]:
    given = f", with {' '.join(flags)}" if flags else ""
    how = f"The value of {name} that hthta-vit-train --model base starts from{given}."

    def measure() -> Value:
        value: Value | None = getattr(getattr(settled(*flags), part), name)
        return "none" if value is None else value

    return described(how, measure)


def fusion_start(name: str, *flags: str) -> Callable[[], Value]:
    given = f" with {' '.join(flags)}" if flags else ""
    how = f"Where the fusion's scalar {name} starts{given}, read from a new micro model."

    def measure() -> Value:
        scalar = _micro(**settled(*flags).model_kwargs).guided.get_parameter(f"cls_fusion.{name}")
        return round(scalar.item(), 6)  # float32

    return described(how, measure)


# ── the paper's own tables ───────────────────────────────────────────────────────────────────────────────────────


def lead(dataset: str) -> Callable[[], Value]:
    how = f"Arithmetic on the table Benchmark Results: HTHTA-ViT++'s accuracy on {dataset} less the better baseline's."
    best = max(BENCHMARK["ViT-B/16"][dataset], BENCHMARK["ConvNeXt-B"][dataset])
    return described(how, lambda: BENCHMARK["HTHTA-ViT++"][dataset] - best)


def datasets_led() -> Value:
    """Arithmetic on the table Benchmark Results: in how many of its four datasets HTHTA-ViT++ is the best."""
    return sum(max(BENCHMARK, key=lambda m: BENCHMARK[m][d]) == "HTHTA-ViT++" for d in DATASETS)


def table_flops_saved() -> Value:
    """Arithmetic on the table Benchmark Results: percent by which HTHTA-ViT++'s FLOPs lie below ViT-B/16's."""
    return 100 * (1 - BENCHMARK["HTHTA-ViT++"]["flops"] / BENCHMARK["ViT-B/16"]["flops"])


def ablation_gain(row: str, before: str) -> Callable[[], Value]:
    how = f"Arithmetic on the table Ablation on CIFAR-100: accuracy of the row {row} less that of {before}."
    return described(how, lambda: ABLATION[row][0] - ABLATION[before][0])


def ablation_cell(row: str, column: int) -> Callable[[], Value]:
    how = f"The {('accuracy', 'FAP')[column]} of the row {row} in the table Ablation on CIFAR-100, in percent."
    return described(how, lambda: ABLATION[row][column])


CHECKS: dict[str, Callable[[], Value]] = {
    **COUNTS,
    "pooling_difference": pooling_difference,
    "attention_sum": attention_sum,
    "fusion_difference": fusion_difference,
    "gru_difference": gru_difference,
    "token_pairs_that_interact": token_pairs_that_interact,
    "effect_of_order": effect_of_order,
    "weakest_cue": weakest_cue,
    "attention_map_by_class": attention_map_by_class,
    "fap_of_random_maps": fap_of_random_maps,
    "heads": described("Heads of the base model's attention pooling, read from its weights' shape.",
                       lambda: base_model(1).guided.get_parameter("attention_pooling.score").shape[0]),
    "head_width": described("Width of a head's context in the base model, read from its weights' shape.",
                            lambda: base_model(1).guided.get_parameter("attention_pooling.score").shape[1]),
    "gru_width": described("Width of the GRU's state in each direction, read from the base model's weights' shape.",
                           lambda: base_model(1).guided.get_parameter("bigru.bigru.weight_hh_l0").shape[1]),
    "contexts_width": described("Width of the heads' vectors side by side, read from the shape of W_p.",
                                lambda: base_model(1).guided.get_parameter("cls_fusion.projection.weight").shape[1]),
    "gamma": fusion_start("gamma"),
    "gamma_config": fusion_start("gamma", "--config", "cifar100"),
    "beta": fusion_start("beta"),
    "recipe_optimizer": recipe("train", "optimizer"),
    "recipe_lr": recipe("train", "lr"),
    "recipe_batch_size": recipe("train", "batch_size"),
    "recipe_epochs": recipe("train", "epochs"),
    "recipe_schedule": recipe("train", "schedule"),
    "recipe_weight_decay": recipe("train", "weight_decay"),
    "recipe_warmup": recipe("train", "warmup_steps"),
    "recipe_clip": recipe("train", "grad_clip"),
    "recipe_early_stopping": recipe("train", "early_stopping"),
    "recipe_label_smoothing": recipe("train", "label_smoothing", "--preset", "notebook"),
    "recipe_normalize": recipe("data", "normalize"),
    "lead_cifar100": lead("CIFAR-100"),
    "lead_tiny_imagenet": lead("Tiny-ImageNet"),
    "datasets_led": datasets_led,
    "table_flops_saved": table_flops_saved,
    "table_fap_gain": described("Arithmetic on the section on FAP: HTHTA-ViT++'s less ViT-B/16's.",
                                lambda: FAP["HTHTA-ViT++"] - FAP["ViT-B/16"]),
    "gain_bigru": ablation_gain(GRU_ONLY, PLAIN),
    "gain_pooling": ablation_gain(POOLED, GRU_ONLY),
    "gain_fusion": ablation_gain(FULL, POOLED),
    "ablation_vit_accuracy": ablation_cell(PLAIN, 0),
    "ablation_full_accuracy": ablation_cell(FULL, 0),
    "ablation_vit_fap": ablation_cell(PLAIN, 1),
    "ablation_full_fap": ablation_cell(FULL, 1),
}  # fmt: skip
