"""Loss, accuracy and forward-pass time of a model on a dataset."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vit_core.data import BatchLoader
from vit_core.training.distributed import all_sum
from vit_core.training.precision import Precision


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    loss: float  # mean cross-entropy, without label smoothing
    acc1: float  # percent
    acc5: float  # percent; with fewer than five classes, top-k over that many classes
    num_images: int
    ms_per_batch: float  # median over the batches, forward pass only, without the first batch (warm-up)
    images_per_second: float  # for a full batch at that time, over all processes


class StopEvaluation(Exception):
    """`should_stop` returned True; there is no result."""


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: BatchLoader,
    precision: Precision,
    should_stop: Callable[[], bool] = lambda: False,
    on_batch: Callable[[], object] = lambda: None,
) -> EvalResult:
    """Evaluate on every image of the loader, summed over all ranks; each image counts once.

    Restores the model's training mode at the end. Under mixed precision the loss is computed in float32.
    """
    device = loader.device
    exact = torch.float32 if device.type == "mps" else torch.float64
    sums = torch.zeros(4, dtype=exact, device=device)  # loss times images, top-1 and top-5 hits, images
    seconds: list[float] = []
    largest = 0
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
            sums[0] += nn.functional.cross_entropy(logits.float(), targets) * len(images)
            sums[1:3] += count_hits(logits, targets)
            sums[3] += len(images)
            largest = max(largest, len(images))
            on_batch()
    finally:
        model.train(was_training)
    loss_sum, hits1, hits5, images_sum = all_sum(sums).tolist()
    typical = statistics.median(seconds[1:] or seconds or [math.nan])  # a rank may have no images
    return EvalResult(
        loss=loss_sum / images_sum,
        acc1=100 * hits1 / images_sum,
        acc5=100 * hits5 / images_sum,
        num_images=int(images_sum),
        ms_per_batch=1e3 * typical,
        images_per_second=largest * loader.world / typical,
    )


def count_hits(logits: Tensor, targets: Tensor) -> Tensor:
    """(2,): number of top-1 and top-5 hits of logits (B, C) for targets (B,), as integers."""
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]
    return torch.stack([hits[:, 0].sum(), hits.sum()])


def now(device: torch.device) -> float:
    """Current time in seconds, after waiting for the device to finish its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def format_result(result: EvalResult, dataset: str, model: str) -> str:
    """The result block, in the format of QAViT's original evaluate.py."""
    double, single = "=" * 80, "─" * 80
    return "\n".join(
        [
            double,
            "EVALUATION RESULTS",
            double,
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
        ]
    )
