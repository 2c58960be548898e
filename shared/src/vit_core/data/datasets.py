"""The datasets by name: their files, splits and statistics.

With several processes on one machine, let one of them call `load_dataset(download=True)` before the others.
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
# The mean over images of the per-image std, which many CIFAR-10 scripts use as the std of the dataset.
CIFAR10_IMAGE_STATS: Stats = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100_STATS: Stats = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
DIGITS_STATS: Stats = ((0.305,) * 3, (0.376,) * 3)
NO_STATS: Stats = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
HALF_STATS: Stats = ((0.5,) * 3, (0.5,) * 3)

NORMALIZATIONS = ("dataset", "imagenet", "half", "none", "cifar10_image_std")

FAKE_CLASSES, FAKE_TRAIN, FAKE_VAL = 100, 10_000, 1_000
_OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_NAMED = 3  # broken images listed by path; the others are only counted


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """The images of one split that `skip_broken` left out; `str` gives a one-line summary."""

    folder: Path
    images: int  # including broken ones
    broken: Mapping[str, str]  # path -> reason

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
    eval_split: str  # official name of `val`: "val" or "test"
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]  # per channel, of values in [0, 1]
    std: tuple[float, float, float]
    left_out: tuple[LeftOut, ...] = ()  # one for each split that `skip_broken` checked

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of `load_dataset`, as passed to the function of a dataset."""

    name: str
    path: Path | None
    download: bool
    img_size: int
    cache: Cache
    eval_split: str
    skip_broken: bool | Collection[str]

    @property
    def folder(self) -> Path:
        """`--data-path`, or `data` for datasets that can be downloaded."""
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
    """Load the dataset `name` (one of `DATASETS`); small datasets are decoded into memory.

    Args:
        data_path: the dataset's folder, or the folder that contains it; default `data` for datasets that can be
            downloaded.
        download: download missing files (cifar10, cifar100, flowers102, tiny_imagenet).
        img_size: image side of `fake`; the images of other datasets are resized by the loader.
        cache: "memory", "disk", or "auto" (see `vit_core.data.sources.source_from_files`).
        eval_split: "val" or "test"; the default is the first split of the dataset.
        normalize: mean and std: "dataset" (the dataset's), "imagenet", "half" (0.5 for both), "none" (0 and 1),
            "cifar10_image_std" (CIFAR-10's mean and the average of its per-image std).
        skip_broken: leave out unreadable images and list them in `left_out`. To find them, every image is decoded
            once, on all cores, which takes as long as reading one epoch. The others keep their order. A collection
            of paths: leave out these, found by another process. No effect on datasets not stored as image files.

    Raises: UserError for an unknown name or split, for missing, damaged or unreadable files, and if `skip_broken`
    leaves a class without images.
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
        raise UserError(f"{name} has no labeled {eval_split!r} split; choose from {', '.join(splits)}")
    split = eval_split or splits[0]
    request = Request(
        name=name,
        path=path,
        download=download,
        img_size=img_size,
        cache=cache,
        eval_split=split,
        skip_broken=skip_broken,
    )
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
    """Per-channel mean and std for normalizing the images of dataset `name`.

    Raises: UserError for an unknown dataset or normalization.
    """
    if name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}; choose from {', '.join(DATASETS)}")
    if normalize not in NORMALIZATIONS:
        raise UserError(f"unknown normalization {normalize!r}; choose from {', '.join(NORMALIZATIONS)}")
    return {
        "dataset": _REGISTRY[name][2],
        "imagenet": IMAGENET_STATS,
        "half": HALF_STATS,
        "none": NO_STATS,
        "cifar10_image_std": CIFAR10_IMAGE_STATS,
    }[normalize]


class Loaded(NamedTuple):
    """Result of a dataset's function."""

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
    """Build a torchvision dataset, which verifies the checksums of its files first."""
    try:
        return kind(str(request.folder), download=request.download, **split)
    except (RuntimeError, OSError) as e:
        if isinstance(e, OSError) and e.errno in _OUTPUT_ERRORS:
            raise
        if request.download:
            raise UserError(
                f"download of {request.name} to {request.folder} failed ({e}); check the network, "
                "or put the files there manually"
            ) from e
        raise UserError(
            f"{request.folder}: {request.name} not found, or a file has a wrong checksum; "
            "add --download, or set --data-path to the folder that contains it"
        ) from e


def _tiny_imagenet(request: Request) -> Loaded:
    root = tiny_imagenet.prepare(request.folder, request.download)
    return _folders(request, [root / "train"], root / "val")


def _imagefolder(request: Request) -> Loaded:
    root = _given_folder(request, "a folder with train/<class>/<image> and val/<class>/<image> or test/<class>/<image>")
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
        raise UserError(f"{table}: not a JSON object of class names ({e}); fix or remove it") from e
    for name in names:
        if not is_printable(name):
            raise UserError(f"{table}: the class name {name!r} cannot be printed; fix or remove it")
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
    """Load image folders; the classes of the training set may be distributed over several folders."""
    paths: list[str] = []
    classes: list[str] = []  # one per image
    for root in train:
        more, labels, found = scan_classes(root)
        paths += more
        classes += [found[label] for label in labels]
    names = tuple(sorted(set(classes)))
    index = {name: i for i, name in enumerate(names)}
    for folder in (root / name for root in train for name in names):
        if folder.is_symlink() and val.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{folder} is a link to the evaluation images; remove it")
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
            f"{shown(files.folder)}: no image of class {names[lost[0]]!r} can be read; the first is "
            f"{shown(path)} ({broken[path]}); --skip-broken requires at least one readable image per class"
        )
    missing = LeftOut(folder=files.folder, images=len(files.paths), broken=broken)
    return Files(files.folder, [files.paths[i] for i in kept], labels), missing


_REGISTRY: dict[str, tuple[Callable[[Request], Loaded], tuple[str, ...], Stats]] = {
    # name: function, labeled evaluation splits (the default first), statistics
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
