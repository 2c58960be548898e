"""Tiny ImageNet: the public zip, verified and extracted by torchvision, with val/ sorted into class folders.

The zip contains val/images/*.JPEG and val/val_annotations.txt (file name, class, box). Images are moved to
val/<class>/, so that both splits can be read as image folders.
"""

import re
import tempfile
from pathlib import Path

from torchvision.datasets.utils import check_integrity, download_url, extract_archive

from vit_core.errors import UserError

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
FOLDER = "tiny-imagenet-200"
_PLAIN_NAME = re.compile(r"(?!\.)[\w.-]{1,255}", re.ASCII)  # not a path, not hidden


def prepare(data_path: Path, download: bool) -> Path:
    """The folder with train/ and val/, extracted from `data_path`/tiny-imagenet-200.zip if necessary.

    `data_path` may also be that folder itself. The folder is created only when it is complete.

    Raises: UserError for missing or damaged files, or if the download fails.
    """
    for folder in (data_path / FOLDER, data_path):
        if (folder / "train").is_dir() and (folder / "val").is_dir():
            sort_val(folder / "val")
            return folder
    archive = data_path / f"{FOLDER}.zip"
    if not archive.exists():
        if not download:
            raise UserError(
                f"{archive}: not found; add --download, or download {URL} to this path, "
                f"or set --data-path to a folder with train/ and val/"
            )
        try:
            download_url(URL, str(data_path), archive.name, MD5)
        except (OSError, RuntimeError) as e:  # URLError is an OSError
            archive.unlink(missing_ok=True)
            raise UserError(
                f"download of {URL} failed ({getattr(e, 'reason', e)}); check the network, "
                f"or download the file manually to {archive}"
            ) from e
    if not check_integrity(str(archive), MD5):
        raise UserError(f"{archive}: wrong checksum (expected MD5 {MD5}); delete it and run again with --download")
    with tempfile.TemporaryDirectory(prefix=f".{FOLDER}-", dir=data_path, ignore_cleanup_errors=True) as work:
        extract_archive(str(archive), work)  # zipfile writes nothing outside the folder
        unpacked = Path(work) / FOLDER
        sort_val(unpacked / "val")
        try:
            unpacked.rename(data_path / FOLDER)
        except OSError:
            if not (data_path / FOLDER / "val").is_dir():  # otherwise another process was faster
                raise
    return data_path / FOLDER


def sort_val(val: Path) -> None:
    """Move val/images/<file> to val/<class>/<file> according to val_annotations.txt; does nothing if already done.

    Raises: UserError if the annotations are missing, invalid or incomplete.
    """
    images = val / "images"
    if not images.is_dir():
        return
    annotations = val / "val_annotations.txt"
    if not annotations.is_file():
        raise UserError(f"{annotations}: not found; it is needed for the classes of the files in {images}")
    for line in annotations.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields = line.split("\t")
        if len(fields) < 2 or not all(_PLAIN_NAME.fullmatch(f) for f in fields[:2]):
            raise UserError(f"{annotations}: invalid line {line!r}; expected <file> TAB <class> …")
        if (images / fields[0]).exists():
            (val / fields[1]).mkdir(exist_ok=True)
            (images / fields[0]).rename(val / fields[1] / fields[0])
    left = next(images.iterdir(), None)
    if left is not None:
        raise UserError(f"{left}: not listed in {annotations}; move or remove it")
    images.rmdir()
