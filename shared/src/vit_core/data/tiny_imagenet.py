"""Tiny ImageNet: the public zip, checked, unpacked safely, its val/ sorted into class folders.

The zip holds val/images/*.JPEG and val/val_annotations.txt (file name, class, box); here each image moves to
val/<class>/, so that both splits read as image folders.
"""

import hashlib
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

from vit_core.errors import UserError

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
FOLDER = "tiny-imagenet-200"
_TIMEOUT = 60  # seconds without an answer
_PLAIN_NAME = re.compile(r"(?!\.)[\w.-]{1,255}", re.ASCII)  # no folder in it, and nothing hidden


def prepare(data_path: Path, download: bool) -> Path:
    """The folder with train/ and val/, made from `data_path`/tiny-imagenet-200.zip if need be.

    `data_path` may also be that folder itself. A folder appears only when it is complete.

    Raises: UserError for missing or damaged files, unsafe zip members, or a download that fails.
    """
    for folder in (data_path / FOLDER, data_path):
        if (folder / "train").is_dir() and (folder / "val").is_dir():
            sort_val(folder / "val")
            return folder
    archive = data_path / f"{FOLDER}.zip"
    if not archive.exists():
        if not download:
            raise UserError(
                f"{archive}: not found; add --download, or get it from {URL} and put it there, "
                f"or point --data-path at a folder with train/ and val/"
            )
        data_path.mkdir(parents=True, exist_ok=True)
        _download(archive)
    with archive.open("rb") as f:
        digest = hashlib.file_digest(f, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if digest != MD5:
        raise UserError(f"{archive}: wrong checksum (MD5 {digest}, expected {MD5}); delete it and add --download")
    work = Path(tempfile.mkdtemp(prefix=f".{FOLDER}-", dir=data_path))
    try:
        extract(archive, work)
        sort_val(work / FOLDER / "val")
        try:
            (work / FOLDER).rename(data_path / FOLDER)
        except OSError:
            if not (data_path / FOLDER / "val").is_dir():  # else another process was first
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return data_path / FOLDER


def _download(archive: Path) -> None:
    partial = archive.with_name(f"{archive.name}.{os.getpid()}.part")
    try:
        with urllib.request.urlopen(URL, timeout=_TIMEOUT) as response, partial.open("wb") as f:
            shutil.copyfileobj(response, f, 1 << 20)
        partial.replace(archive)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as e:
        raise UserError(
            f"download of {URL} failed ({getattr(e, 'reason', e)}); check the network, "
            f"or get the file another way and put it at {archive}"
        ) from e
    finally:
        partial.unlink(missing_ok=True)


def extract(archive: Path, folder: Path) -> None:
    """Unpack `archive` into `folder`.

    Links in it become plain files. Raises: UserError for a damaged zip, or for a member that would land outside
    `folder`, before anything is written.
    """
    try:
        with zipfile.ZipFile(archive) as z:
            for name in z.namelist():
                path = PurePosixPath(name.replace("\\", "/"))
                if path.is_absolute() or ".." in path.parts or ":" in name:
                    raise UserError(f"{archive}: refused, its member {name!r} would be written outside the folder")
            z.extractall(folder)
    except UserError:
        raise
    except Exception as e:  # zlib.error, struct.error, RuntimeError of an encrypted member, …
        if isinstance(e, OSError) and e.errno:  # the disk's fault: it is full, say
            raise
        raise UserError(f"{archive}: damaged zip ({e}); delete it and add --download") from e


def sort_val(val: Path) -> None:
    """Move val/images/<file> to val/<class>/<file>, by val_annotations.txt; does nothing where it was done.

    Raises: UserError where the annotations are missing or name a class that is no plain folder name.
    """
    images = val / "images"
    if not images.is_dir():
        return
    annotations = val / "val_annotations.txt"
    if not annotations.is_file():
        raise UserError(f"{annotations}: not found; it says which class each file of {images} belongs to")
    for line in annotations.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields = line.split("\t")
        if len(fields) < 2 or not all(_PLAIN_NAME.fullmatch(f) for f in fields[:2]):
            raise UserError(f"{annotations}: unreadable line {line!r}; expected <file> TAB <class> …")
        if (images / fields[0]).exists():
            (val / fields[1]).mkdir(exist_ok=True)
            (images / fields[0]).rename(val / fields[1] / fields[0])
    left = next(images.iterdir(), None)
    if left is not None:
        raise UserError(f"{left}: not listed in {annotations}; move or remove it")
    images.rmdir()
