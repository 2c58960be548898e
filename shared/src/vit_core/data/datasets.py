"""The data sets by name: where their files are, which splits they have, and their statistics.

Several processes on one machine: let one call `load_dataset(download=True)` first, then the others.
"""

import errno
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from vit_core.data import tiny_imagenet
from vit_core.data.folder import is_printable, scan_classes
from vit_core.data.images import find_broken, shown
from vit_core.data.sources import CACHES, Cache, FakeSource, ImageSource, MemorySource, source_from_files
from vit_core.errors import UserError

Stats = tuple[tuple[float, float, float], tuple[float, float, float]]

IMAGENET_STATS: Stats = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10_STATS: Stats = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
# The mean over images of each image's own deviation, which many CIFAR-10 scripts take for that of the data set.
CIFAR10_IMAGE_STATS: Stats = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100_STATS: Stats = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
DIGITS_STATS: Stats = ((0.305,) * 3, (0.376,) * 3)
NO_STATS: Stats = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
HALF_STATS: Stats = ((0.5,) * 3, (0.5,) * 3)

NORMALIZATIONS = ("dataset", "imagenet", "half", "none", "cifar10_image_std")

FAKE_CLASSES, FAKE_TRAIN, FAKE_VAL = 100, 10_000, 1_000
_OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_NAMED = 3  # broken images that are named; of the others the number is said


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What `skip_broken` found in the images of one split; `str` says it."""

    folder: Path
    images: int  # with the broken ones
    broken: Mapping[str, str]  # path -> what is wrong with it

    def __str__(self) -> str:
        which = [f"{shown(path)}: {reason}" for path, reason in list(self.broken.items())[:_NAMED]]
        if len(self.broken) > _NAMED:
            which.append("…")
        named = f" ({'; '.join(which)})" if which else ""
        return f"{len(self.broken):,} of {self.images:,} images in {shown(self.folder)} cannot be read{named}"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A training and an evaluation set with the same classes."""

    name: str
    train: ImageSource
    val: ImageSource
    eval_split: str  # what `val` is officially called: "val" or "test"
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]  # of values in [0, 1], each channel
    std: tuple[float, float, float]
    left_out: tuple[LeftOut, ...] = ()  # one for each split that `skip_broken` looked through

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of `load_dataset`, as a data set's own function gets them."""

    name: str
    path: Path | None
    download: bool
    img_size: int
    cache: Cache
    eval_split: str
    skip_broken: bool | Collection[str]

    @property
    def folder(self) -> Path:
        """`--data-path`, or `data` for the sets that can be downloaded."""
        return self.path or Path("data")


def load_dataset(
    name: str,
    *,
    data_path: str | Path | None = None,
    download: bool = False,
    img_size: int,
    cache: Cache = "auto",
    eval_split: str | None = None,
    normalize: str = "dataset",
    skip_broken: bool | Collection[str] = False,
) -> Dataset:
    """Find the data set `name` (one of `DATASETS`) and decode it, if it is small.

    Args:
        data_path: the data set's folder, or the folder that holds it; default `data` for what can be
            downloaded.
        download: fetch missing files (cifar10, cifar100, flowers102, tiny_imagenet).
        img_size: side of the images of `fake`; the others are resized by the loader.
        cache: "memory", "disk", or "auto" (see `vit_core.data.sources.source_from_files`).
        eval_split: "val" or "test"; the default is the first that the data set offers.
        normalize: whose mean and deviation: the data set's own, "imagenet"'s, "half" (0.5 for both), "none" (0 and 1),
            "cifar10_image_std" (CIFAR-10's mean, and the mean of its images' own deviations).
        skip_broken: leave out images that cannot be read, and say so in `left_out`. To find them, each image is
            decoded once, on all cores: as long as an epoch that does nothing but read. The others keep their
            order. A collection of paths: leave out these, which another process found. Data sets that are no
            image files have nothing to leave out.

    Raises: UserError for an unknown name or split, for missing, damaged or unreadable files, and where
    `skip_broken` leaves a class without images.
    """
    if cache not in CACHES:
        raise UserError(f"unknown cache {cache!r}; choose from {', '.join(CACHES)}")
    stats = statistics(name, normalize)
    load, splits, _ = _REGISTRY[name]
    try:
        path = None if data_path is None else Path(data_path).expanduser()
    except RuntimeError as e:
        raise UserError(f"{shown(str(data_path))}: {e}") from e
    if eval_split is None and name == "imagefolder":
        eval_split = "val" if path is None or (path / "val").is_dir() or not (path / "test").is_dir() else "test"
    if eval_split not in (None, *splits):
        raise UserError(f"{name} has no labelled {eval_split!r} split; choose from {', '.join(splits)}")
    split = eval_split or splits[0]
    request = Request(
        name=name, path=path, download=download, img_size=img_size, cache=cache, eval_split=split,
        skip_broken=skip_broken,
    )  # fmt: skip
    loaded = load(request)
    return Dataset(
        name=name,
        train=loaded.train,
        val=loaded.val,
        eval_split=split,
        class_names=loaded.class_names,
        mean=stats[0],
        std=stats[1],
        left_out=loaded.left_out,
    )


def statistics(name: str, normalize: str) -> Stats:
    """Mean and deviation of the channels by which the images of data set `name` are normalized.

    Raises: UserError for an unknown data set or normalization.
    """
    if name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}; choose from {', '.join(DATASETS)}")
    if normalize not in NORMALIZATIONS:
        raise UserError(f"unknown normalization {normalize!r}; choose from {', '.join(NORMALIZATIONS)}")
    return {
        "dataset": _REGISTRY[name][2], "imagenet": IMAGENET_STATS, "half": HALF_STATS, "none": NO_STATS,
        "cifar10_image_std": CIFAR10_IMAGE_STATS,
    }[normalize]  # fmt: skip


class Loaded(NamedTuple):
    """What a data set's own function gives."""

    train: ImageSource
    val: ImageSource
    class_names: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()


class Files(NamedTuple):
    """The images of one split."""

    folder: Path
    paths: list[str]
    labels: list[int]


def _digits(request: Request) -> Loaded:
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (N, 8, 8), values 0 … 16
    images = torch.from_numpy(pixels.repeat(4, 1).repeat(4, 2)).unsqueeze(1).repeat(1, 3, 1, 1)  # (N, 3, 32, 32)
    labels = torch.from_numpy(digits.target)
    train, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=digits.target, random_state=0)
    parts = [MemorySource(images[part], labels[part]) for part in (torch.from_numpy(train), torch.from_numpy(test))]
    return Loaded(parts[0], parts[1], tuple(map(str, digits.target_names)))


def _fake(request: Request) -> Loaded:
    train, val = (
        FakeSource(count, request.img_size, FAKE_CLASSES, seed) for seed, count in enumerate((FAKE_TRAIN, FAKE_VAL))
    )
    return Loaded(train, val, tuple(f"class {i}" for i in range(FAKE_CLASSES)))


def _cifar(request: Request) -> Loaded:
    kind: Any = torchvision.datasets.CIFAR10 if request.name == "cifar10" else torchvision.datasets.CIFAR100
    sets = [_from_torchvision(kind, request, train=train) for train in (True, False)]
    train, val = (
        MemorySource(torch.from_numpy(s.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(s.targets)) for s in sets
    )
    return Loaded(train, val, tuple(sets[0].classes))


def _flowers102(request: Request) -> Loaded:
    kind: Any = torchvision.datasets.Flowers102
    sets = [_from_torchvision(kind, request, split=split) for split in ("train", request.eval_split)]
    train, val = (
        Files(request.folder / "flowers-102", [str(p) for p in s._image_files], list(map(int, s._labels))) for s in sets
    )
    names = getattr(sets[0], "classes", None) or [f"flower {i + 1}" for i in range(102)]
    return _from_files(request, train, val, tuple(names))


def _from_torchvision(kind: Any, request: Request, **split: Any) -> Any:
    """Build one of torchvision's data sets, which checks its files' checksums before it reads them."""
    try:
        return kind(str(request.folder), download=request.download, **split)
    except (RuntimeError, OSError) as e:
        if isinstance(e, OSError) and e.errno in _OUTPUT_ERRORS:
            raise
        if request.download:
            raise UserError(
                f"download of {request.name} to {request.folder} failed ({e}); check the network, "
                "or put the files there by hand"
            ) from e
        raise UserError(
            f"{request.folder}: {request.name} is not there, or a file fails its checksum; "
            "add --download, or point --data-path at the folder that holds it"
        ) from e


def _tiny_imagenet(request: Request) -> Loaded:
    root = tiny_imagenet.prepare(request.folder, request.download)
    return _folders(request, [root / "train"], root / "val")


def _imagefolder(request: Request) -> Loaded:
    root = _given_folder(request, "a folder with train/<class>/<image> and val/ or test/ like it")
    for split in ("train", request.eval_split):
        if not (root / split).is_dir():
            raise UserError(f"{root / split}: no such folder; expected {root}/train and {root}/val or {root}/test")
    return _folders(request, [root / "train"], root / request.eval_split)


def _imagenet(request: Request) -> Loaded:
    layout = "train/<wnid>/<image> and val/<wnid>/<image>"
    root = _given_folder(
        request, f"ImageNet-1k (ILSVRC 2012, from https://image-net.org after registration) as {layout}"
    )
    return _folders(request, [_sub(root, layout, "train")], _sub(root, layout, "val"))


def _imagenet100(request: Request) -> Loaded:
    layout = "train.X1 … train.X4, val.X and Labels.json, or a plain train/ and val/"
    root = _given_folder(request, f"ImageNet-100 (https://www.kaggle.com/datasets/ambityga/imagenet100) as {layout}")
    parts = sorted(p for p in root.glob("train.X*") if p.is_dir()) or [_sub(root, layout, "train")]
    loaded = _folders(request, parts, _sub(root, layout, "val.X", "val"))
    table = root / "Labels.json"
    if not table.is_file():
        return loaded
    try:
        words = json.loads(table.read_text(encoding="utf-8"))
        names = tuple(str(words.get(n, n)).split(",")[0] for n in loaded.class_names)
    except (ValueError, AttributeError, RecursionError) as e:
        raise UserError(f"{table}: not a JSON table of class names ({e}); mend or remove it") from e
    for name in names:
        if not is_printable(name):
            raise UserError(f"{table}: the class name {name!r} cannot be printed; mend or remove it")
    return loaded._replace(class_names=names)


def _intel(request: Request) -> Loaded:
    layout = "seg_train/seg_train/<class>/<image> and seg_test/seg_test/<class>/<image>"
    root = _given_folder(
        request,
        "Intel Image Classification "
        f"(https://www.kaggle.com/datasets/puneet6060/intel-image-classification) as {layout}",
    )
    train, test = (_sub(root, layout, f"{s}/{s}", s) for s in ("seg_train", "seg_test"))
    return _folders(request, [train], test)


def _given_folder(request: Request, wanted: str) -> Path:
    if request.path is None:
        raise UserError(f"{request.name} needs --data-path: {wanted}")
    if not request.path.is_dir():
        raise UserError(f"{request.path}: no such folder; {request.name} needs {wanted}")
    return request.path


def _sub(root: Path, layout: str, *names: str) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise UserError(f"{root / names[0]}: no such folder; expected {layout} in {root}")


def _folders(request: Request, train: list[Path], val: Path) -> Loaded:
    """Image folders; the training set may be spread over several, with the classes divided among them."""
    paths: list[str] = []
    classes: list[str] = []  # of each image
    for root in train:
        more, labels, found = scan_classes(root)
        paths += more
        classes += [found[label] for label in labels]
    names = tuple(sorted(set(classes)))
    index = {name: i for i, name in enumerate(names)}
    for folder in (root / name for root in train for name in names):
        if folder.is_symlink() and val.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{folder}: a link to the images to evaluate on; remove it")
    where = train[0] if len(train) == 1 else train[0].parent
    val_paths, val_labels, _ = scan_classes(val, names)
    return _from_files(
        request, Files(where, paths, [index[name] for name in classes]), Files(val, val_paths, val_labels), names
    )


def _from_files(request: Request, train: Files, val: Files, names: tuple[str, ...]) -> Loaded:
    left_out = []
    if request.skip_broken:
        train, missing = _without_broken(request, train, names)
        left_out.append(missing)
        val, missing = _without_broken(request, val, names)
        left_out.append(missing)
    sources = [source_from_files(split.paths, split.labels, request.cache) for split in (train, val)]
    return Loaded(sources[0], sources[1], names, tuple(left_out))


def _without_broken(request: Request, files: Files, names: Sequence[str]) -> tuple[Files, LeftOut]:
    if request.skip_broken is True:
        broken = find_broken(files.paths)
    else:
        known = frozenset(request.skip_broken or ())
        broken = {path: "" for path in files.paths if path in known}
    kept = [i for i, path in enumerate(files.paths) if path not in broken]
    labels = [files.labels[i] for i in kept]
    lost = sorted(set(files.labels) - set(labels))
    if lost:
        path = files.paths[files.labels.index(lost[0])]
        raise UserError(
            f"{shown(files.folder)}: no image of the class {names[lost[0]]!r} can be read, the first being "
            f"{shown(path)} ({broken[path]}); --skip-broken needs one of each class"
        )
    missing = LeftOut(folder=files.folder, images=len(files.paths), broken=broken)
    return Files(files.folder, [files.paths[i] for i in kept], labels), missing


_REGISTRY: dict[str, tuple[Callable[[Request], Loaded], tuple[str, ...], Stats]] = {
    # name: function, labelled evaluation splits (the usual one first), statistics
    "digits": (_digits, ("test",), DIGITS_STATS),
    "cifar10": (_cifar, ("test",), CIFAR10_STATS),
    "cifar100": (_cifar, ("test",), CIFAR100_STATS),
    "flowers102": (_flowers102, ("val", "test"), IMAGENET_STATS),
    "tiny_imagenet": (_tiny_imagenet, ("val",), IMAGENET_STATS),
    "intel": (_intel, ("test",), IMAGENET_STATS),
    "imagenet100": (_imagenet100, ("val",), IMAGENET_STATS),
    "imagenet": (_imagenet, ("val",), IMAGENET_STATS),
    "imagefolder": (_imagefolder, ("val", "test"), IMAGENET_STATS),
    "fake": (_fake, ("val",), HALF_STATS),
}
DATASETS = tuple(_REGISTRY)
