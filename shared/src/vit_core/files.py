"""Atomic file writes, and a lock so that only one process at a time writes to a folder."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

from filelock import FileLock, Timeout

from vit_core.errors import UserError


@contextmanager
def replacing(path: Path, also: Sequence[Path] = ()) -> Iterator[Path]:
    """Yield a temporary file name next to `path`; on exit, sync what was written to disk and rename it to `path`.

    If anything fails, an existing file at `path` is unchanged. The names in `also` (same folder) are created before
    `path` is replaced: when the new `path` exists, so do they. Raises UserError that names the folder and its free
    space when the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb+") as f:
            os.fsync(f.fileno())
        for name in also:
            second_name(temporary, name)
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as e:
        written = temporary.stat().st_size if temporary.exists() else 0
        temporary.unlink(missing_ok=True)
        if is_full(e):
            raise UserError(f"{full_disk(path, e, written)}; files written earlier are intact") from e
        raise


def write_whole(path: Path, text: str) -> None:
    """Atomically replace the file `path` with `text` in UTF-8. Errors: see `replacing`.

    A symbolic link, pipe or device, such as /dev/stdout, is written to directly and not replaced.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_text(text, encoding="utf-8", newline="")
        return
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def second_name(source: Path, target: Path) -> None:
    """Atomically make `target` another name of `source`: a hard link (our files are replaced, never modified), or a
    copy where the file system has no hard links.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, temporary)
            with temporary.open("rb+") as f:
                os.fsync(f.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files left in a run folder by killed processes. The caller must hold the folder's lock."""
    for file in folder.glob(".*"):
        if re.fullmatch(r"\.(.+\.pth|config\.json|metrics\.csv|write_test)\.\d+", file.name) and file.is_file():
            file.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raises OSError if `folder` is not writable."""
    probe = folder / f".write_test.{os.getpid()}"
    probe.write_bytes(b"")
    probe.unlink()


def is_full(error: BaseException) -> TypeGuard[OSError]:
    """Whether the disk is full or the user's quota is used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def full_disk(path: Path, error: OSError, written: int = 0) -> str:
    """The message for a full disk: `path` is the file being written, `written` the bytes written so far."""
    folder = next(f for f in (path, *path.absolute().parents) if f.is_dir())
    part = f"{written / 1e6:.1f} MB written" if written else "nothing written"
    if error.errno == errno.EDQUOT:
        return f"{path}: your disk quota is used up ({part} in {folder}): free some space"
    free = shutil.disk_usage(folder).free / 1e6
    return f"{path}: the disk is full ({free:.1f} MB free in {folder}, {part}): free some space"


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure, where the file system supports it. Errors are ignored."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def lock_folder(folder: Path) -> FileLock:
    """Lock `folder`, with the file run.lock in it, until `release` or until this process ends for any reason.

    Data workers, which outlive a killed process by seconds, do not hold it. UserError if this or another process has
    locked the folder.
    """
    lock = FileLock(folder / "run.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{folder} is in use by another process: wait until it ends, or choose another folder"
        ) from None
    return lock


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock `folder` during the block; see `lock_folder`."""
    lock = lock_folder(folder)
    try:
        yield
    finally:
        lock.release()
