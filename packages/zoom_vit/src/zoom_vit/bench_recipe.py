"""Data loading time as a share of a CIFAR-10 epoch: our loader, and torchvision's in the training process.

    uv run python -m zoom_vit.bench_recipe --data-path DIR

DIR contains train/<class>/ and test/<class>/. The two loaders alternate every few steps on one model; torchvision uses
ImageFolder, ToTensor and Normalize. Ours decodes all images before the first step; that time is spread over the epochs.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from vit_core.data import Augment, AugmentConfig, BatchLoader, MemorySource, load_dataset
from vit_core.errors import UserError
from vit_core.flags import REQUIRED, command, flag, parse
from vit_core.training.distributed import seed_everything, start
from vit_core.training.run_folder import environment
from zoom_vit.recipe import CIFAR10, PUBLISHED
from zoom_vit.registry import zoom_vit_tiny_patch8_32


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Data loading time as a share of a CIFAR-10 epoch: our loader, and torchvision's in the training process."""

    data_path: Path = flag(REQUIRED, "folder with train/ and test/", metavar="DIR")
    steps: int = flag(20, "steps per loader and round")
    rounds: int = flag(5, "number of rounds")
    json: Path | None = flag(None, "also write the results to this file", metavar="FILE", output=True)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rounds < 1:
            raise ValueError("--steps and --rounds must be at least 1")


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Flags, argv, "python -m zoom_vit.bench_recipe")
    start("cpu")
    begun = time.perf_counter()
    data = load_dataset("imagefolder", data_path=str(args.data_path), img_size=32, normalize="half")
    decoding = time.perf_counter() - begun
    batch_size, epochs = CIFAR10["batch_size"], CIFAR10["epochs"]
    augment = Augment(AugmentConfig(hflip=0.0), 32, data.mean, data.std)
    loader = BatchLoader(data.train, batch_size=batch_size, transform=augment, train=True)
    prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])
    folder = datasets.ImageFolder(str(args.data_path / "train"), prepare)
    theirs = DataLoader(folder, batch_size=batch_size, shuffle=True, drop_last=True)
    if not isinstance(data.train, MemorySource) or data.train.images.shape[2:] != (32, 32):
        raise UserError(
            f"{args.data_path}: the recipe needs 32 × 32 images that fit in memory; some are not 32 × 32, or the "
            "dataset is too large"
        )
    if len(loader) < args.steps:
        raise UserError(f"--steps {args.steps}: an epoch has only {len(loader)} steps")

    seed_everything(0)
    model = zoom_vit_tiny_patch8_32(num_classes=data.num_classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=PUBLISHED["lr"], fused=True)

    def step(images: Tensor, targets: Tensor) -> None:
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    def forever(source: Any) -> Iterator[Any]:
        epoch = 0
        while True:
            yield from source.epoch(epoch) if isinstance(source, BatchLoader) else source
            epoch += 1

    batches = {"ours": forever(loader), "torchvision": forever(theirs)}
    waits, works = dict.fromkeys(batches, 0.0), dict.fromkeys(batches, 0.0)
    for source in batches.values():  # warm-up
        for _ in range(3):
            step(*next(source))
    for _ in range(args.rounds):
        for name, source in batches.items():
            for _ in range(args.steps):
                begun = time.perf_counter()
                batch = next(source)
                loaded = time.perf_counter()
                step(*batch)
                waits[name] += loaded - begun
                works[name] += time.perf_counter() - loaded
    steps, counted = len(loader), args.rounds * args.steps
    rows = {}
    for name in batches:
        once = decoding / epochs if name == "ours" else 0.0  # of each epoch
        wait = waits[name] / counted * steps + once
        epoch = wait + works[name] / counted * steps
        rows[name] = {"epoch_s": epoch, "loader_s": wait, "loader_share": wait / epoch, "decoding_s": once * epochs}
        more = f", including {once:.1f} s of decoding, spread over {epochs} epochs" if once else ""
        print(f"{name:12} epoch of {steps} steps {epoch:6.1f} s; loader {wait:5.1f} s, {100 * wait / epoch:.2f}%{more}")
    print(f"epoch time, ours / torchvision: {rows['ours']['epoch_s'] / rows['torchvision']['epoch_s']:.3f}")
    if args.json:
        args.json.write_text(
            json.dumps({"rows": rows, "steps": counted, "environment": environment()}, indent=2) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
