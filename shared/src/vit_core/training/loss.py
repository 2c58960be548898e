"""What the optimiser minimises: a paper's loss function, mixup and cutmix, the criterion for their targets."""

from typing import Protocol

from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from vit_core.errors import UserError
from vit_core.training.config import TrainConfig


class LossFunction(Protocol):
    """(model, images (B, 3, S, S), targets, criterion) -> (scalar loss, logits (B, classes)).

    targets: class numbers (B,), or probabilities (B, classes) under mixup and cutmix, as the criterion takes them.
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
    """timm's Mixup where --mixup or --cutmix is on, and the cross-entropy for its targets, or for class numbers."""
    c = config
    if not (c.mixup or c.cutmix):
        return None, nn.CrossEntropyLoss(label_smoothing=c.label_smoothing)
    if batch_images % 2:
        raise UserError("--mixup and --cutmix pair images: they need an even --batch-size")
    mixup = Mixup(
        c.mixup, c.cutmix, prob=c.mix_prob, switch_prob=c.mix_switch_prob, mode=c.mix_mode,
        label_smoothing=c.label_smoothing, num_classes=num_classes,
    )  # fmt: skip
    return mixup, SoftTargetCrossEntropy()
