"""Compare two models: time per image in inference and training, multiply-adds, parameters, peak memory.

    uv run python -m vit_core.bench --model qavit_tiny --against vit_tiny_patch16_224
    uv run python -m vit_core.bench --model qavit_tiny --model-kwargs attn_drop=0 --against vit_tiny_patch16_224

The two models alternate within one process, so that drifting machine speed affects both. Each time is the median over
the rounds, and each ratio of times the median of the per-round ratios.
"""

import json
import math
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vit_core.commands.trained_model import AmpFlags
from vit_core.flags import REQUIRED, command, flag, parse
from vit_core.models.create import create_model, input_size, parse_model_kwargs
from vit_core.papers import load_papers
from vit_core.training.distributed import pick_device, seed_everything
from vit_core.training.evaluation import now
from vit_core.training.precision import Precision, choose_precision
from vit_core.training.run_folder import environment


@dataclass
class Figures:
    model: str
    parameters: int
    gmacs: float  # multiply-adds of one image's forward pass, in 10⁹, including attention
    inference_ms: float  # per image
    training_ms: float  # per image: forward, backward, AdamW step
    training_memory_mib: float  # see `training_memory_mib`


class Contestant:
    """A model and one batch of random images, for timing."""

    def __init__(self, name: str, kwargs: dict[str, Any], batch_size: int, device: torch.device, precision: Precision):
        seed_everything(0)
        self.name, self.precision, self.device = name, precision, device
        img_size, num_classes = kwargs.pop("img_size", None), kwargs.pop("num_classes", 100)
        model = create_model(name, kwargs, num_classes, img_size)
        self.model = model.to(device)
        size = img_size or input_size(model)
        self.images = torch.randn(batch_size, 3, size, size, device=device)
        self.targets = torch.randint(0, num_classes, (batch_size,), device=device)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self.scaler = precision.scaler()

    def infer(self) -> None:
        self.model.eval()
        with torch.inference_mode(), self.precision.autocast():
            self.model(self.images)

    def train(self) -> None:
        self.model.train()
        with self.precision.autocast():
            loss = nn.functional.cross_entropy(self.model(self.images), self.targets)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def gmacs(self) -> float:
        """Counted by torch's FlopCounterMode in training mode with the math attention kernel.

        In inference mode it misses fused operators and gives a smaller number.
        """
        self.model.train()
        with torch.no_grad():
            return multiply_adds(lambda: self.model(self.images[:1])) / 1e9


def multiply_adds(work: Callable[[], object]) -> float:
    """Multiply-adds of one call, including attention, counted by torch's FlopCounterMode with the math kernel."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2


def seconds(work: Callable[[], None], device: torch.device, repeats: int) -> float:
    start = now(device)
    for _ in range(repeats):
        work()
    return (now(device) - start) / repeats


def in_turn(works: Sequence[Callable[[], None]], device: torch.device, rounds: int) -> list[list[float]]:
    """Seconds per call of each function, one list per round, after a warm-up."""
    for work in works:
        work()
        work()
    # A round is long enough for accurate timing, and short enough that machine speed is the same for all.
    repeats = [max(1, math.ceil(0.3 / seconds(work, device, 1))) for work in works]
    return [[seconds(work, device, n) for work, n in zip(works, repeats, strict=True)] for _ in range(rounds)]


def training_memory_mib(name: str, kwargs: dict[str, Any], batch_size: int, device: str, amp: str) -> float:
    """Peak memory of two training steps, including model and optimizer. Must be called in a fresh process.

    On a GPU: memory allocated by torch. On Linux: the increase of the peak resident memory over that after the imports.
    On other systems: NaN.
    """
    load_papers()
    chosen = torch.device(device)
    on_linux_cpu = chosen.type == "cpu" and Path("/proc/self/clear_refs").exists()
    before = 0.0
    if on_linux_cpu:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_mib("VmRSS")
    contestant = Contestant(name, kwargs, batch_size, chosen, choose_precision(amp, chosen))
    contestant.train()
    contestant.train()
    if chosen.type == "cuda":
        return torch.cuda.max_memory_allocated(chosen) / 2**20
    return _status_mib("VmHWM") - before if on_linux_cpu else math.nan


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024


def compare(
    specs: Sequence[tuple[str, dict[str, Any]]], batch_size: int, device: torch.device, amp: str, rounds: int
) -> tuple[list[Figures], dict[str, float]]:
    """Time the models in turn. Returns the results of each, and the ratios of the first to the second."""
    precision = choose_precision(amp, device)
    models = [Contestant(name, dict(kwargs), batch_size, device, precision) for name, kwargs in specs]
    works: dict[str, list[Callable[[], None]]] = {
        "inference_ms": [m.infer for m in models],
        "training_ms": [m.train for m in models],
    }
    times: dict[str, list[list[float]]] = {}
    for what, pair in works.items():
        times[what] = [[1e3 * s / batch_size for s in round] for round in in_turn(pair, device, rounds)]
    figures = []
    spawn = multiprocessing.get_context("spawn")
    for i, (model, (name, kwargs)) in enumerate(zip(models, specs, strict=True)):
        with ProcessPoolExecutor(1, mp_context=spawn) as process:
            memory = process.submit(training_memory_mib, name, dict(kwargs), batch_size, str(device), amp).result()
        figures.append(
            Figures(
                model=name + "".join(f" {k}={v}" for k, v in kwargs.items()),
                parameters=sum(p.numel() for p in model.model.parameters()),
                gmacs=model.gmacs(),
                inference_ms=statistics.median(r[i] for r in times["inference_ms"]),
                training_ms=statistics.median(r[i] for r in times["training_ms"]),
                training_memory_mib=memory,
            )
        )
    ratios = {what: statistics.median(r[0] / r[1] for r in rs) for what, rs in times.items()}
    for what in ("parameters", "gmacs", "training_memory_mib"):
        ratios[what] = getattr(figures[0], what) / getattr(figures[1], what)
    return figures, ratios


@dataclass(frozen=True, kw_only=True)
class PairFlags(AmpFlags):
    """Compare two models: time per image in inference and training, multiply-adds, parameters, peak memory."""

    model: str = flag(REQUIRED, "timm name of the model, including the papers' models")
    against: str = flag("vit_tiny_patch16_224", "model to compare with")
    model_kwargs: tuple[str, ...] = flag((), "arguments of --model", metavar="NAME=VALUE")
    against_kwargs: tuple[str, ...] = flag((), "arguments of --against", metavar="NAME=VALUE")
    batch_size: int = flag(8, "batch size")
    rounds: int = flag(7, "timed rounds per model")
    device: str = flag("auto", "auto, cpu, cuda or mps")
    json: Path | None = flag(None, "also write the results to this JSON file", metavar="FILE", output=True)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.rounds < 1:
            raise ValueError("--batch-size and --rounds must be at least 1")


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(PairFlags, argv, "python -m vit_core.bench")
    load_papers()
    device = pick_device(args.device)
    specs = [
        (args.model, parse_model_kwargs(args.model_kwargs)),
        (args.against, parse_model_kwargs(args.against_kwargs)),
    ]
    (ours, theirs), ratios = compare(specs, args.batch_size, device, args.amp, args.rounds)
    print(
        f"{device}, batch {args.batch_size}, {torch.get_num_threads()} threads, AMP {args.amp}, "
        f"medians of {args.rounds} rounds"
    )
    width = max(28, *(len(f.model) + 2 for f in (ours, theirs)))
    print(f"{'':24}{ours.model:>{width}}{theirs.model:>{width}}{'ratio':>9}")
    rows = {
        "inference, ms/image": ("inference_ms", ".2f"),
        "training, ms/image": ("training_ms", ".2f"),
        "multiply-adds, 10⁹": ("gmacs", ".3f"),
        "parameters": ("parameters", ",d"),
        "training memory, MiB": ("training_memory_mib", ",.0f"),
    }
    for title, (name, form) in rows.items():
        values = "".join(f"{format(getattr(f, name), form):>{width}}" for f in (ours, theirs))
        print(f"{title:24}{values}{ratios[name]:>8.2f}×")
    if args.json:
        record = {"figures": [asdict(ours), asdict(theirs)], "ratios": ratios, "environment": environment()}
        args.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
