"""Files that are there whole or not at all, and folders that one process at a time writes to."""

import contextlib
import errno
import os
import re
import shutil
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

from vit_core.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None  # type: ignore[assignment]


@contextmanager
def replacing(path: Path, also: Sequence[Path] = ()) -> Iterator[Path]:
    """A temporary name beside `path` to write to. What was written is flushed to the disk and takes the name `path`.

    Whatever goes wrong before, the earlier file of that name stays as it was. The file gets the names in `also` (same
    folder) before it gets that of `path`: whoever finds the new `path` finds the others, too. Raises UserError that
    names the folder and its free space where the disk is full.
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
            raise UserError(f"{full_disk(path, e, written)}; the files written before are intact") from e
        raise


def write_whole(path: Path, text: str) -> None:
    """Put a text of UTF-8 in the place of the file `path`. Errors: see `replacing`.

    A link, a pipe or a device, such as /dev/stdout, is written to as it is, and not replaced.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_text(text, encoding="utf-8", newline="")
        return
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def second_name(source: Path, target: Path) -> None:
    """Give `source` a second name, swapped in whole. It will be replaced, never changed, so a hard link will do."""
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
    """Delete what processes left in a run's folder that were killed while they wrote. For who holds its lock."""
    for file in folder.glob(".*"):
        if re.fullmatch(r"\.(.+\.pth|config\.json|metrics\.csv|write_test)\.\d+", file.name) and file.is_file():
            file.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raises OSError where nothing can be written to `folder`."""
    probe = folder / f".write_test.{os.getpid()}"
    probe.write_bytes(b"")
    probe.unlink()


def is_full(error: BaseException) -> TypeGuard[OSError]:
    """Whether there was no room on the disk, or in the user's quota."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def full_disk(path: Path, error: OSError, written: int = 0) -> str:
    """What to say when there is no room for the file `path`, of which so many bytes could be written."""
    folder = next(f for f in (path, *path.absolute().parents) if f.is_dir())
    part = f"{written / 1e6:.1f} MB of it could be written" if written else "nothing of it could be written"
    if error.errno == errno.EDQUOT:
        return f"{path}: your quota of the disk is used up ({part} in {folder}): free some space"
    free = shutil.disk_usage(folder).free / 1e6
    return f"{path}: the disk is full ({free:.1f} MB free in {folder}, {part}): free some space"


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the file system can: the file is in its place in any case."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class FolderLock:
    """Held until `release`, or until this process ends, however that may be: it leaves no file behind.

    Raises UserError where another process, or another part of this one, holds the lock of `folder`. Where the file
    system knows no locks nothing is held.
    """

    def __init__(self, folder: Path) -> None:
        self._handle: int | None = None
        if fcntl is None:
            return
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise UserError(f"{folder}: another process is at work there; wait for it, or choose another") from None
        except OSError:
            os.close(handle)
            return
        self._handle = handle
        _held.add(self)

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


_held: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()


def _release_all() -> None:
    for lock in list(_held):
        lock.release()


if hasattr(os, "register_at_fork"):
    # A data worker outlives a killed main process by seconds: it must not hold the lock for it.
    os.register_at_fork(after_in_child=_release_all)
