"""Loss and accuracy of a model over a dataset, and how long its forward pass takes."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vit_core.data import BatchLoader
from vit_core.distributed import all_sum
from vit_core.precision import Precision


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    loss: float  # mean cross-entropy, without label smoothing
    acc1: float  # percent
    acc5: float  # percent; with fewer than five classes, of that many guesses
    num_images: int
    ms_per_batch: float  # median over the batches, forward pass alone; the first batch (warm-up) does not count
    images_per_second: float  # at that time for a full batch, on all processes together


class StopEvaluation(Exception):
    """`should_stop` said so; nothing was measured."""


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: BatchLoader,
    num_classes: int,
    precision: Precision,
    should_stop: Callable[[], bool] = lambda: False,
    on_batch: Callable[[], object] = lambda: None,
) -> EvalResult:
    """Evaluate on every image of the loader, over all ranks (their counts are summed; no image counts twice).

    The model is left in the mode that it came in. Under mixed precision the loss is computed in float32.
    """
    from torchmetrics import MeanMetric, MetricCollection  # takes seconds to import
    from torchmetrics.classification import MulticlassAccuracy

    def accuracy(k: int) -> MulticlassAccuracy:
        return MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro", validate_args=False)

    device = loader.device
    accuracies = MetricCollection({"acc1": accuracy(1), "acc5": accuracy(5)}, compute_groups=False).to(device)
    mean_loss = MeanMetric(nan_strategy="disable").to(device)
    seconds: list[float] = []
    sizes = [0]
    was_training = model.training
    model.eval()
    try:
        for images, targets in loader.epoch():
            if should_stop():
                raise StopEvaluation
            start = now(device)
            with precision.autocast():
                logits: Tensor = model(images)
            seconds.append(now(device) - start)
            mean_loss.update(nn.functional.cross_entropy(logits.float(), targets, reduction="none"))
            accuracies.update(logits.float(), targets)
            sizes.append(len(images))
            on_batch()
    finally:
        model.train(was_training)
    if not seconds:  # a rank without images: the others' counts are all there is
        nothing = torch.zeros(0, num_classes, device=device)
        accuracies.update(nothing, nothing[:, 0].long())
    percent = {name: 100.0 * float(value) for name, value in accuracies.compute().items()}
    typical = statistics.median(seconds[1:] or seconds or [math.nan])
    return EvalResult(
        loss=float(mean_loss.compute()),
        acc1=percent["acc1"],
        acc5=percent["acc5"],
        num_images=int(all_sum(torch.tensor(sum(sizes), device=device))),
        ms_per_batch=1e3 * typical,
        images_per_second=max(sizes) * loader.world / typical,
    )


def now(device: torch.device) -> float:
    """Seconds on the clock once the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def format_result(result: EvalResult, dataset: str, model: str) -> str:
    """The block that QAViT's original evaluate.py prints."""
    double, single = "=" * 80, "─" * 80
    return "\n".join([
        double, "EVALUATION RESULTS", double,
        f"Dataset:              {dataset.upper()}",
        f"Model:                {model.upper()}",
        f"Total Samples:        {result.num_images:,}",
        single,
        f"Loss:                 {result.loss:.4f}",
        f"Top-1 Accuracy:       {result.acc1:.2f}%",
        f"Top-5 Accuracy:       {result.acc5:.2f}%",
        single,
        f"Avg Inference Time:   {result.ms_per_batch:.2f} ms/batch",
        f"Throughput:           {result.images_per_second:.1f} images/sec",
        double,
    ])  # fmt: skip
