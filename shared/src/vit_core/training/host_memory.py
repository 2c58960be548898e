"""The memory of tensors on the CPU, between one training step and the next."""

import ctypes
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of glibc's mallopt
_KEPT = 2**30  # bytes


def keep_freed_memory() -> None:
    """Let the C library keep what tensors free for those to come, up to 1 GiB at the end of its heap.

    By default glibc gives large blocks back to the system at once, and the next step has each of their pages zeroed and
    mapped again: in training with 64 small images thousands of page faults a step. A process may grow some percent
    larger. Does nothing where the C library is another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    # The second alone would do harm: it stops glibc from moving the first by itself. Older versions refuse over 32 MiB.
    if mallopt is not None and any(mallopt(_MMAP_THRESHOLD, size) for size in (_KEPT, 2**25)):
        mallopt(_TRIM_THRESHOLD, _KEPT)
