"""Checkpoint files: written whole or not at all, checked when they are read, and nothing in them is run."""

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

FORMAT = 1  # of what a checkpoint holds; a version that writes another one reads no other
KEYS = ("epoch", "model_state_dict", "optimizer_state_dict", "scaler_state_dict", "best_acc1", "config")


def save_checkpoint(path: Path, checkpoint: dict[str, Any], also: Sequence[Path] = ()) -> None:
    """Write `checkpoint`, its format and its checksum: `path` is never half a file. Further names and errors: see
    `replacing`.
    """
    checkpoint = checkpoint | {"format": FORMAT}
    checkpoint["checksum"] = digest(checkpoint)
    with replacing(path, also) as temporary, temporary.open("wb") as f:
        try:
            torch.save(checkpoint, f)
        except RuntimeError as e:  # torch's zip writer hides the operating system's error behind its own
            raise e.__context__ if isinstance(e.__context__, OSError) else e from None


def digest(checkpoint: Mapping[str, Any]) -> str:
    """SHA-256 of all that a checkpoint says, but for its checksum: names, types, shapes and every bit of the tensors.

    Of the content, not of the file: it is the same whatever torch version wrote the file, and on which device.
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
    """Read a checkpoint that `save_checkpoint` wrote, onto the CPU.

    Raises UserError that names the file when `read_safely` does, when it is no checkpoint of ours or one of another
    format, and when what it says is not what was written.
    """
    checkpoint = read_safely(path)
    if not isinstance(checkpoint, dict) or any(key not in checkpoint for key in KEYS):
        found = ", ".join(map(str, checkpoint)) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise UserError(
            f"{path} is not a checkpoint of this project: needs {', '.join(KEYS)}; holds {found[:200]}; of one of the "
            "original's code the paper's convert command makes one that is"
        )
    theirs = checkpoint.get("format", "none")
    if type(theirs) is not int or theirs != FORMAT:
        what = theirs if isinstance(theirs, str | int | float) else type(theirs).__name__
        raise UserError(f"{path} is of another version of this project, or damaged: its format is {what}, not {FORMAT}")
    try:
        intact = checkpoint.get("checksum") == digest(checkpoint)
    except (RuntimeError, ValueError, TypeError):  # what we never write: lists in themselves, sparse tensors …
        intact = False
    if not intact:
        raise UserError(f"{path} is damaged: what it holds does not match its checksum")
    return checkpoint


def read_safely(path: str | Path) -> Any:
    """What a `torch.save` file holds, onto the CPU with `weights_only=True`: a pickle that would run code is refused.

    Raises UserError that names the file when it is missing, truncated or hostile.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: give one of its checkpoint files, such as {path / 'last.pth'}")
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickle versions; what it cannot read, it refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as e:
        raise UserError(f"{path} cannot be read: permission denied") from e
    except pickle.UnpicklingError as e:
        if _starts_as_zip(path) or "GLOBAL" in str(e) or "Unsupported" in str(e):
            raise UserError(
                f"{path} refused: it holds more than tensors and plain values; nothing in it was run"
            ) from e
        raise UserError(f"{path} is not a PyTorch checkpoint") from e
    except Exception as e:  # a damaged pickle fails in any way that a stack machine can
        raise UserError(f"{path} is truncated or damaged ({' '.join(str(e).split())[:120]})") from e


def _starts_as_zip(path: Path) -> bool:
    with path.open("rb") as f:  # zipfile.is_zipfile raises on some damaged files
        return f.read(4) == b"PK\x03\x04"


def mismatches(model: nn.Module, state_dict: Mapping[str, Tensor]) -> list[str]:
    """What keeps `state_dict` from being this model's: keys missing or unexpected, shapes that differ."""
    ours = model.state_dict()
    problems = [f"missing {k}" for k in ours if k not in state_dict]
    problems += [f"unexpected {k}" for k in state_dict if k not in ours]
    for k, v in state_dict.items():
        if k in ours and not isinstance(v, Tensor):
            problems.append(f"{k} is of type {type(v).__name__}, expected a tensor")
        elif k in ours and v.shape != ours[k].shape:
            problems.append(f"{k} is {tuple(v.shape)}, expected {tuple(ours[k].shape)}")
    return problems


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], source: str | Path) -> None:
    """Load a state dict in full; UserError names what differs when it belongs to another model."""
    problems = mismatches(model, state_dict) if isinstance(state_dict, Mapping) else ["its weights are no state dict"]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{source} is a checkpoint of another model: {'; '.join(problems[:3])}{more}")
    model.load_state_dict(state_dict)


def unwrap(model: nn.Module) -> nn.Module:
    """The model under DistributedDataParallel and torch.compile, whose state-dict keys have no prefix."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    return getattr(model, "_orig_mod", model)
