"""What claims.yaml's instant entries measure of SelectiveViT: formulas, sparsity at the start, recipe, table.

Formulas and behaviour are measured on small tensors with random values, counts on models without memory.
"""

import functools
import inspect
import math
from collections.abc import Callable

import timm
import torch
from torch import Tensor

from selective_vit import findings
from selective_vit.attention import Selection, selective_attention
from selective_vit.model import SelectiveAttention, make_selective
from selective_vit.recipe import RECIPE
from vit_core.claims import Value
from vit_core.explain import SparsityTracker, captum_grad_cam, capture_attention, grad_cam
from vit_core.recipe import Run, input_size, settle
from vit_core.timm_weights import BACKBONE

# Table "Results" of the README: epoch -> accuracy in percent on CIFAR-10 of ViT-Base and of SelectiveViT.
RESULTS = {10: (80.65, 81.77), 30: (83.01, 86.02), 50: (84.62, 87.89), 70: (85.47, 89.11)}
TAU_README = 0.01
SMALL_PATCHES = 64  # 32 x 32 in patches of 4
TAU = 0.05  # of the small layers below: between 1/N and the strongest weights


def described(how: str, measure: Callable[[], Value]) -> Callable[[], Value]:
    """A check whose docstring, the line on the report, is `how`: for families of checks that differ in a name."""

    def check() -> Value:
        return measure()

    check.__doc__ = how
    return check


# ── the attention ────────────────────────────────────────────────────────────────────────────────────────────────


def _inputs(tokens: int = 17, sharp: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = torch.randn(3, 2, 3, tokens, 8, dtype=torch.float64).unbind(0)
    return sharp * q, k, v


def _published(mode: str) -> Selection:
    return Selection(mode=mode, empty_row="zero")


def _weights_by_hand(q: Tensor, k: Tensor) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])
    return scores.exp() / scores.exp().sum(-1, keepdim=True)


def formula_difference() -> Value:
    """Largest difference of a layer's output to the printed formula, written out with sums and exponentials, over the
    rows in which something passes."""
    q, k, v = _inputs()
    w = (_weights_by_hand(q, k) - TAU).clamp(min=0)
    printed = torch.einsum("bhij,bhjd->bhid", w / w.sum(-1, keepdim=True), v)
    passed = w.sum(-1) > 0
    return float((selective_attention(q, k, v, TAU, _published("relu")) - printed)[passed].abs().max())


def notebook_difference() -> Value:
    """Largest difference of a layer's output with mode="hard" to the notebook's w = P where P > τ, written out."""
    q, k, v = _inputs()
    P = _weights_by_hand(q, k)
    w = P * (P > TAU)
    written = torch.einsum("bhij,bhjd->bhid", w / (w.sum(-1, keepdim=True) + 1e-6), v)
    return float((selective_attention(q, k, v, TAU, _published("hard")) - written).abs().max())


def formula_and_notebook() -> Value:
    """How far, in percent of its norm, the notebook's layer is from the printed formula's, same weights and input."""
    q, k, v = _inputs()
    relu, hard = (selective_attention(q, k, v, TAU, _published(mode)) for mode in ("relu", "hard"))
    return 100 * float((hard - relu).norm() / relu.norm())


def _applied(selection: Selection, tau: float, tokens: int = 17) -> tuple[Tensor, Tensor]:
    """Softmax weights, and what the values are multiplied by: the layer with the unit matrix for values."""
    q, k, _ = _inputs(tokens)
    unit = torch.eye(tokens, dtype=q.dtype).expand(2, 3, tokens, tokens)
    return _weights_by_hand(q, k), selective_attention(q, k, unit, tau, selection)


def zeros_under_the_threshold() -> Value:
    """Percent of the softmax weights under τ that are exactly zero after the selection."""
    P, applied = _applied(_published("relu"), TAU)
    return 100 * float((applied[P < TAU] == 0).double().mean())


def kept_over_the_threshold() -> Value:
    """Percent of the softmax weights over τ that are still there after the selection."""
    P, applied = _applied(_published("relu"), TAU)
    return 100 * float((applied[P > TAU] > 0).double().mean())


def difference_at_zero() -> Value:
    """Largest difference at τ = 0 of a layer's output to torch's scaled_dot_product_attention."""
    q, k, v = _inputs()
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    return float((selective_attention(q, k, v, 0.0, _published("relu")) - dense).abs().max())


def _rows_that_sum_to_one(empty_row: str) -> float:
    vit = timm.create_model(BACKBONE, depth=1).eval()
    make_selective(vit, TAU_README, "hard", empty_row, reinit_attention=True)
    with torch.no_grad(), capture_attention(vit) as captured:
        vit(torch.randn(1, 3, 224, 224))
    (call,) = captured.calls
    return 100 * float(((call.weights.sum(-1) - 1).abs() < 0.01).double().mean())


def rows_as_published() -> Value:
    """Percent of the attention rows that sum to one (to 1%): first block of ViT-B/16 with new attention layers, one
    random image, τ 0.01, empty rows left at zero.
    """
    return _rows_that_sum_to_one("zero")


def rows_with_strongest() -> Value:
    """The same, where an empty row keeps its strongest key."""
    return _rows_that_sum_to_one("argmax")


@functools.cache
def _first_step() -> SparsityTracker:
    return findings.first_step(images=1)


def sparsity_at_the_first_step() -> Value:
    """Percent of the weights that are zero, block by block: ViT-B/16, new attention layers, a random image, τ 0.01."""
    return [100 * float(layer.sparsity.mean()) for layer in _first_step().layers.values()]


def empty_rows_at_the_first_step() -> Value:
    """Percent of the rows in which nothing passes, block by block, of that model."""
    return [100 * float(layer.empty_rows.mean()) for layer in _first_step().layers.values()]


def tracker_difference() -> Value:
    """Largest difference between the tracker's active tokens a head and those counted one by one."""
    _, applied = _applied(_published("relu"), TAU)
    tracker = SparsityTracker()
    tracker.add("attn", applied)
    counted = [sum(int((row > 0).sum()) for row in applied[:, h].flatten(0, 1)) / (2 * 17) for h in range(3)]
    return float((tracker.layers["attn"].active_tokens - torch.tensor(counted)).abs().max())


# ── the model ────────────────────────────────────────────────────────────────────────────────────────────────────


def added_parameters() -> Value:
    """Parameters and buffers of the selective ViT-B/16 less those of timm's, counted on the built models."""
    with torch.device("meta"):
        dense, ours = (timm.create_model(n, num_classes=10) for n in (BACKBONE, "selective_vit_base_patch16_224"))
    return sum(v.numel() for v in ours.state_dict().values()) - sum(v.numel() for v in dense.state_dict().values())


def selective_layers() -> Value:
    """Attention layers of the base model that select, of ViT-Base's twelve."""
    with torch.device("meta"):
        model = timm.create_model("selective_vit_base_patch16_224")
    return sum(isinstance(m, SelectiveAttention) for m in model.modules())


def tensors_lost_by_the_original() -> Value:
    """Tensors of a 12-block ViT (timm's tiny one) that change when its attention modules are replaced by new ones."""
    return findings.lost_weights("vit_tiny_patch16_224").names


def tensors_lost_by_ours() -> Value:
    """Tensors of that ViT that change when its attention layers' own modules are taken over (make_selective)."""
    return findings.lost_weights("vit_tiny_patch16_224").with_ours


# ── explanations ─────────────────────────────────────────────────────────────────────────────────────────────────


def captum_values() -> Value:
    """Values in Captum's map of a ViT with 16 patches and 48 channels: its LayerGradCam on the tokens as they are."""
    return math.prod(findings.captum_shapes()[0])


def captum_values_as_grid() -> Value:
    """Values in Captum's map of the same ViT, the tokens presented as a grid."""
    return math.prod(findings.captum_shapes()[1])


def _small_selective() -> torch.nn.Module:
    return timm.create_model("selective_vit_micro", num_classes=5).eval()


def captum_and_grad_cam() -> Value:
    """Largest difference, each map divided by its maximum, of Captum's map on the grid to our Grad-CAM."""
    model, images = _small_selective(), torch.randn(2, 3, 32, 32)
    maps = [f(model, images, 0) for f in (captum_grad_cam, grad_cam)]
    first, second = (m / m.amax((1, 2), keepdim=True) for m in maps)
    return float((first - second).abs().max())


def grad_cam_places() -> Value:
    """Values in the Grad-CAM map of one image, for each patch of the image, in the micro model."""
    return grad_cam(_small_selective(), torch.randn(1, 3, 32, 32), 0).numel() / SMALL_PATCHES


# ── recipe ───────────────────────────────────────────────────────────────────────────────────────────────────────


def settled(*flags: str) -> Run:
    return settle(RECIPE, RECIPE.parse(["--model", "selective", *flags]), None)


def recipe(part: str, name: str) -> Callable[[], Value]:
    how = f"The value of {name} that selective-vit-train --model selective starts from."

    def measure() -> Value:
        value: Value | None = getattr(getattr(settled(), part), name)
        return "none" if value is None else value

    return described(how, measure)


def resolution() -> Value:
    """Side in pixels of the images that the published preset's model takes."""
    with torch.device("meta"):
        return input_size(timm.create_model(settled().model))


def pretrained() -> Value:
    """Whether selective-vit-train --model selective starts from timm's pretrained ViT-Base."""
    return bool(settled().start["pretrained"])


def default_threshold() -> float:
    """The default of make_selective's threshold."""
    return float(inspect.signature(make_selective).parameters["threshold"].default)


# ── the paper's own numbers ──────────────────────────────────────────────────────────────────────────────────────


def final_gain() -> Value:
    """Arithmetic on the table Results: SelectiveViT's accuracy less ViT-Base's, at epoch 70."""
    dense, selective = RESULTS[70]
    return selective - dense


def smallest_gain() -> Value:
    """Arithmetic on the table Results: the smallest of the four differences, SelectiveViT less ViT-Base."""
    return min(selective - dense for dense, selective in RESULTS.values())


CHECKS: dict[str, Callable[[], Value]] = {
    "formula_difference": formula_difference,
    "notebook_difference": notebook_difference,
    "formula_and_notebook": formula_and_notebook,
    "zeros_under_the_threshold": zeros_under_the_threshold,
    "kept_over_the_threshold": kept_over_the_threshold,
    "difference_at_zero": difference_at_zero,
    "rows_as_published": rows_as_published,
    "rows_with_strongest": rows_with_strongest,
    "sparsity_at_the_first_step": sparsity_at_the_first_step,
    "empty_rows_at_the_first_step": empty_rows_at_the_first_step,
    "tracker_difference": tracker_difference,
    "added_parameters": added_parameters,
    "selective_layers": selective_layers,
    "tensors_lost_by_the_original": tensors_lost_by_the_original,
    "tensors_lost_by_ours": tensors_lost_by_ours,
    "captum_values": captum_values,
    "captum_values_as_grid": captum_values_as_grid,
    "captum_and_grad_cam": captum_and_grad_cam,
    "grad_cam_places": grad_cam_places,
    "recipe_dataset": recipe("data", "dataset"),
    "recipe_resolution": resolution,
    "recipe_epochs": recipe("train", "epochs"),
    "recipe_optimizer": recipe("train", "optimizer"),
    "recipe_batch_size": recipe("train", "batch_size"),
    "recipe_lr": recipe("train", "lr"),
    "recipe_min_lr": recipe("train", "min_lr"),
    "recipe_schedule": recipe("train", "schedule"),
    "recipe_label_smoothing": recipe("train", "label_smoothing"),
    "recipe_early_stopping": recipe("train", "early_stopping"),
    "recipe_normalize": recipe("data", "normalize"),
    "recipe_pretrained": pretrained,
    "default_threshold": default_threshold,
    "final_gain": final_gain,
    "smallest_gain": smallest_gain,
}  # fmt: skip
