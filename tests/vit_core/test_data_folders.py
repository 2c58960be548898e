"""Image folders, data sets on disk, and what is said when something is wrong with them."""

import hashlib
import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from vit_core.data import DATASETS, DiskSource, MemorySource, load_dataset, sources, tiny_imagenet
from vit_core.errors import UserError


def _image(path: Path, size: tuple[int, int] = (16, 16), shade: int = 100, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    color = {"RGB": (shade, shade // 2, 30), "CMYK": (shade, 20, 30, 40)}.get(mode, shade)
    Image.new(mode, size, color).save(path)
    return path


def _tree(root: Path, splits: tuple[str, ...] = ("train", "val"), classes: tuple[str, ...] = ("a", "b")) -> Path:
    for split in splits:
        for c in classes:
            for i in range(3):
                _image(root / split / c / f"{i}.png", shade=50 * i)
    return root


def _load(name: str, root: Path | None, **kwargs: object):
    return load_dataset(name, data_path=root, img_size=16, **kwargs)


def _refused(match: str, name: str, root: Path | None, **kwargs: object) -> None:
    with pytest.raises(UserError, match=match) as error:
        _load(name, root, **kwargs)
    assert "\n" not in str(error.value)


def test_imagefolder(tmp_path: Path) -> None:
    data = _load("imagefolder", _tree(tmp_path, ("train", "val", "test")))
    assert data.class_names == ("a", "b")
    assert data.num_classes == 2
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert isinstance(data.train, MemorySource)
    assert data.train.images[1, :, 0, 0].tolist() == [50, 25, 30]
    assert data.eval_split == "val"
    assert _load("imagefolder", tmp_path, eval_split="test").eval_split == "test"


def test_whose_mean_and_deviation(tmp_path: Path) -> None:
    _tree(tmp_path)
    assert _load("digits", None).mean != _load("imagefolder", tmp_path).mean
    assert _load("imagefolder", tmp_path, normalize="imagenet").std == _load("imagefolder", tmp_path).std
    half = _load("digits", None, normalize="half")
    assert half.mean == half.std == (0.5, 0.5, 0.5)


def test_imagefolder_with_test_alone(tmp_path: Path) -> None:
    assert _load("imagefolder", _tree(tmp_path, ("train", "test"))).eval_split == "test"


def test_hidden_files_nested_folders_and_a_class_without_evaluation_images(tmp_path: Path) -> None:
    _tree(tmp_path)
    _image(tmp_path / "train" / "a" / "deeper" / "9.jpg")
    _image(tmp_path / "train" / "c" / "1.JPEG".lower()).rename(tmp_path / "train" / "c" / "1.JPEG")
    (tmp_path / "train" / "a" / "._0.png").write_bytes(b"resource fork")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image")
    data = _load("imagefolder", tmp_path)
    assert data.class_names == ("a", "b", "c")
    assert data.train.labels.tolist() == [0] * 4 + [1] * 3 + [2]
    assert data.val.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_modes_other_than_rgb(tmp_path: Path) -> None:
    _tree(tmp_path)
    for i, mode in enumerate(("L", "P", "RGBA", "1", "LA", "I;16")):
        Image.new(mode, (16, 16)).save(tmp_path / "train" / "a" / f"x{i}.png")
    Image.new("CMYK", (16, 16)).save(tmp_path / "train" / "b" / "y.jpg")
    Image.new("L", (16, 16), 77).save(tmp_path / "train" / "b" / "z.jpg")
    (tmp_path / "train" / "a" / "0.png").rename(tmp_path / "train" / "a" / "png_inside.jpg")
    images = _load("imagefolder", tmp_path).train.images
    assert images.shape == (14, 3, 16, 16)
    assert images[-1].unique().tolist() == [77]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lambda r: (r / "train").rename(r / "training"),
            r"train: no such folder; expected .*train and .*val",
        ),
        (lambda r: (r / "val").rename(r / "validation"), r"val: no such folder; expected"),
        (lambda r: (r / "train" / "c").mkdir(), r"train/c: empty class folder"),
        (
            lambda r: _image(r / "val" / "z" / "0.png"),
            r"val/z: class 'z' is not among the 2 training classes",
        ),
        (
            lambda r: (r / "train/a/0.png").write_bytes(b"GIF?"),
            r"train/a/0\.png: unreadable image \(not an image in one of",
        ),
        (lambda r: (r / "train/a/1.png").write_bytes(b""), r"train/a/1\.png: unreadable image"),
        (lambda r: _truncate(r / "train/a/2.png"), r"train/a/2\.png: unreadable image"),
        (lambda r: _truncate(_image(r / "train/b/x.jpg")), r"train/b/x\.jpg: unreadable image"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path, harm, message: str) -> None:
    harm(_tree(tmp_path))
    _refused(message, "imagefolder", tmp_path)


def _truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def test_folders_that_are_not_there_or_have_no_classes(tmp_path: Path) -> None:
    _refused("imagefolder needs --data-path", "imagefolder", None)
    _refused("gone: no such folder", "imagefolder", tmp_path / "gone")
    _image(tmp_path / "train" / "0.png")
    (tmp_path / "val").mkdir()
    _refused(r"train: no class folders; expected .*train/<class>/<image>", "imagefolder", tmp_path)


@pytest.mark.parametrize(
    ("link", "target", "message"),
    [
        ("train/loop", ".", "train/loop is a link to .*, which also contains the other classes"),
        ("train/loop", "..", "train/loop is a link to .*, which also contains the other classes"),
        ("train/c", "a", "train/c is a link to the same folder as class 'a'"),
        ("train/held_out", "../val", "train/held_out is a link to the evaluation images"),
    ],
)
def test_a_class_that_is_a_link_to_others(tmp_path: Path, link: str, target: str, message: str) -> None:
    _tree(tmp_path)
    (tmp_path / link).symlink_to(target)
    _refused(message, "imagefolder", tmp_path)


def test_a_class_that_is_a_link_to_a_folder_elsewhere(tmp_path: Path) -> None:
    _tree(tmp_path)
    _image(tmp_path / "elsewhere" / "0.png")
    (tmp_path / "train" / "c").symlink_to(tmp_path / "elsewhere")
    assert _load("imagefolder", tmp_path).class_names == ("a", "b", "c")


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    _refused("unknown dataset 'mnist'; choose from digits, cifar10", "mnist", None)
    _refused("digits has no labeled 'val' split; choose from test", "digits", None, eval_split="val")
    _refused("unknown cache 'tape'", "digits", None, cache="tape")
    _refused("unknown normalization 'quarter'", "digits", None, normalize="quarter")
    assert set(DATASETS) == {
        *("digits", "cifar10", "cifar100", "flowers102", "tiny_imagenet"),
        *("intel", "imagenet100", "imagenet", "imagefolder", "fake"),
    }


def test_where_images_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _tree(tmp_path)
    assert isinstance(_load("imagefolder", tmp_path).train, MemorySource)
    assert isinstance(_load("imagefolder", tmp_path, cache="disk").train, DiskSource)
    monkeypatch.setattr(sources, "_MEMORY_LIMIT", 6 * 3 * 16 * 16 - 1)
    assert isinstance(_load("imagefolder", tmp_path).train, DiskSource)
    assert isinstance(_load("imagefolder", tmp_path, cache="memory").train, MemorySource)
    monkeypatch.undo()
    _image(tmp_path / "train" / "b" / "odd.png", (20, 16))
    assert isinstance(_load("imagefolder", tmp_path).train, DiskSource)
    assert isinstance(_load("imagefolder", tmp_path).val, MemorySource)
    _refused("the images differ in size; use --cache disk", "imagefolder", tmp_path, cache="memory")


def test_an_odd_image_missed_by_the_sample_is_met_while_decoding(tmp_path: Path) -> None:
    _tree(tmp_path)
    for i in range(200):
        _image(tmp_path / "train" / "a" / f"m{i:03d}.png")
    _image(tmp_path / "train" / "a" / "m001.png", (20, 16))
    assert isinstance(_load("imagefolder", tmp_path).train, DiskSource)
    _refused(r"differ in size: .*m001\.png is 20x16 pixels", "imagefolder", tmp_path, cache="memory")


def test_deciding_on_a_large_folder_opens_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(300):
        _image(tmp_path / f"{i:03d}.png")
    opened = []
    monkeypatch.setattr(Image, "open", lambda path, real=Image.open, **k: opened.append(path) or real(path, **k))
    monkeypatch.setattr(sources, "_MEMORY_LIMIT", 1)
    paths = sorted(str(p) for p in tmp_path.iterdir())
    assert isinstance(sources.source_from_files(paths, [0] * 300, "auto"), DiskSource)
    assert len(opened) <= 80


def test_digits_split_is_stratified_and_stable() -> None:
    data = _load("digits", None)
    assert isinstance(data.train, MemorySource)
    assert isinstance(data.val, MemorySource)
    assert data.train.images.shape == (1437, 3, 32, 32)
    assert data.val.images.shape == (360, 3, 32, 32)
    assert data.val.labels.bincount().tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    assert data.num_classes == 10
    # Results of different machines compare only if the split never changes.
    assert hashlib.sha256(data.val.images.numpy().tobytes()).hexdigest()[:16] == "8e995d81e79ee271"
    unit = data.train.images.double() / 255
    assert unit.mean().item() == pytest.approx(data.mean[0], abs=1e-3)
    assert unit.std().item() == pytest.approx(data.std[0], abs=1e-3)
    raw = torch.from_numpy(load_digits().images).mul(255 / 16).round()
    assert torch.equal(raw.sum(), (data.train.images.double().sum() + data.val.images.double().sum()) / 48)


def test_fake() -> None:
    data = _load("fake", None)
    assert data.num_classes == 100
    pixels = [s.gather(torch.arange(4), torch.device("cpu")) for s in (data.train, data.val)]
    assert pixels[0].shape == (4, 3, 16, 16)
    assert not torch.equal(pixels[0], pixels[1])
    again = _load("fake", None).train.gather(torch.arange(4), torch.device("cpu"))
    assert torch.equal(again, pixels[0])


def _tiny_zip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    source = folder / "source"
    wnids = ("n01", "n02")
    lines = []
    for i, wnid in enumerate(wnids):
        for k in range(2):
            _image(source / f"train/{wnid}/images/{wnid}_{k}.JPEG".lower(), (8, 8)).rename(
                source / f"train/{wnid}/images/{wnid}_{k}.JPEG"
            )
        _image(source / f"val/images/val_{i}.jpeg", (8, 8), shade=200 * i)
        # Not in the order of the classes, so that a plain listing would give wrong labels.
        lines.append(f"val_{i}.jpeg\t{wnids[1 - i]}\t0\t0\t3\t3")
        (source / f"train/{wnid}/{wnid}_boxes.txt").write_text("0 0 1 1")
    (source / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    archive = folder / "data" / "tiny-imagenet-200.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as z:
        for path in sorted(source.rglob("*.*")):
            z.write(path, f"tiny-imagenet-200/{path.relative_to(source)}")
    monkeypatch.setattr(tiny_imagenet, "MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    return archive


def test_tiny_imagenet_is_unpacked_and_its_val_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = _tiny_zip(tmp_path, monkeypatch)
    data = _load("tiny_imagenet", archive.parent)
    assert data.class_names == ("n01", "n02")
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert data.val.labels.tolist() == [0, 1]
    assert isinstance(data.val, MemorySource)
    assert data.val.images[0, 0].float().mean() > 190  # val_1, annotated as n01
    assert sorted(p.name for p in archive.parent.iterdir()) == ["tiny-imagenet-200", "tiny-imagenet-200.zip"]
    archive.unlink()
    for folder in (archive.parent, archive.parent / "tiny-imagenet-200"):
        assert _load("tiny_imagenet", folder).val.labels.tolist() == [0, 1]


def test_tiny_imagenet_unpacked_by_the_user_is_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = _tiny_zip(tmp_path, monkeypatch)
    with zipfile.ZipFile(archive) as z:
        z.extractall(archive.parent)
    val = archive.parent / "tiny-imagenet-200" / "val"
    (val / "n02").mkdir()
    (val / "images" / "val_0.jpeg").rename(val / "n02" / "val_0.jpeg")  # as if it had been interrupted
    assert _load("tiny_imagenet", archive.parent).val.labels.tolist() == [0, 1]


def test_tiny_imagenet_missing_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _refused(r"tiny-imagenet-200\.zip: not found; add --download", "tiny_imagenet", tmp_path)
    archive = _tiny_zip(tmp_path, monkeypatch)
    archive.write_bytes(archive.read_bytes()[:-100])
    _refused("wrong checksum .*delete it and run again with --download", "tiny_imagenet", archive.parent)
    monkeypatch.setattr(tiny_imagenet, "URL", "http://127.0.0.1:9/none.zip")
    _refused("download of .* failed .*check the network", "tiny_imagenet", tmp_path / "new", download=True)
    assert list((tmp_path / "new").iterdir()) == []


def test_intel_and_imagenet_layouts(tmp_path: Path) -> None:
    intel = tmp_path / "intel"
    _tree(intel / "seg_train", ("seg_train",))
    _tree(intel / "seg_test", ("seg_test",))
    assert _load("intel", intel).eval_split == "test"
    assert len(_load("intel", intel).val) == 6
    _refused("intel needs --data-path: .*kaggle.*seg_train/seg_train/<class>", "intel", None)
    _refused(r"seg_train/seg_train: no such folder; expected .*seg_test", "intel", tmp_path)

    plain = _tree(tmp_path / "imagenet")
    assert _load("imagenet", plain).class_names == ("a", "b")
    _refused("imagenet needs --data-path: .*image-net.org", "imagenet", None)

    hundred = tmp_path / "imagenet100"
    _tree(hundred, ("train.X1",), ("n01", "n03"))
    _tree(hundred, ("train.X2",), ("n02",))
    _tree(hundred, ("val.X",), ("n01", "n02", "n03"))
    (hundred / "Labels.json").write_text(json.dumps({"n01": "cat, feline", "n02": "dog", "n03": "owl"}))
    data = _load("imagenet100", hundred)
    assert data.class_names == ("cat", "dog", "owl")
    assert data.train.labels.tolist() == [0] * 3 + [2] * 3 + [1] * 3
    assert data.val.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    (hundred / "Labels.json").write_text("{")
    _refused("Labels.json: not a JSON object", "imagenet100", hundred)
    assert _load("imagenet100", plain).num_classes == 2
    _refused("imagenet100 needs --data-path: .*train.X1", "imagenet100", None)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "flowers102"])
def test_torchvision_sets_that_are_missing_advise_download(name: str, tmp_path: Path) -> None:
    _refused(f"{name} not found, or a file has a wrong checksum; add --download", name, tmp_path)


def test_failed_download_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.error
    import urllib.request

    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    _refused("download of cifar10 to .* failed .*check the network", "cifar10", tmp_path, download=True)


def test_cifar_files_are_checked_before_they_are_unpickled(tmp_path: Path) -> None:
    """A hostile pickle in place of a CIFAR batch must not run."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    hostile = b"cos\nsystem\n(S'touch " + str(tmp_path / "pwned").encode() + b"'\ntR."
    for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (folder / name).write_bytes(hostile)
    _refused("has a wrong checksum", "cifar10", tmp_path)
    assert not (tmp_path / "pwned").exists()


@pytest.fixture
def real_data(tmp_path: Path) -> Path:
    folder = os.environ.get("VIT_DATA_DIR")
    if not folder:
        pytest.skip("VIT_DATA_DIR is not set: the folder with flowers102-64px.tar.gz")
    return Path(folder)


def test_flowers102_in_torchvisions_layout(real_data: Path, tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(real_data / "flowers102-64px.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    data = _load("flowers102", tmp_path, cache="disk")
    assert (len(data.train), len(data.val), data.eval_split) == (1020, 1020, "val")
    assert data.train.labels.bincount().tolist() == [10] * 102
    assert data.num_classes == 102
    assert data.class_names[0] == "pink primrose"
    test = _load("flowers102", tmp_path, eval_split="test")
    assert len(test.val) == 6149
    assert isinstance(test.val, MemorySource)
    assert test.val.images.shape[1:] == (3, 64, 64)
