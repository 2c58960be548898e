"""Checkpoint files: written whole or not at all, read without running anything that they contain."""

import os
import pickle
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit_core.errors import UserError

KEYS = ("epoch", "model_state_dict", "optimizer_state_dict", "scaler_state_dict", "best_acc1", "config")


def save_checkpoint(path: Path, checkpoint: dict[str, Any], also: Sequence[Path] = ()) -> None:
    """Write to a temporary name beside `path`, flush to the disk, rename: `path` is never half a file.

    A write that fails (full disk) leaves the earlier file of that name as it was. The file gets the names in `also`
    (same folder) before it gets that of `path`: whoever finds the new `path` finds the others, too.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as f:
            try:
                torch.save(checkpoint, f)
            except RuntimeError as e:  # torch's zip writer hides the operating system's error behind its own
                raise e.__context__ if isinstance(e.__context__, OSError) else e from None
            f.flush()
            os.fsync(f.fileno())
        for name in also:
            copy_checkpoint(temporary, name)
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def copy_checkpoint(source: Path, target: Path) -> None:
    """Give `source` a second name, swapped in whole. It will be replaced, never changed, so a hard link will do."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        try:
            shutil.copyfile(source, temporary)
            with temporary.open("rb+") as f:
                os.fsync(f.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    temporary.replace(target)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of a process that was killed while it wrote a checkpoint."""
    for file in folder.glob(".*.pth.*"):
        file.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; not every system lets a folder be opened."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_checkpoint(path: str | Path, keys: tuple[str, ...] = KEYS) -> dict[str, Any]:
    """Read a checkpoint onto the CPU with `weights_only=True`: a pickle that would run code is refused.

    Raises UserError that names the file when it is missing, truncated, hostile, or no checkpoint of ours.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: give one of its checkpoint files, such as {path / 'last.pth'}")
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickle versions; what it cannot read, it refuses
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        if _starts_as_zip(path) or "GLOBAL" in str(e) or "Unsupported" in str(e):
            raise UserError(
                f"{path} refused: it holds more than tensors and plain values; nothing in it was run"
            ) from e
        raise UserError(f"{path} is not a PyTorch checkpoint") from e
    except Exception as e:  # a damaged pickle fails in any way that a stack machine can
        raise UserError(f"{path} is truncated or damaged ({' '.join(str(e).split())[:120]})") from e
    if not isinstance(checkpoint, dict) or any(key not in checkpoint for key in keys):
        found = ", ".join(map(str, checkpoint)) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise UserError(f"{path} is not a checkpoint of this project: needs {', '.join(keys)}; holds {found[:200]}")
    return checkpoint


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
