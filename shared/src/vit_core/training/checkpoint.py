"""Checkpoint files: written atomically, verified on loading, and loaded without executing any code in them."""

import hashlib
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit_core.errors import UserError
from vit_core.files import replacing

FORMAT = 1  # checkpoint format; each version of this project reads only the format that it writes
KEYS = ("epoch", "model_state_dict", "optimizer_state_dict", "scaler_state_dict", "best_acc1", "config")


def save_checkpoint(path: Path, checkpoint: dict[str, Any], also: Sequence[Path] = ()) -> None:
    """Atomically write `checkpoint` with its format and checksum. For `also` and errors, see `replacing`."""
    checkpoint = checkpoint | {"format": FORMAT}
    checkpoint["checksum"] = digest(checkpoint)
    with replacing(path, also) as temporary, temporary.open("wb") as f:
        try:
            torch.save(checkpoint, f)
        except RuntimeError as e:  # torch's zip writer hides the operating system's error behind its own
            raise e.__context__ if isinstance(e.__context__, OSError) else e from None


def digest(checkpoint: Mapping[str, Any]) -> str:
    """SHA-256 of a checkpoint's contents without its checksum: keys, types, shapes and the bytes of all tensors.

    It covers the contents, not the file, so it does not depend on the torch version or device that wrote the file.
    """
    summed = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            summed.update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
            summed.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, Mapping):
            summed.update(f"mapping {len(value)};".encode())
            for key, item in value.items():
                add(key)
                add(item)
        elif isinstance(value, list | tuple):
            summed.update(f"{type(value).__name__} {len(value)};".encode())
            for item in value:
                add(item)
        else:
            summed.update(f"{type(value).__name__} {value!r};".encode(errors="backslashreplace"))

    add({k: v for k, v in checkpoint.items() if k != "checksum"})
    return summed.hexdigest()


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint written by `save_checkpoint`, onto the CPU.

    Raises UserError that names the file: as `read_safely` does, if it is not a checkpoint of this project or has
    another format, or if its contents do not match its checksum.
    """
    checkpoint = read_safely(path)
    if not isinstance(checkpoint, dict) or any(key not in checkpoint for key in KEYS):
        found = ", ".join(map(str, checkpoint)) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise UserError(
            f"{path} is not a checkpoint of this project: expected {', '.join(KEYS)}; found {found[:200]}; convert "
            "checkpoints of the original code with the paper's convert command"
        )
    theirs = checkpoint.get("format", "none")
    if type(theirs) is not int or theirs != FORMAT:
        what = theirs if isinstance(theirs, str | int | float) else type(theirs).__name__
        raise UserError(
            f"{path} was written by another version of this project, or is damaged: its format is {what}, not {FORMAT}"
        )
    try:
        intact = checkpoint.get("checksum") == digest(checkpoint)
    except (RuntimeError, ValueError, TypeError):  # never written by us: recursive lists, sparse tensors …
        intact = False
    if not intact:
        raise UserError(f"{path} is damaged: its contents do not match its checksum")
    return checkpoint


def read_safely(path: str | Path) -> Any:
    """Load a `torch.save` file onto the CPU with `weights_only=True`, which rejects pickles that would run code.

    Raises UserError that names the file if it is missing, truncated or unsafe.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: give one of its checkpoint files, such as {path / 'last.pth'}")
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickle versions; unreadable files raise anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as e:
        raise UserError(f"{path} cannot be read: permission denied") from e
    except pickle.UnpicklingError as e:
        if _starts_as_zip(path) or "GLOBAL" in str(e) or "Unsupported" in str(e):
            raise UserError(
                f"{path} was not loaded: it contains objects other than tensors and plain values, which could run code"
            ) from e
        raise UserError(f"{path} is not a PyTorch checkpoint") from e
    except Exception as e:  # a damaged pickle may raise anything
        raise UserError(f"{path} is truncated or damaged ({' '.join(str(e).split())[:120]})") from e


def _starts_as_zip(path: Path) -> bool:
    with path.open("rb") as f:  # zipfile.is_zipfile raises on some damaged files
        return f.read(4) == b"PK\x03\x04"


def mismatches(model: nn.Module, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Why `state_dict` does not fit this model: missing keys, unexpected keys, different shapes."""
    ours = model.state_dict()
    problems = [f"missing {k}" for k in ours if k not in state_dict]
    problems += [f"unexpected {k}" for k in state_dict if k not in ours]
    for k, v in state_dict.items():
        if k in ours and not isinstance(v, Tensor):
            problems.append(f"{k} is of type {type(v).__name__}, expected a tensor")
        elif k in ours and v.shape != ours[k].shape:
            problems.append(f"{k} has shape {tuple(v.shape)}, expected {tuple(ours[k].shape)}")
    return problems


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], source: str | Path) -> None:
    """Load a state dict strictly; UserError names the differences if it belongs to another model."""
    problems = (
        mismatches(model, state_dict) if isinstance(state_dict, Mapping) else ["its weights are not a state dict"]
    )
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{source} is a checkpoint of another model: {'; '.join(problems[:3])}{more}")
    model.load_state_dict(state_dict)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile, so that its state-dict keys have no prefix."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    return getattr(model, "_orig_mod", model)
