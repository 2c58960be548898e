"""Mixed precision: the dtype that `--amp` selects on a device, the autocast context and the gradient scaler."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

MODES = ("auto", "bf16", "fp16", "off")


@dataclass(frozen=True)
class Precision:
    """Dtype of the forward pass; `reason` is one line for the log."""

    dtype: torch.dtype | None  # None: float32 throughout
    device_type: str
    reason: str

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """A gradient scaler for fp16, whose gradients can underflow; a disabled one for other dtypes."""
        return torch.amp.GradScaler(self.device_type, enabled=self.dtype is torch.float16)


def choose_precision(mode: str, device: torch.device) -> Precision:
    """`auto`: bf16 on GPUs that support it, fp16 on older GPUs, off on CPUs, where autocast is slower."""
    kind = device.type
    if mode == "off":
        return Precision(None, kind, "AMP off: float32")
    if mode == "auto":
        if kind != "cuda":
            return Precision(None, kind, f"AMP off: usually slower on {kind} (--amp bf16 enables it)")
        mode = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return Precision(torch.bfloat16 if mode == "bf16" else torch.float16, kind, f"AMP {mode} on {kind}")
