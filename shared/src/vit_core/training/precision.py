"""Mixed precision by device: which type `--amp` means here, the autocast context, and the gradient scaler."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

MODES = ("auto", "bf16", "fp16", "off")


@dataclass(frozen=True)
class Precision:
    """What a forward pass runs in; `reason` is one line for the log."""

    dtype: torch.dtype | None  # None: float32 throughout
    device_type: str
    reason: str

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss for fp16, whose gradients underflow; a scaler that does nothing for other types."""
        return torch.amp.GradScaler(self.device_type, enabled=self.dtype is torch.float16)


def choose_precision(mode: str, device: torch.device) -> Precision:
    """`auto` is bf16 on a GPU that has it, fp16 on an older one, and off on a CPU, where autocast costs time."""
    kind = device.type
    if mode == "off":
        return Precision(None, kind, "AMP off: float32")
    if mode == "auto":
        if kind != "cuda":
            return Precision(None, kind, f"AMP off: it does not pay on {kind} (--amp bf16 forces it)")
        mode = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return Precision(torch.bfloat16 if mode == "bf16" else torch.float16, kind, f"AMP {mode} on {kind}")
