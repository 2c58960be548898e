"""Settings of a training run; the fields are the flags that all papers' train scripts share."""

from dataclasses import dataclass
from typing import Literal

from vit_core.data.datasets import NORMALIZATIONS
from vit_core.flags import flag, spelled
from vit_core.training.precision import MODES


@dataclass(kw_only=True, frozen=True)
class TrainConfig:
    """Settings of a training run. A paper's presets set the values of its recipe. ValueError for invalid values."""

    epochs: int = flag(300, "number of training epochs")
    batch_size: int = flag(256, "batch size per process; global batch size = this x --grad-accum x processes")
    grad_accum: int = flag(1, "gradient accumulation: batches per optimizer step")
    optimizer: str = flag("adamw", "optimizer", choices=("adamw", "adam", "sgd"))
    lr: float = flag(1e-3, "peak learning rate")
    min_lr: float = flag(1e-6, "final learning rate of the cosine schedule; lower bound of the plateau schedule")
    weight_decay: float = flag(0.05, "weight decay; not applied to biases, norms and position embeddings")
    decay_all: bool = flag(False, "apply weight decay to all parameters, including biases, norms, position embeddings")
    beta1: float = flag(0.9, "Adam's beta1")
    beta2: float = flag(0.999, "Adam's beta2")
    momentum: float = flag(0.9, "SGD momentum")
    layer_decay: float | None = flag(None, "layer-wise learning-rate decay: factor per layer, from last to first")
    warmup_epochs: int = flag(20, "epochs of linear warm-up from 0")
    warmup_steps: int | None = flag(None, "optimizer steps of warm-up; overrides --warmup-epochs")
    schedule: str = flag("cosine", "learning-rate schedule after warm-up", choices=("cosine", "constant", "plateau"))
    schedule_by: str = flag("step", "update the learning rate every step or every epoch", choices=("step", "epoch"))
    plateau_factor: float = flag(0.1, "learning-rate factor at a plateau")
    plateau_patience: int = flag(10, "evaluations without a better top-1 accuracy before the rate is reduced")
    grad_clip: float | None = flag(1.0, "maximum gradient norm; 0 disables clipping")
    label_smoothing: float = flag(0.1, "label smoothing of the training loss")
    mixup: float = flag(0.0, "mixup alpha; 0 disables mixup")
    cutmix: float = flag(0.0, "CutMix alpha; 0 disables CutMix")
    mix_prob: float = flag(1.0, "probability of applying mixup or CutMix to a batch (or image, see --mix-mode)")
    mix_switch_prob: float = flag(0.5, "probability of CutMix instead of mixup when both are enabled")
    mix_mode: str = flag("batch", "draw one mixing coefficient per batch or per image", choices=("batch", "elem"))
    ema_decay: float | None = flag(
        None, "decay of the exponential moving average (EMA) of the weights; if set, the EMA weights are evaluated"
    )
    early_stopping: int | None = flag(None, "stop after N evaluations without a better top-1 accuracy")
    eval_freq: int = flag(1, "evaluate every N epochs, and after the last")
    amp: str = flag("auto", "mixed precision; auto: bf16 or fp16 on a GPU, off on a CPU", choices=MODES, bare="auto")
    compile: bool = flag(False, "compile the model with torch.compile")
    channels_last: bool = flag(False, "use the channels-last memory format")
    grad_checkpointing: bool = flag(False, "recompute activations in the backward pass: less memory, more time")
    seed: int = flag(42, "random seed for initialization, data order, augmentation and dropout")
    device: str = flag("auto", "auto, cpu, cuda, cuda:N or mps")
    save_freq: int = flag(10, "keep epoch_N.pth every N epochs; 0 keeps none")
    save_steps: int = flag(0, "also write last.pth every N steps; 0: only after each epoch")
    print_freq: int = flag(10, "on a GPU, check the loss (and, with several processes, stop signals) every N steps")

    def __post_init__(self) -> None:
        at_least = {
            "epochs": 1, "batch_size": 1, "grad_accum": 1, "eval_freq": 1, "print_freq": 1, "warmup_epochs": 0,
            "save_freq": 0, "save_steps": 0, "lr": 0, "min_lr": 0, "weight_decay": 0, "mixup": 0, "cutmix": 0,
            "plateau_patience": 0, "seed": 0,
        }  # fmt: skip
        for name, least in at_least.items():
            if not getattr(self, name) >= least:  # also rejects NaN
                raise ValueError(f"{spelled(name)} must be at least {least}, got {getattr(self, name)}")
        for name in _COUNTS:  # beyond any machine; larger values would break floating-point arithmetic
            if (getattr(self, name) or 0) > 10**9:
                raise ValueError(f"{spelled(name)} must be at most 1e9")
        for name in ("lr", "min_lr", "weight_decay", "mixup", "cutmix", "grad_clip"):
            if (getattr(self, name) or 0) > 1e6:
                raise ValueError(f"{spelled(name)} must be at most 1e6, got {getattr(self, name)}")
        for name in ("mixup", "cutmix"):  # numpy's beta distribution gives NaN for some tiny alphas
            if 0 < getattr(self, name) < 1e-6:
                raise ValueError(f"--{name} must be 0 or at least 1e-6, got {getattr(self, name)}")
        if self.seed >= 2**63:
            raise ValueError("--seed must be less than 2**63")
        for name in ("label_smoothing", "beta1", "beta2", "momentum"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{spelled(name)} must lie in [0, 1), got {getattr(self, name)}")
        for name in ("mix_prob", "mix_switch_prob"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{spelled(name)} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("ema_decay", "layer_decay", "plateau_factor"):
            if getattr(self, name) is not None and not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(f"{spelled(name)} must lie in (0, 1), got {getattr(self, name)}")
        if self.decay_all and self.layer_decay is not None:
            raise ValueError(
                "--decay-all cannot be combined with --layer-decay, which exempts biases and norms from weight decay"
            )
        if self.early_stopping is not None and self.early_stopping < 1:
            raise ValueError(f"--early-stopping must be at least 1, got {self.early_stopping}")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ValueError(f"--warmup-steps must be at least 0, got {self.warmup_steps}")
        if self.grad_clip is not None and not self.grad_clip >= 0:
            raise ValueError(f"--grad-clip must be at least 0, got {self.grad_clip}")


_COUNTS = (
    "epochs",
    "batch_size",
    "grad_accum",
    "eval_freq",
    "print_freq",
    "warmup_epochs",
    "warmup_steps",
    "save_freq",
    "save_steps",
    "plateau_patience",
    "early_stopping",
)
MOST_WORKERS = 512
LARGEST_IMAGE = 4096  # pixels per side


@dataclass(kw_only=True, frozen=True)
class DataConfig:
    """Dataset and loading settings of a run."""

    dataset: str = flag("digits", "name of the dataset (see the table in the README)")
    data_path: str | None = flag(
        None, "folder of the dataset; for imagefolder, the folder that contains train/ and val/ or test/"
    )
    download: bool = flag(False, "download the dataset if it is available from torchvision or its publisher")
    img_size: int | None = flag(None, "image side in pixels (default: the model's)")
    num_classes: int | None = flag(None, "expected number of classes (default: that of the dataset)")
    eval_split: str | None = flag(
        None, "split to evaluate on (default: the dataset's usual one)", choices=("val", "test")
    )
    normalize: str = flag(
        "dataset",
        "mean and std of the image channels: the dataset's, ImageNet's, 0.5 for both (half), 0 and 1 (none), or "
        "CIFAR-10's mean with the average per-image std (cifar10_image_std)",
        choices=NORMALIZATIONS,
    )
    num_workers: int = flag(4, "worker processes that decode images from disk")
    cache: Literal["auto", "memory", "disk"] = flag(
        "auto", "keep decoded images in memory, or read them from disk", choices=("auto", "memory", "disk")
    )
    skip_broken: bool = flag(
        False, "skip unreadable images; to find them, every image is decoded once before training starts"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.num_workers <= MOST_WORKERS:
            raise ValueError(f"--num-workers must lie in [0, {MOST_WORKERS}], got {self.num_workers}")
        if self.img_size is not None and not 1 <= self.img_size <= LARGEST_IMAGE:
            raise ValueError(f"--img-size must lie in [1, {LARGEST_IMAGE}], got {self.img_size}")


@dataclass(kw_only=True, frozen=True)
class OutputConfig:
    """Output folders of a run, and the checkpoint to resume."""

    save_dir: str = flag("./checkpoints", "folder in which run folders are created")
    log_dir: str = flag("./logs", "folder for TensorBoard events, with one subfolder per run")
    resume: str = flag("", "checkpoint to resume from")

    def __post_init__(self) -> None:
        for name in ("save_dir", "log_dir"):  # TensorBoard cannot write to other paths
            try:
                getattr(self, name).encode()
            except UnicodeEncodeError:
                raise ValueError(f"{spelled(name)}: the path is not valid UTF-8; choose another folder") from None
