"""Classification: loss function of a paper, mixup and CutMix, criterion; loss, top-1 and top-5 accuracy."""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from vit_core.data import BatchLoader
from vit_core.errors import UserError
from vit_core.training.config import TrainConfig
from vit_core.training.evaluation import count_hits, evaluate
from vit_core.training.precision import Precision


class LossFunction(Protocol):
    """(model, images (B, 3, S, S), targets, criterion) -> (scalar loss, logits (B, classes)).

    targets: class indices (B,), or probabilities (B, classes) with mixup or CutMix, as the criterion expects them.
    """

    def __call__(
        self, model: nn.Module, images: Tensor, targets: Tensor, criterion: nn.Module
    ) -> tuple[Tensor, Tensor]: ...


def classification_loss(
    model: nn.Module, images: Tensor, targets: Tensor, criterion: nn.Module
) -> tuple[Tensor, Tensor]:
    logits = model(images)
    return criterion(logits, targets), logits


def build_criterion(config: TrainConfig, num_classes: int, batch_images: int) -> tuple[Mixup | None, nn.Module]:
    """timm's Mixup if --mixup or --cutmix is enabled (else None), and the matching cross-entropy criterion."""
    c = config
    if not (c.mixup or c.cutmix):
        return None, nn.CrossEntropyLoss(label_smoothing=c.label_smoothing)
    if batch_images % 2:
        raise UserError(
            f"--mixup and --cutmix require an even number of images per batch and process, got {batch_images}: "
            "use an even --batch-size"
        )
    mixup = Mixup(
        c.mixup,
        c.cutmix,
        prob=c.mix_prob,
        switch_prob=c.mix_switch_prob,
        mode=c.mix_mode,
        label_smoothing=c.label_smoothing,
        num_classes=num_classes,
    )
    return mixup, SoftTargetCrossEntropy()


class Classification:
    """`Task` for batches of (images (B, 3, S, S), classes (B,)).

    batch_images: training batch size on this rank; must be even for mixup and CutMix.
    """

    sums = ("loss", "hits1", "hits5")
    columns = ("train_loss", "train_acc1", "train_acc5", "val_loss", "val_acc1", "val_acc5")
    best, measure = "val_acc1", "top-1"

    def __init__(
        self,
        config: TrainConfig,
        num_classes: int,
        batch_images: int,
        loss_function: LossFunction = classification_loss,
    ) -> None:
        self.loss_function, self.channels_last = loss_function, config.channels_last
        self.mixup, self.criterion = build_criterion(config, num_classes, batch_images)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor], precision: Precision) -> tuple[Tensor, list[Tensor]]:
        images, classes = batch
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        targets = classes
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
        with precision.autocast():
            loss, logits = self.loss_function(model, images, targets, self.criterion)
        hits1, hits5 = count_hits(logits.detach(), classes)
        return loss, [loss.detach() * len(images), hits1, hits5]

    def training_row(self, sums: Mapping[str, float], images: float) -> dict[str, float]:
        return {
            "train_loss": sums["loss"] / images,
            "train_acc1": 100 * sums["hits1"] / images,
            "train_acc5": 100 * sums["hits5"] / images,
        }

    def evaluate(
        self,
        model: nn.Module,
        loader: BatchLoader,
        precision: Precision,
        should_stop: Callable[[], bool],
        on_batch: Callable[[], object],
    ) -> dict[str, float]:
        result = evaluate(model, loader, precision, should_stop, on_batch)
        return {"val_loss": result.loss, "val_acc1": result.acc1, "val_acc5": result.acc5}

    def line(self, row: Mapping[str, float], split: str) -> str:
        return f"loss {row[f'{split}_loss']:.4f} top-1 {row[f'{split}_acc1']:.2f}%"
