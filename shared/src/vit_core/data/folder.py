"""Image folders with one subfolder per class: find the image files.

Every problem with a folder raises a one-line `UserError` that names the path.
"""

import os
import stat
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from vit_core.data.images import shown
from vit_core.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff", ".gif")


def scan_classes(root: Path, class_names: Sequence[str] | None = None) -> tuple[list[str], list[int], tuple[str, ...]]:
    """The images of `root/<class>/…`, sorted by class and path: paths, labels and class names.

    With `class_names` (those of the training set) the labels are indices into it; a folder of another class is an
    error, a class without a folder is not. Hidden files and folders and special files (pipes, sockets) are skipped.
    Images and class folders may be symbolic links.

    Raises: UserError for a missing or unreadable folder, a folder without class folders, an empty class folder, a
    broken link, an unknown class, or a class name that cannot be printed.
    """
    if not root.is_dir():
        raise UserError(f"{shown(root)}: no such folder")
    files, found = _list(str(root))
    found.sort()
    if not found:
        raise UserError(f"{shown(root)}: no class folders; expected {shown(root)}/<class>/<image>")
    names = tuple(class_names or found)
    index = {name: i for i, name in enumerate(names)}
    for name in files:
        if name in index:
            raise UserError(f"{shown(root / name)} is a file; expected a folder with the images of class {name!r}")
    paths: list[str] = []
    labels: list[int] = []
    for name in found:
        if not is_printable(name):
            raise UserError(
                f"{shown(root / name)}: the class name has control characters or is not UTF-8; rename this folder"
            )
        if (root / name).is_symlink():
            _check_link(root, name, found)
        if name not in index:
            raise UserError(
                f"{root / name}: class {name!r} is not among the {len(names)} training classes; "
                "add it to the training folder or remove it here"
            )
        images = _images_under(str(root / name))
        if not images:
            raise UserError(f"{root / name}: empty class folder (no images); add images or remove the folder")
        paths += images
        labels += [index[name]] * len(images)
    return paths, labels, names


def _check_link(root: Path, name: str, classes: Sequence[str]) -> None:
    """UserError for a class folder that is a link to another class, or to a folder that contains the classes."""
    target = (root / name).resolve()
    if root.resolve().is_relative_to(target):
        raise UserError(
            f"{root / name} is a link to {shown(target)}, which also contains the other classes; remove the link"
        )
    for other in classes:
        if other != name and (root / other).resolve() == target:
            raise UserError(f"{root / name} is a link to the same folder as class {other!r}; remove one of them")


def is_printable(name: str) -> bool:
    """Whether a class name fits on one line and in UTF-8; unlike `str.isprintable`, allows zero-width joiners."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name)


def find_images(path: Path, most: int) -> list[Path]:
    """`path` itself if it is a file, else the first `most` images below the folder. UserError if there are none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{shown(path)}: no such file or folder")
    files = sorted(map(Path, _images_under(str(path))))
    if not files:
        raise UserError(f"{shown(path)} contains no images ({', '.join(EXTENSIONS)})")
    if len(files) > most:
        print(f"using the first {most} of {len(files)} images; use --max-images for more")
    return files[:most]


def _images_under(top: str) -> list[str]:
    """Images below `top`: files first, then subfolders, both sorted by name. UserError for a link to a folder."""
    images: list[str] = []
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        files, folders = _list(folder)
        inside = os.path.join(folder, "")  # noqa: PTH118 (paths are strings here: a Path for each of a million is slow)
        images += [inside + f for f in sorted(files) if f.lower().endswith(EXTENSIONS)]
        for below in (inside + name for name in sorted(folders, reverse=True)):
            if os.path.islink(below):  # noqa: PTH114
                raise UserError(
                    f"{shown(below)}: links to folders are not followed inside a class folder; remove it, or link the "
                    "class folder or the images instead"
                )
            waiting.append(below)
    return images


def _list(folder: str) -> tuple[list[str], list[str]]:
    """Names of the files and folders in `folder`, including links to them, without hidden ones.

    A broken link with an image's extension counts as a file; the error is reported when it is read.
    """
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                kind = _kind(entry)
                if kind == stat.S_IFREG:
                    files.append(entry.name)
                elif kind == stat.S_IFDIR:
                    folders.append(entry.name)
    except OSError as e:
        raise UserError(f"{shown(folder)}: this folder cannot be read ({e.strerror})") from e
    return files, folders


def _kind(entry: os.DirEntry[str]) -> int:
    """S_IFREG for a file, S_IFDIR for a folder, after following links; opening other kinds could block forever."""
    if not entry.is_symlink():  # known without a stat call per file
        return stat.S_IFREG if entry.is_file() else stat.S_IFDIR if entry.is_dir() else 0
    try:
        return stat.S_IFMT(entry.stat().st_mode)
    except OSError as e:
        if entry.name.lower().endswith(EXTENSIONS):
            return stat.S_IFREG
        raise UserError(f"{shown(entry.path)}: broken link ({e.strerror}); fix or remove it") from e
