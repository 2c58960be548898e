"""What a training run is: `TrainConfig`, whose fields are the flags that all papers' train scripts share."""

from dataclasses import dataclass
from typing import Literal

from vit_core.data.datasets import NORMALIZATIONS
from vit_core.flags import flag
from vit_core.training.precision import MODES


@dataclass(kw_only=True, frozen=True)
class TrainConfig:
    """One training run. A paper's presets set what its recipe fixes; ValueError names the rule a value breaks."""

    epochs: int = flag(300, "epochs to train")
    batch_size: int = flag(256, "images a step in each process; times --grad-accum and processes: the global batch")
    grad_accum: int = flag(1, "steps whose gradients are summed before the optimiser moves")
    optimizer: str = flag("adamw", "optimiser", choices=("adamw", "adam", "sgd"))
    lr: float = flag(1e-3, "peak learning rate")
    min_lr: float = flag(1e-6, "learning rate at the end of the cosine, and the floor of the plateau schedule")
    weight_decay: float = flag(0.05, "weight decay; biases, norms and position embeddings are left out")
    decay_all: bool = flag(False, "decay every parameter, biases, norms and position embeddings included")
    beta1: float = flag(0.9, "Adam's first decay rate")
    beta2: float = flag(0.999, "Adam's second decay rate")
    momentum: float = flag(0.9, "SGD's momentum")
    layer_decay: float | None = flag(None, "factor on the learning rate from each layer to the one before it")
    warmup_epochs: int = flag(20, "epochs of linear warm-up from 0")
    warmup_steps: int | None = flag(None, "optimiser steps of warm-up, in place of --warmup-epochs")
    schedule: str = flag("cosine", "learning rate after warm-up", choices=("cosine", "constant", "plateau"))
    schedule_by: str = flag("step", "when the learning rate moves", choices=("step", "epoch"))
    plateau_factor: float = flag(0.1, "factor on the learning rate at a plateau")
    plateau_patience: int = flag(10, "epochs without a better top-1 accuracy that make a plateau")
    grad_clip: float | None = flag(1.0, "largest norm of the gradient; 0 switches clipping off")
    label_smoothing: float = flag(0.1, "label smoothing of the training loss")
    mixup: float = flag(0.0, "alpha of mixup; 0 is off")
    cutmix: float = flag(0.0, "alpha of cutmix; 0 is off")
    mix_prob: float = flag(1.0, "share of the batches, or images, that mixup or cutmix changes")
    mix_switch_prob: float = flag(0.5, "share of cutmix where both are on")
    mix_mode: str = flag("batch", "one mixing coefficient a batch, or one an image", choices=("batch", "elem"))
    ema_decay: float | None = flag(
        None, "decay of an exponential moving average of the weights, which is then what is evaluated"
    )
    early_stopping: int | None = flag(None, "stop after so many evaluations without a better top-1 accuracy")
    eval_freq: int = flag(1, "evaluate every N epochs, and after the last")
    amp: str = flag("auto", "mixed precision; auto: bf16 or fp16 on a GPU, off on a CPU", choices=MODES, bare="auto")
    compile: bool = flag(False, "compile the model with torch.compile")
    channels_last: bool = flag(False, "keep images and convolutions in the channels-last layout")
    grad_checkpointing: bool = flag(False, "recompute activations in the backward pass: less memory, more time")
    seed: int = flag(42, "seed of weights, data order, augmentation and dropout")
    device: str = flag("auto", "auto, cpu, cuda, cuda:N or mps")
    save_freq: int = flag(10, "keep epoch_N.pth every N epochs; 0 keeps none")
    save_steps: int = flag(0, "write last.pth every N steps too; 0: once an epoch")
    print_freq: int = flag(10, "steps between checks of the loss, and of signals to many processes, on a GPU")

    def __post_init__(self) -> None:
        at_least = {
            "epochs": 1, "batch_size": 1, "grad_accum": 1, "eval_freq": 1, "print_freq": 1, "warmup_epochs": 0,
            "save_freq": 0, "save_steps": 0, "lr": 0, "min_lr": 0, "weight_decay": 0, "mixup": 0, "cutmix": 0,
            "plateau_patience": 0, "seed": 0,
        }  # fmt: skip
        for name, least in at_least.items():
            if not getattr(self, name) >= least:  # also refuses NaN
                raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}")
        for name in _COUNTS:  # what no machine has; larger ones break arithmetic that floats take part in
            if (getattr(self, name) or 0) > 10**9:
                raise ValueError(f"--{name.replace('_', '-')} must be at most 1e9")
        for name in ("lr", "min_lr", "weight_decay", "mixup", "cutmix", "grad_clip"):
            if (getattr(self, name) or 0) > 1e6:
                raise ValueError(f"--{name.replace('_', '-')} must be at most 1e6, got {getattr(self, name)}")
        for name in ("mixup", "cutmix"):  # numpy's beta distribution gives NaN for some that are next to nothing
            if 0 < getattr(self, name) < 1e-6:
                raise ValueError(f"--{name} must be 0 or at least 1e-6, got {getattr(self, name)}")
        if self.seed >= 2**63:
            raise ValueError("--seed must be below 2 to the 63rd")
        for name in ("label_smoothing", "beta1", "beta2", "momentum"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"--{name.replace('_', '-')} must lie in [0, 1), got {getattr(self, name)}")
        for name in ("mix_prob", "mix_switch_prob"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"--{name.replace('_', '-')} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("ema_decay", "layer_decay", "plateau_factor"):
            if getattr(self, name) is not None and not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(f"--{name.replace('_', '-')} must lie in (0, 1), got {getattr(self, name)}")
        if self.decay_all and self.layer_decay is not None:
            raise ValueError("--decay-all and --layer-decay exclude each other: layers leave biases and norms out")
        if self.early_stopping is not None and self.early_stopping < 1:
            raise ValueError(f"--early-stopping must be at least 1, got {self.early_stopping}")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ValueError(f"--warmup-steps must be at least 0, got {self.warmup_steps}")
        if self.grad_clip is not None and not self.grad_clip >= 0:
            raise ValueError(f"--grad-clip must be at least 0, got {self.grad_clip}")


_COUNTS = (
    "epochs", "batch_size", "grad_accum", "eval_freq", "print_freq", "warmup_epochs", "warmup_steps", "save_freq",
    "save_steps", "plateau_patience", "early_stopping",
)  # fmt: skip
MOST_WORKERS = 512
LARGEST_IMAGE = 4096  # pixels a side


@dataclass(kw_only=True, frozen=True)
class DataConfig:
    """Which images a run reads, and how."""

    dataset: str = flag("digits", "name of the dataset (see the README's table)")
    data_path: str | None = flag(
        None, "folder of the dataset; the folder with train/ and val/ or test/ for imagefolder"
    )
    download: bool = flag(False, "download the dataset where torchvision or its publisher offers it")
    img_size: int | None = flag(None, "side of the images in pixels (default: the model's)")
    num_classes: int | None = flag(None, "number of classes to expect (default: those of the dataset)")
    eval_split: str | None = flag(
        None, "images to evaluate on (default: the dataset's usual ones)", choices=("val", "test")
    )
    normalize: str = flag(
        "dataset",
        "mean and deviation of the colours: the dataset's own, ImageNet's, 0.5 for both (half), 0 and 1 (none), or "
        "CIFAR-10's mean with the mean deviation within an image (cifar10_image_std)",
        choices=NORMALIZATIONS,
    )
    num_workers: int = flag(4, "processes that decode images read from the disk")
    cache: Literal["auto", "memory", "disk"] = flag(
        "auto", "keep decoded images in memory", choices=("auto", "memory", "disk")
    )
    skip_broken: bool = flag(
        False, "leave out images that cannot be read; to find them, each is decoded once before the run begins"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.num_workers <= MOST_WORKERS:
            raise ValueError(f"--num-workers must lie in [0, {MOST_WORKERS}], got {self.num_workers}")
        if self.img_size is not None and not 1 <= self.img_size <= LARGEST_IMAGE:
            raise ValueError(f"--img-size must lie in [1, {LARGEST_IMAGE}], got {self.img_size}")


@dataclass(kw_only=True, frozen=True)
class OutputConfig:
    """Where a run writes."""

    save_dir: str = flag("./checkpoints", "folder for run folders")
    log_dir: str = flag("./logs", "folder for TensorBoard events, one folder a run")
    resume: str = flag("", "checkpoint to go on from")

    def __post_init__(self) -> None:
        for name in ("save_dir", "log_dir"):  # TensorBoard writes nowhere else
            try:
                getattr(self, name).encode()
            except UnicodeEncodeError:
                raise ValueError(f"--{name.replace('_', '-')} is not in UTF-8: choose another folder") from None
