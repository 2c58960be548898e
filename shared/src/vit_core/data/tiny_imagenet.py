"""Tiny ImageNet: the public zip, checked and unpacked by torchvision, its val/ sorted into class folders.

The zip holds val/images/*.JPEG and val/val_annotations.txt (file name, class, box); here each image moves to
val/<class>/, so that both splits read as image folders.
"""

import re
import tempfile
from pathlib import Path

from torchvision.datasets.utils import check_integrity, download_url, extract_archive

from vit_core.errors import UserError

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
FOLDER = "tiny-imagenet-200"
_PLAIN_NAME = re.compile(r"(?!\.)[\w.-]{1,255}", re.ASCII)  # no folder in it, and nothing hidden


def prepare(data_path: Path, download: bool) -> Path:
    """The folder with train/ and val/, made from `data_path`/tiny-imagenet-200.zip if need be.

    `data_path` may also be that folder itself. A folder appears only when it is complete.

    Raises: UserError for missing or damaged files, or a download that fails.
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
        try:
            download_url(URL, str(data_path), archive.name, MD5)
        except (OSError, RuntimeError) as e:  # URLError is an OSError
            archive.unlink(missing_ok=True)
            raise UserError(
                f"download of {URL} failed ({getattr(e, 'reason', e)}); check the network, "
                f"or get the file another way and put it at {archive}"
            ) from e
    if not check_integrity(str(archive), MD5):
        raise UserError(f"{archive}: wrong checksum (expected MD5 {MD5}); delete it and add --download")
    with tempfile.TemporaryDirectory(prefix=f".{FOLDER}-", dir=data_path, ignore_cleanup_errors=True) as work:
        extract_archive(str(archive), work)  # by zipfile, which writes no member outside
        unpacked = Path(work) / FOLDER
        sort_val(unpacked / "val")
        try:
            unpacked.rename(data_path / FOLDER)
        except OSError:
            if not (data_path / FOLDER / "val").is_dir():  # else another process was first
                raise
    return data_path / FOLDER


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
