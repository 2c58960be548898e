"""Folders of images, one folder a class: which files there are, each named by one path.

Everything a user can get wrong about a folder is a `UserError` of one line that names the path.
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

    With `class_names` (those of the training set) the labels are indices into it, and a class that it lacks
    is an error; a class without a folder is not. Hidden files and folders are left out, and what is neither
    file nor folder (a pipe, a socket). Images and class folders may be links.

    Raises: UserError for a missing folder, one without class folders, one that may not be read, an empty class
    folder, a link that leads nowhere, an unknown class, or a class whose name cannot be printed.
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
            raise UserError(f"{shown(root / name)}: a file, where the folder of the class {name!r} should be")
    paths: list[str] = []
    labels: list[int] = []
    for name in found:
        if not is_printable(name):
            raise UserError(
                f"{shown(root / name)}: a class name with control characters, or not in UTF-8; rename this folder"
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
            raise UserError(f"{root / name}: empty class folder (no image in it); add images or remove the folder")
        paths += images
        labels += [index[name]] * len(images)
    return paths, labels, names


def _check_link(root: Path, name: str, classes: Sequence[str]) -> None:
    """UserError for a class folder that is a link to another class, or to a folder that holds the classes."""
    target = (root / name).resolve()
    if root.resolve().is_relative_to(target):
        raise UserError(f"{root / name}: a link to {shown(target)}, which holds the other classes, too; remove it")
    for other in classes:
        if other != name and (root / other).resolve() == target:
            raise UserError(f"{root / name}: a link to the same folder as the class {other!r}; remove one of them")


def is_printable(name: str) -> bool:
    """Whether a class name fits on one line and in UTF-8; unlike `str.isprintable`, joiners of letters are fine."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name)


def find_images(path: Path, most: int) -> list[Path]:
    """The image itself, or the first `most` images of the folder and those in it. UserError where there is none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{shown(path)}: no such file or folder")
    files = sorted(map(Path, _images_under(str(path))))
    if not files:
        raise UserError(f"{shown(path)} holds no image ({', '.join(EXTENSIONS)})")
    if len(files) > most:
        print(f"the first {most} of {len(files)} images; --max-images for more")
    return files[:most]


def _images_under(top: str) -> list[str]:
    """Files first, then the folders in it, both by name. UserError for a link to a folder: it may lead anywhere."""
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
                    f"{shown(below)}: a link to a folder, inside a class, is not followed; remove it, or link the "
                    "class or the images themselves"
                )
            waiting.append(below)
    return images


def _list(folder: str) -> tuple[list[str], list[str]]:
    """Names of the files and of the folders in `folder`, hidden ones left out, with those that links lead to.

    A link with an image's name counts as a file if it leads nowhere: it is named when it is read.
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
    """S_IFREG for a file, S_IFDIR for a folder, of what a link leads to; opening other kinds may wait for ever."""
    if not entry.is_symlink():  # known without asking the file system about each file
        return stat.S_IFREG if entry.is_file() else stat.S_IFDIR if entry.is_dir() else 0
    try:
        return stat.S_IFMT(entry.stat().st_mode)
    except OSError as e:
        if entry.name.lower().endswith(EXTENSIONS):
            return stat.S_IFREG
        raise UserError(f"{shown(entry.path)}: a link that leads nowhere ({e.strerror}); mend or remove it") from e
