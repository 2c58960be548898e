"""Report this machine's support for QAViT: CUDA, AMP, flash-attn, memory, batch size (original: verify_gpu.py).

    uv run qavit-verify-gpu

Also runs without a GPU, and reports that.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qavit.config import QAViTConfig
from qavit.registry import qavit_small, qavit_tiny
from vit_core.flags import command, flag, parse
from vit_core.models.attention import choose_backend, flash_attn_installed
from vit_core.training.distributed import pick_device
from vit_core.training.precision import choose_precision

_HEAD_DIM = 64  # window and dilated attention, in both sizes
_GROUP_HEAD_DIM = 4  # channel-group attention


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Report this machine's support for QAViT."""

    device: str = flag("auto", "auto, cpu, cuda, cuda:N or mps")
    img_size: int = flag(224, "image size in pixels")

    def __post_init__(self) -> None:
        try:
            QAViTConfig(img_size=self.img_size)
        except ValueError as e:
            raise ValueError(f"--img-size {self.img_size}: {e}") from e


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Flags, argv, "qavit-verify-gpu")
    device = pick_device(args.device)
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    print(f"PyTorch:          {torch.__version__}, {built}")
    print(f"Device:           {_describe(device)}")
    precision = choose_precision("auto", device)
    print(f"Mixed precision:  {precision.reason}")
    print(f"flash-attn:       {'installed' if flash_attn_installed() else 'not installed (optional: CUDA on Linux)'}")
    dtype = precision.dtype or torch.float32
    wide, narrow = (choose_backend(device.type, dtype, head_dim) for head_dim in (_HEAD_DIM, _GROUP_HEAD_DIM))
    print(f"Attention:        {wide} in windows and dilated scales, {narrow} in channel groups")
    if device.type == "cuda":
        for name, build in (("tiny", qavit_tiny), ("small", qavit_small)):
            model = build(num_classes=100, img_size=args.img_size)
            print(f"Batch size:       {_suggest(name, model, device, args.img_size)}")
    else:
        print("Batch size:       no GPU with CUDA: train micro here (uv run qavit-train), tiny and small on a GPU")
    return 0


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        p = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        memory = f"{total / 2**30:.1f} GiB memory, {free / 2**30:.1f} GiB free"
        return f"{p.name}, compute capability {p.major}.{p.minor}, {memory}"
    if device.type == "mps":
        return "Apple GPU (MPS)"
    return f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads; no CUDA GPU is visible"


def _suggest(name: str, model: torch.nn.Module, device: torch.device, img_size: int) -> str:
    """Largest power-of-two batch size whose training step fits in 90% of the free memory, from two measurements."""
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    precision = choose_precision("auto", device)
    peaks = {}
    try:
        for batch_size in (8, 16):
            images = torch.randn(batch_size, 3, img_size, img_size, device=device)
            for _ in range(2):  # from the second step on, memory includes the optimizer state
                torch.cuda.reset_peak_memory_stats(device)
                with precision.autocast():
                    loss = model(images).float().square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            peaks[batch_size] = torch.cuda.max_memory_allocated(device)
    except torch.OutOfMemoryError:
        return f"{name}: out of memory at a batch size of 8 or 16; try --grad-checkpointing --batch-size 4"
    finally:
        del model, optimizer
        torch.cuda.empty_cache()
    per_image = (peaks[16] - peaks[8]) / 8
    fixed = peaks[8] - 8 * per_image
    room = 0.9 * torch.cuda.mem_get_info(device)[0] - fixed
    batch_size = 1 << max(int(room / per_image).bit_length() - 1, 0)
    return f"{name}: --batch-size {min(batch_size, 4096)} ({per_image / 2**20:.0f} MiB per image in training)"


if __name__ == "__main__":
    sys.exit(main())
