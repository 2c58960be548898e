"""Speed of the data loader compared with torchvision's ImageFolder in DataLoader worker processes.

    uv run python -m vit_core.bench.loader --data-path CIFAR_FOLDER

Three loaders of small images, resized to --img-size, take turns in one process, so that changes in machine speed affect
all of them: ours for evaluation (resize, normalize), ours for training (also padded crop and flip), and the baseline:
`ImageFolder`, PIL `Resize`, `ToTensor`, `Normalize` in a `DataLoader` with worker processes.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from vit_core.data import Augment, AugmentConfig, BatchLoader, EvalTransform, MemorySource, load_dataset
from vit_core.flags import command, flag, parse, spelled

_PAUSE = 0.5  # seconds before a turn, in which the previous turn's workers fill their queues
Measure = Callable[[float], float]  # seconds to spend -> images/s


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Speed of the data loader compared with torchvision's ImageFolder in DataLoader worker processes."""

    data_path: str | None = flag(None, "folder with train/<class>/<image> and test/ or val/ (default: random images)")
    img_size: int = flag(224, "output image side in pixels")
    batch_size: int = flag(64, "batch size")
    rounds: int = flag(5, "turns per loader; the median is reported")
    seconds: float = flag(2.0, "duration of a turn in seconds")
    workers: int = flag(2, "worker processes of the baseline")
    device: str = flag("cpu", "device to copy the batches to")
    json: Path | None = flag(None, "JSON file to write the result to", metavar="FILE", output=True)

    def __post_init__(self) -> None:
        for name in ("img_size", "batch_size", "rounds", "seconds", "workers"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{spelled(name)} must be greater than 0, got {getattr(self, name)}")


def make_folder(root: Path, count: int = 2048, classes: int = 8, size: int = 32) -> None:
    """Write `count` smooth random JPEGs of size×size, half to root/train and half to root/val."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        folder = root / ("train", "val")[i % 2] / f"class{i // 2 % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.jpg", quality=90)


def run(config: BenchConfig, folder: Path) -> dict[str, Any]:
    """Measure images/s of the three loaders, and our speedup over the baseline."""
    started = time.perf_counter()
    data = load_dataset("imagefolder", data_path=folder, img_size=config.img_size, cache="memory")
    assert isinstance(data.train, MemorySource)
    decode_seconds = time.perf_counter() - started
    stats = (config.img_size, data.mean, data.std)
    common: dict[str, Any] = {"batch_size": config.batch_size, "device": config.device}
    evaluate = BatchLoader(data.val, transform=EvalTransform(*stats), train=False, **common)
    augment = Augment(AugmentConfig(crop="pad", hflip=0.5), *stats)
    train = BatchLoader(data.train, transform=augment, train=True, **common)
    transform = transforms.Compose(
        [
            transforms.Resize((config.img_size, config.img_size)),
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )
    baseline = DataLoader(
        torchvision.datasets.ImageFolder(folder / data.eval_split, transform),
        batch_size=config.batch_size,
        num_workers=config.workers,
        persistent_workers=True,
    )
    device = torch.device(config.device)
    loaders: dict[str, Measure] = {
        "ours_eval": _Timer(lambda: evaluate.epoch(), device),
        "ours_train": _Timer(lambda: train.epoch(), device),
        "baseline": _Timer(lambda: iter(baseline), device),
    }
    speeds: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(config.rounds):
        for name, measure in loaders.items():
            speeds[name].append(measure(config.seconds))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        "images_per_second": medians,
        "rounds": speeds,
        "ratio_eval": medians["ours_eval"] / medians["baseline"],
        "ratio_train": medians["ours_train"] / medians["baseline"],
        "decode_seconds": decode_seconds,
        "images": len(data.train) + len(data.val),
        "source_size": list(data.train.images.shape[2:]),
        "img_size": config.img_size,
        "batch_size": config.batch_size,
        "workers": config.workers,
        "device": config.device,
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


class _Timer:
    """Times a loader from the start of its epoch, without the first batch."""

    def __init__(self, batches: Callable[[], Iterator[Any]], device: torch.device) -> None:
        self._batches, self._device = batches, device

    def __call__(self, seconds: float) -> float:
        time.sleep(_PAUSE)
        images, elapsed = 0, 0.0
        while elapsed < seconds:
            batches = self._batches()
            next(batches)
            self._finish()
            start = time.perf_counter()
            for pixels, _ in batches:
                pixels = pixels.to(self._device, non_blocking=True)
                images += len(pixels)
                if elapsed + time.perf_counter() - start >= seconds:
                    break
            self._finish()
            elapsed += time.perf_counter() - start
        return images / elapsed

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print the results; with --json FILE, also write them."""
    config = parse(BenchConfig, argv, "python -m vit_core.bench.loader")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(config.data_path or temporary)
        if config.data_path is None:
            make_folder(folder)
        result = run(config, folder)
    for name, speed in result["images_per_second"].items():
        print(f"{name:<12} {speed:10.0f} images/s  {speed / result['images_per_second']['baseline']:6.1f}x")
    print(f"{result['images']} images decoded in {result['decode_seconds']:.1f} s")
    if config.json:
        config.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
