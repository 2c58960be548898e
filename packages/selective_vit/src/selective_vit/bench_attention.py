"""Times one attention layer relative to torch's.

    uv run python -m selective_vit.bench_attention

The kernels alternate within one process, round by round; each ratio is the median over the rounds of the ratio to
`scaled_dot_product_attention`, which has no threshold.
"""

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from selective_vit.attention import EMPTY_ROWS, KERNELS, MODES, Selection, selective_attention
from vit_core.errors import UserError
from vit_core.flags import command, flag, parse
from vit_core.training.distributed import pick_device
from vit_core.training.evaluation import now
from vit_core.training.run_folder import environment


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Time one attention layer."""

    shape: tuple[int, int, int, int] = flag(
        (8, 12, 197, 64), "images, heads, tokens, channels per head", metavar="B HEADS N D"
    )
    threshold: float = flag(0.01, "τ")
    kernels: tuple[str, ...] = flag(("auto",), "implementations to time", choices=KERNELS)
    training: bool = flag(False, "include the backward pass")
    rounds: int = flag(31, "timed rounds", least=1)
    device: str = flag("auto", "auto, cpu, cuda, cuda:N or mps")
    json: Path | None = flag(None, "also write the results to this file", metavar="FILE", output=True)

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise ValueError(f"--shape must be four integers of at least 1, got {' '.join(map(str, self.shape))}")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"--threshold must lie in [0, 1), got {self.threshold:g}")


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Flags, argv, "selective_vit.bench_attention")
    device = pick_device(args.device)
    if "flex" in args.kernels and device.type != "cuda":
        raise UserError(f"--kernels flex requires a CUDA GPU; the device is {device}")
    times = measure(args.shape, args.threshold, args.kernels, device, args.rounds, training=args.training)
    what = "training" if args.training else "inference"
    shape, threads = "×".join(map(str, args.shape)), torch.get_num_threads()
    print(f"{what}, {shape}, τ {args.threshold:g}, {device}, {threads} threads, medians of {args.rounds} rounds")
    figures = {}
    for name, measured in times.items():
        figures[name] = {"ms": 1000 * statistics.median(measured), "ratio": ratio_to_sdpa(times, name)}
        print(f"{name:<24} {figures[name]['ms']:8.2f} ms  {figures[name]['ratio']:6.3f}×")
    if args.json:
        record = {"what": what, "shape": args.shape, "threshold": args.threshold, "figures": figures}
        args.json.write_text(json.dumps(record | {"environment": environment()}, indent=2) + "\n")
    return 0


def measure(
    shape: Sequence[int],
    threshold: float,
    kernels: Sequence[str],
    device: torch.device,
    rounds: int,
    *,
    training: bool = False,
) -> dict[str, list[float]]:
    """Seconds of SDPA and of each form of selective attention, round by round; shape: B, h, N, d."""
    B, h, N, d = shape
    torch.manual_seed(0)
    x = torch.randn(B, N, 3, h, d, device=device)  # layout of an attention layer's qkv projection
    rivals: dict[str, Callable[..., Tensor]] = {"SDPA": F.scaled_dot_product_attention}
    for mode in MODES:
        for empty in EMPTY_ROWS:
            for kernel in kernels:
                rivals[f"{mode}, {empty}, {kernel}"] = _rival(threshold, mode, empty, kernel)
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for round_number in range(rounds + 2):  # the first two are warm-up
        for name, attend in rivals.items():
            seconds = _time(attend, x, device, training)
            if round_number >= 2:
                times[name].append(seconds)
    return times


def ratio_to_sdpa(times: Mapping[str, Sequence[float]], name: str) -> float:
    """Median over the rounds of the ratio to SDPA."""
    return statistics.median(ours / theirs for ours, theirs in zip(times[name], times["SDPA"], strict=True))


def _rival(tau: float, mode: str, empty_row: str, kernel: str) -> Callable[..., Tensor]:
    selection = Selection(mode=mode, empty_row=empty_row, kernel=kernel)
    return lambda q, k, v: selective_attention(q, k, v, tau, selection)


def _time(attend: Callable[..., Tensor], x: Tensor, device: torch.device, training: bool) -> float:
    """Seconds of one call, including the backward pass if training."""
    x = x.detach().requires_grad_(training)
    with torch.inference_mode(not training):
        start = now(device)
        out = attend(*x.permute(2, 0, 3, 1, 4).unbind(0))
        if training:
            out.backward(torch.ones_like(out))
        return now(device) - start


if __name__ == "__main__":
    sys.exit(main())
