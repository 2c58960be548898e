"""Images and folders that nobody would make on purpose: read properly, or named in one line."""

import os
import shutil
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reliability import folder_index, image_damage

import toy_paper
from vit_core.commands import images
from vit_core.data import BatchLoader, DiskSource, EvalTransform, load_dataset, tiny_imagenet
from vit_core.data.folder import find_images, scan_classes
from vit_core.data.images import UnreadableImageError, common_size, decode_all, open_image, read_pixels, shown
from vit_core.errors import UserError
from vit_core.explain import figure_of_maps
from vit_core.tasks.class_report import confusion_picture
from vit_core.training.config import DataConfig
from vit_core.training.distributed import World

RAMP = (np.arange(256, dtype=np.uint8)[None] * np.ones((3, 1), np.uint8)).astype(np.uint8)  # (3, 256)


def _save(path: Path, image: Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def _pixels(path: Path) -> np.ndarray:
    """(H, W, 3), which all ways to read an image must agree on."""
    pixels = np.asarray(open_image(str(path)))
    assert common_size([str(path)]) == pixels.shape[:2]
    assert np.array_equal(decode_all([str(path)], pixels.shape[:2])[0].permute(1, 2, 0), pixels)
    assert np.array_equal(read_pixels(path).permute(1, 2, 0), pixels)
    return pixels


def _named(path: Path | str, match: str) -> None:
    for read in (open_image, lambda p: common_size([p]) and decode_all([p], (3, 256)), lambda p: read_pixels(Path(p))):
        with pytest.raises(UnreadableImageError, match=match) as error:
            read(str(path))
        assert shown(path) in str(error.value)
        assert "\n" not in str(error.value)


def _folder(root: Path, classes: tuple[str, ...] = ("a", "b"), each: int = 4, size: tuple[int, int] = (16, 16)) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in classes:
            for i in range(each):
                pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                _save(root / split / name / f"{i}.png", Image.fromarray(pixels))
    return root


def _train(root: Path, out: Path, *argv: str) -> int:
    return toy_paper.train(
        str(out),
        "--dataset",
        "imagefolder",
        "--data-path",
        str(root),
        "--epochs",
        "1",
        "--batch-size",
        "4",
        "--num-workers",
        "0",
        *argv,
    )


def _one_line(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return err


# Pixels


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_16_bit_gray_is_scaled_and_not_clipped_to_white(tmp_path: Path, ending: str) -> None:
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    pixels = _pixels(_save(tmp_path / f"x.{ending}", deep))
    assert np.array_equal(pixels, np.stack([RAMP] * 3, 2))


def test_16_bit_gray_of_the_other_byte_order_and_with_white_as_zero(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    for order, photometric, expected in ((">", 1, RAMP), ("<", 1, RAMP), ("<", 0, 255 - RAMP)):
        pixels = (RAMP.astype(np.uint16) * 257).astype(order + "u2").tobytes()
        path.write_bytes(_tiff(order, 256, 3, bits=16, photometric=photometric, data=pixels))
        assert np.array_equal(_pixels(path)[..., 0], expected)


def test_12_bit_gray(tmp_path: Path) -> None:
    values = np.arange(256) * 16 + 3
    packed = np.stack([values[::2] >> 4, (values[::2] & 15) << 4 | values[1::2] >> 8, values[1::2] & 255], 1)
    path = tmp_path / "x.tif"
    path.write_bytes(_tiff("<", 256, 1, bits=12, photometric=1, data=packed.astype(np.uint8).tobytes()))
    assert _pixels(path)[0, :, 0].tolist() == list(range(256))


def _tiff(order: str, width: int, height: int, *, bits: int, photometric: int, data: bytes) -> bytes:
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 134, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return (head + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)).ljust(134, b"\0") + data


def test_a_tiff_that_is_higher_than_its_pixels_is_not_filled_with_black(tmp_path: Path) -> None:
    whole = _tiff("<", 256, 3, bits=8, photometric=1, data=RAMP.tobytes())
    (tmp_path / "x.tif").write_bytes(whole)
    assert np.array_equal(_pixels(tmp_path / "x.tif")[..., 0], RAMP)
    height = whole.index(struct.pack("<HHII", 257, 4, 1, 3)) + 8
    (tmp_path / "x.tif").write_bytes(whole[:height] + struct.pack("<I", 4) + whole[height + 4 :])
    with pytest.raises(UnreadableImageError, match="missing image strips: fewer than the image height requires"):
        open_image(str(tmp_path / "x.tif"))


def test_16_bit_colors_keep_their_upper_half(tmp_path: Path) -> None:
    deep = np.stack([RAMP.astype(">u2") * 257] * 3, 2).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    (tmp_path / "x.png").write_bytes(_png(256, 3, bits=16, color=2, data=zlib.compress(rows)))
    assert np.array_equal(_pixels(tmp_path / "x.png"), np.stack([RAMP] * 3, 2))


def _png(width: int, height: int, *, bits: int, color: int, data: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_numbers_without_a_known_white_are_refused(tmp_path: Path, kind: type) -> None:
    path = _save(tmp_path / "x.tif", Image.fromarray(RAMP.astype(kind)))
    for read in (open_image, lambda p: decode_all([p], (3, 256))):
        with pytest.raises(UnreadableImageError, match=r"x\.tif: .*no defined white level"):
            read(str(path))


def test_inks_luminance_and_black_and_white(tmp_path: Path) -> None:
    colors = Image.new("RGB", (8, 8), (200, 60, 30))
    for ending, mode in (("jpg", "CMYK"), ("tif", "CMYK"), ("tif", "YCbCr"), ("tif", "RGBX")):
        pixels = _pixels(_save(tmp_path / f"x.{ending}", colors.convert(mode)))
        assert np.abs(pixels.astype(int) - (200, 60, 30)).max() <= 6, mode
    assert set(_pixels(_save(tmp_path / "x.png", Image.fromarray(RAMP).convert("1"))).ravel()) == {0, 255}


def test_lab(tmp_path: Path) -> None:
    gray = Image.merge("LAB", [Image.new("L", (8, 8), v) for v in (255, 128, 128)])
    assert _pixels(_save(tmp_path / "x.tif", gray)).min() > 250


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_is_dropped_and_the_color_under_it_shows(tmp_path: Path, mode: str) -> None:
    color = (102, 102, 102)
    image = Image.new("RGB", (8, 8), color).convert(mode)
    image.putalpha(0)
    path = _save(tmp_path / ("x.tif" if mode == "PA" else "x.png"), image)
    assert (_pixels(path) == color).all()


def test_transparent_palette_colors_show(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    for transparency in (1, bytes([255, 0])):
        path = _save(tmp_path / "x.png", image, transparency=transparency)
        assert (_pixels(path) == (10, 20, 30)).all()
    assert (_pixels(_save(tmp_path / "x.gif", image, transparency=1)) == (10, 20, 30)).all()


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tif"])
def test_of_several_pictures_the_first_is_read(tmp_path: Path, ending: str) -> None:
    first, second = Image.new("RGB", (8, 8), (250, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 250))
    options = {"lossless": True} if ending == "webp" else {}
    path = _save(tmp_path / f"x.{ending}", first, save_all=True, append_images=[second], **options)
    assert (_pixels(path) == (250, 0, 0)).all()


def test_one_format_under_the_name_of_another(tmp_path: Path) -> None:
    image = Image.fromarray(np.stack([RAMP] * 3, 2))
    for ending in ("png", "webp", "gif", "bmp"):
        path = _save(tmp_path / f"x.{ending}", image, **({"lossless": True} if ending == "webp" else {}))
        path = path.rename(tmp_path / f"{ending}.jpg")
        assert np.array_equal(_pixels(path), np.asarray(image))


def test_formats_that_would_start_programs_are_no_images_here(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    _named(path, "not an image in one of the formats JPEG, PNG")


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_one_pixel_images_and_slivers(tmp_path: Path, cache: str) -> None:
    root = _folder(tmp_path / "one", size=(1, 1))
    assert _train(root, tmp_path, "--cache", cache, "--crop", "random") == 0
    root = _folder(tmp_path / "sliver", each=1, size=(1, 3000))
    data = load_dataset("imagefolder", data_path=root, img_size=32, cache=cache)
    loader = BatchLoader(
        data.val, batch_size=2, transform=EvalTransform(32, data.mean, data.std, 0.5), train=False, num_workers=0
    )
    assert [x.shape for x, _ in loader.epoch()] == [(2, 3, 32, 32)]


# Huge


def test_large_images_are_read_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)  # Pillow warns above it, and refuses above twice as many
    path = _save(tmp_path / "x.png", Image.fromarray(RAMP))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert _pixels(path).shape == (3, 256, 3)
    assert not caught
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    _named(path, "its header declares more than 600 pixels")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.png", _png(2**31 - 1, 2**31 - 1, bits=8, color=2, data=b"")),
        ("x.bmp", b"BM" + struct.pack("<IIIIiiHHIIIIII", 60, 0, 54, 40, 2**31 - 1, 2**30, 1, 24, *[0] * 6)),
        ("x.pgm", b"P5 999999999 999999999 255\n"),
        ("x.gif", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\xff\xff\xff\xff\0\x08\0;"),
        ("x.tif", _tiff("<", 2**31, 2**31, bits=8, photometric=1, data=b"abc")),
    ],
)
def test_absurd_sizes_in_a_header_take_no_memory(tmp_path: Path, name: str, content: bytes) -> None:
    import tracemalloc

    (tmp_path / name).write_bytes(content)
    tracemalloc.start()
    _named(tmp_path / name, rf"{name}: unreadable image \(its header declares more than 178,956,970 pixels\)")
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()


# Damage


def test_damaged_files_are_read_or_named(tmp_path: Path) -> None:
    """A short form of `reliability.image_damage`, in this process."""
    rng = np.random.default_rng(0)
    for ending, whole in image_damage.valid_files().values():
        path = tmp_path / f"x.{ending}"
        path.write_bytes(whole)
        assert image_damage.outcome(str(path)) == image_damage.READ
        for _ in range(25):
            path.write_bytes(image_damage.damage(whole, rng))
            assert image_damage.outcome(str(path)) in (image_damage.READ, image_damage.NAMED)


def test_what_libtiff_prints_is_not_seen_beside_the_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = _save(tmp_path / "x.tif", Image.fromarray(RAMP), compression="tiff_lzw")
    content = bytearray(path.read_bytes())
    content[8:200] = bytes(192)
    path.write_bytes(content)
    _named(path, r"x\.tif: unreadable image")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("error", [struct.error, zlib.error, IndexError, OverflowError, KeyError, AssertionError])
def test_whatever_a_plugin_raises_becomes_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def breaks(*args: object, **kwargs: object) -> None:
        raise error("a message\nof two lines")

    path = _save(tmp_path / "x.png", Image.fromarray(RAMP))
    monkeypatch.setattr(Image, "open", breaks)
    _named(path, r"x\.png: unreadable image .*a message.*of two lines.*replace or remove this file")


def test_missing_memory_is_no_fault_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = _folder(tmp_path)
    monkeypatch.setattr("vit_core.data.sources.decode_all", _no_memory)
    assert isinstance(load_dataset("imagefolder", data_path=root, img_size=16).train, DiskSource)
    with pytest.raises(UserError, match="out of memory; use --cache disk"):
        load_dataset("imagefolder", data_path=root, img_size=16, cache="memory")
    monkeypatch.setattr("vit_core.data.images._rgb", _no_memory)
    with pytest.raises(UserError, match=r"train/a/0\.png: out of memory while decoding"):
        load_dataset("imagefolder", data_path=root, img_size=16, skip_broken=True)


def _no_memory(*args: object) -> None:
    raise MemoryError


# Names and links


def test_names_with_spaces_dashes_quotes_other_letters_and_no_letters_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = ("-rf", "--help", "a  b", 'it\'s "quoted"', "%s{x}$HOME", "猫 é", "نمی\u200cخواهم")
    root = _folder(tmp_path / "im ages é", classes, each=1)
    latin = os.fsdecode(os.fsencode(root / "train" / "-rf") + b"/caf\xe9 1.png")
    shutil.copy(root / "train" / "-rf" / "0.png", latin)
    assert _train(root, tmp_path, "--cache", "disk", "--skip-broken") == 0
    (run,) = (tmp_path / "checkpoints").iterdir()
    assert torch.load(run / "best.pth", weights_only=True)["config"]["class_names"] == sorted(classes)
    assert toy_paper.evaluate(["--checkpoint", str(run / "best.pth")]) == 0
    capsys.readouterr()
    Path(latin).write_bytes(b"")
    assert _train(root, tmp_path, "--cache", "disk") == 2
    assert r"caf\udce9 1.png: unreadable image" in _one_line(capsys)
    assert _train(root, tmp_path, "--cache", "disk", "--skip-broken") == 0
    assert r"caf\udce9 1.png: not an image" in capsys.readouterr().out


def test_figures_show_names_as_they_are(tmp_path: Path) -> None:
    """matplotlib takes what stands between two dollars for a formula, and fails on a name that is not in UTF-8."""
    names = ["a$_$b", "\\$ $\\frac$"]
    confusion_picture(torch.eye(2), torch.arange(2), names, tmp_path / "classes.png")
    maps = {name: torch.rand(2, 2) for name in names}
    figure_of_maps(torch.rand(3, 8, 8), maps, tmp_path / "maps.png", title=names[0] + os.fsdecode(b"caf\xe9"))


@pytest.mark.parametrize("name", [b"two\nlines", b"caf\xe9", b"bell\x07", "line\u2028separator".encode()])
def test_class_names_that_no_report_could_show_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: bytes
) -> None:
    root = _folder(tmp_path / "images", each=1)
    (root / "train" / "a").rename(os.fsdecode(os.fsencode(root / "train") + b"/" + name))
    assert _train(root, tmp_path) == 2
    assert "the class name has control characters or is not UTF-8; rename this folder" in _one_line(capsys)


def test_links_to_folders_inside_a_class_are_refused_and_classes_may_be_links(tmp_path: Path) -> None:
    _folder(tmp_path)
    train = tmp_path / "train"
    _save(tmp_path / "elsewhere" / "9.png", Image.fromarray(RAMP))
    (train / "c").symlink_to(tmp_path / "elsewhere")
    (train / "a" / "9.png").symlink_to(tmp_path / "elsewhere" / "9.png")
    paths, labels, names = scan_classes(train)
    assert names == ("a", "b", "c")
    assert [str(Path(p).relative_to(train)) for p in paths] == [
        *(f"a/{i}.png" for i in range(4)),
        "a/9.png",
        *(f"b/{i}.png" for i in range(4)),
        "c/9.png",
    ]
    assert labels == [0] * 5 + [1] * 4 + [2]
    (train / "a" / "more").mkdir()
    for name, target in (("self", "."), ("up", ".."), ("more/back", "../more"), ("there", str(tmp_path / "elsewhere"))):
        (train / "a" / name).symlink_to(target)
        with pytest.raises(UserError, match=f"train/a/{name}: links to folders are not followed"):
            scan_classes(train)
        (train / "a" / name).unlink()


def test_pipes_and_links_to_them_are_no_images(tmp_path: Path) -> None:
    """To open a pipe would wait for ever."""
    _folder(tmp_path, each=1)
    os.mkfifo(tmp_path / "train" / "a" / "pipe.jpg")
    (tmp_path / "train" / "a" / "link.jpg").symlink_to("pipe.jpg")
    (tmp_path / "train" / "a" / "null.jpg").symlink_to("/dev/null")
    assert len(scan_classes(tmp_path / "train")[0]) == 2
    with pytest.raises(UserError, match="no such file or folder"):
        find_images(tmp_path / "train" / "a" / "pipe.jpg", 1)


def test_links_that_lead_nowhere_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = _folder(tmp_path / "images")
    a = root / "train" / "a"
    (a / "gone.jpg").symlink_to(tmp_path / "gone")
    (a / "loop.jpg").symlink_to("loop.jpg")
    _named(a / "gone.jpg", "a link to a missing file")
    _named(a / "loop.jpg", "a link that points to itself")
    data = load_dataset("imagefolder", data_path=root, img_size=16, skip_broken=True)
    assert list(data.left_out[0].broken) == [str(a / "gone.jpg"), str(a / "loop.jpg")]
    for link in (a / "disk2", root / "train" / "c"):
        link.symlink_to(link.name)
        assert _train(root, tmp_path) == 2
        assert f"{link}: broken link" in _one_line(capsys)
        link.unlink()


def test_a_folder_that_may_not_be_read_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _folder(tmp_path / "images")
    (root / "train" / "a" / "secret").mkdir()
    real = os.scandir

    def forbidden(path: str) -> object:  # permissions do not hold for root, as which tests may run
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    assert _train(root, tmp_path) == 2
    assert "train/a/secret: this folder cannot be read (Permission denied)" in _one_line(capsys)


def test_a_file_in_the_place_of_a_class_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = _folder(tmp_path / "images")
    shutil.rmtree(root / "val" / "b")
    (root / "val" / "b").write_text("")
    assert _train(root, tmp_path) == 2
    assert f"{root / 'val' / 'b'} is a file; expected a folder with the images of class 'b'" in _one_line(capsys)


def test_one_long_path_does_not_widen_the_table_of_all(tmp_path: Path) -> None:
    paths = [f"{i}.png" for i in range(2000)] + ["x" * 4000, "é \udcff.png"]
    source = DiskSource(paths, [0] * 2002)
    assert [str(source.path(i)) for i in (0, 1999, 2000, 2001)] == [paths[i] for i in (0, 1999, 2000, 2001)]
    assert len(source._names) + source._ends.nbytes < 60_000


def test_each_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = _folder(tmp_path)
    listed: list[str] = []
    monkeypatch.setattr(os, "scandir", lambda path, real=os.scandir: listed.append(str(path)) or real(path))
    load_dataset("imagefolder", data_path=root, img_size=16, cache="disk")
    assert sorted(listed) == sorted(str(root / f) for f in ("train", "train/a", "train/b", "val", "val/a", "val/b"))


def test_what_the_index_benchmark_measures(tmp_path: Path) -> None:
    folder_index.make_folder(tmp_path, 31, 3)
    assert folder_index.index(tmp_path) == folder_index.walk(tmp_path) == 31


def test_a_home_that_nobody_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _train(Path("~nobody-of-this-name/x"), tmp_path) == 2
    assert "~nobody-of-this-name/x: " in _one_line(capsys)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[" * 100_000, "not a JSON object"),
        ("[1]", "not a JSON object"),
        ('{"a": "two\\nlines"}', "cannot be printed"),
        ('{"a": "\\ud800"}', "cannot be printed"),
        (b"\xff\xfe{".decode("latin-1"), "not a JSON object"),
    ],
)
def test_tables_of_names_that_are_none(tmp_path: Path, table: str, message: str) -> None:
    _folder(tmp_path, each=1)
    (tmp_path / "Labels.json").write_bytes(table.encode("latin-1"))
    with pytest.raises(UserError, match=rf"Labels\.json: .*{message}"):
        load_dataset("imagenet100", data_path=tmp_path, img_size=16)


# --skip-broken


def _break(root: Path) -> list[Path]:
    broken = [root / "train" / "a" / "1.png", root / "train" / "b" / "3.png", root / "val" / "b" / "0.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:60])
    return broken


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_broken_images_are_left_out_and_the_others_keep_their_order(tmp_path: Path, cache: str) -> None:
    root = _folder(tmp_path)
    whole = load_dataset("imagefolder", data_path=root, img_size=16, cache="memory").train.images  # type: ignore[attr-defined]
    broken = _break(root)
    with pytest.raises(UserError, match=r"replace or remove this file, or use --skip-broken"):
        load_dataset("imagefolder", data_path=root, img_size=16, cache="memory")
    data = load_dataset("imagefolder", data_path=root, img_size=16, cache=cache, skip_broken=True)
    assert [list(part.broken) for part in data.left_out] == [list(map(str, broken[:2])), [str(broken[2])]]
    assert data.train.labels.tolist() == [0] * 3 + [1] * 3
    assert data.val.labels.tolist() == [0] * 4 + [1] * 3
    if cache == "memory":
        assert torch.equal(data.train.images, whole[[0, 2, 3, 4, 5, 6]])  # type: ignore[attr-defined]
    told = load_dataset("imagefolder", data_path=root, img_size=16, cache=cache, skip_broken=set(map(str, broken)))
    assert (len(told.train), len(told.val)) == (6, 7)


def test_training_and_evaluation_say_what_they_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = _folder(tmp_path / "images")
    _break(root)
    assert _train(root, tmp_path, "--cache", "disk") == 2
    assert "--skip-broken" in _one_line(capsys)
    assert _train(root, tmp_path, "--cache", "disk", "--skip-broken") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert line.startswith(f"left out: 2 of 8 images in {root / 'train'} cannot be read ({root / 'train/a/1.png'}: ")
    assert f"; 1 of 8 images in {root / 'val'} cannot be read" in line
    (run,) = (r for r in (tmp_path / "checkpoints").iterdir() if (r / "best.pth").is_file())
    for argv in ([], ["--skip-broken"], ["--dataset", "imagefolder", "--data-path", str(root)]):
        assert toy_paper.evaluate(["--checkpoint", str(run / "best.pth"), *argv]) == 0
        assert "1 of 8 images" in capsys.readouterr().out
    assert toy_paper.train(str(tmp_path), "--resume", str(run / "last.pth"), "--epochs", "2") == 0
    assert "left out: 2 of 8" in capsys.readouterr().out


def test_the_other_processes_leave_out_what_the_main_one_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else processes that disagree would have sets of different length, and wait for one another."""
    root = _folder(tmp_path)
    found = [str(root / "train" / "b" / "2.png"), str(root / "val" / "a" / "0.png")]
    monkeypatch.setattr(images, "broadcast", lambda value: frozenset(found))
    monkeypatch.setattr("vit_core.data.datasets.find_broken", _no_memory)
    config = DataConfig(dataset="imagefolder", data_path=str(root), skip_broken=True)
    data = images.load_images(config, 16, World(1, 2, torch.device("cpu"), 1))
    assert data.train.labels.tolist() == [0] * 4 + [1] * 3
    assert data.val.labels.tolist() == [0] * 3 + [1] * 4
    assert capsys.readouterr().out == ""


def test_a_class_without_a_readable_image_is_an_error(tmp_path: Path) -> None:
    root = _folder(tmp_path, each=1)
    (root / "val" / "b" / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"val: no image of class 'b' can be read; the first is .*b/0\.png"):
        load_dataset("imagefolder", data_path=root, img_size=16, skip_broken=True)


def test_what_has_no_image_files_has_nothing_to_leave_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert load_dataset("digits", img_size=32, skip_broken=True).left_out == ()
    assert toy_paper.train(str(tmp_path), "--epochs", "1", "--skip-broken") == 0
    assert "left out" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["imagenet", "imagenet100", "intel", "tiny_imagenet"])
def test_other_folders_leave_out_too(tmp_path: Path, name: str) -> None:
    root = _folder(tmp_path)
    _break(root)
    if name == "intel":
        for ours, theirs in (("train", "seg_train"), ("val", "seg_test")):
            (root / ours).rename(root / theirs)
    data = load_dataset(name, data_path=root, img_size=16, skip_broken=True)
    assert [(len(part.broken), part.images) for part in data.left_out] == [(2, 8), (1, 8)]


# Archives


def _zip(path: Path, add: Callable[[zipfile.ZipFile], None]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        add(z)
    return path


def _link(z: zipfile.ZipFile, name: str, target: str) -> None:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o120777 << 16
    z.writestr(info, target)


def test_links_and_members_outside_of_an_archive_lead_nowhere(tmp_path: Path) -> None:
    def add(z: zipfile.ZipFile) -> None:
        _link(z, "out", "..")
        _link(z, "abs", "/")
        z.writestr("fine.txt", "fine")
        for name in ("a/../../escaped", "c:/escaped", "//host/escaped", "/escaped"):
            z.writestr(name, "escaped")

    folder = tmp_path / "folder"
    tiny_imagenet.extract_archive(str(_zip(tmp_path / "x.zip", add)), str(folder))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "x.zip"]
    assert not any(p.is_symlink() for p in folder.iterdir())
    assert all(p.is_relative_to(folder) for p in tmp_path.rglob("escaped"))


@pytest.mark.parametrize("line", ["0.png\t..", "../0.png\ta", "0.png\t", "0.png\ta\0b", "0.png\t" + "a" * 300, "\xff"])
def test_annotations_that_would_move_images_elsewhere(tmp_path: Path, line: str) -> None:
    _save(tmp_path / "val" / "images" / "0.png", Image.fromarray(RAMP))
    (tmp_path / "val" / "val_annotations.txt").write_bytes((line + "\n").encode("latin-1"))
    with pytest.raises(UserError, match=r"val_annotations\.txt: invalid line"):
        tiny_imagenet.sort_val(tmp_path / "val")
    assert (tmp_path / "val" / "images" / "0.png").is_file()
