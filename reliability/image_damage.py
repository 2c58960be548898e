"""What becomes of damaged images: each must be read, or named in one line.

    uv run python -m reliability.image_damage --files 20000 --seed 0 --json FILE

Small valid files of every format that the data sets read are damaged (bytes changed, cut off, taken out, put in) and
given to the functions that the data sets decode with, in a process of its own, so that a crash or an endless loop is
found too. Exit code 1 where a file was neither read nor named, where the ways to read it differ, where anything was
written past us to standard error, or where it took longer than --seconds.
"""

import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

from vit_core.data.images import decode_all, open_image
from vit_core.errors import UserError
from vit_core.flags import command, flag, parse
from vit_core.training.run_folder import environment

READ, NAMED = "read", "named"


def valid_files(side: int = 24) -> dict[str, tuple[str, bytes]]:
    """Kind -> (ending, the bytes of a whole file): the formats, and within them the ways to store pixels."""
    y, x = np.mgrid[:side, :side]
    colors = Image.fromarray(np.stack([x * 10, y * 10, (x + y) * 5], 2).astype(np.uint8))
    gray = colors.convert("L")
    palette = colors.quantize(16)
    deep = Image.fromarray((x * y * 100).astype(np.uint16))
    bits = gray.convert("1")
    clear = colors.convert("RGBA")
    frames = {"save_all": True, "append_images": [colors.rotate(90), colors.rotate(180)], "duration": 50}
    recipes: dict[str, tuple[str, Image.Image, str, dict[str, object]]] = {
        "JPEG": ("jpg", colors, "JPEG", {}),
        "JPEG progressive, with EXIF": ("jpg", colors, "JPEG", {"progressive": True, "exif": Image.Exif().tobytes()}),
        "JPEG gray": ("jpeg", gray, "JPEG", {}),
        "JPEG CMYK": ("jpg", colors.convert("CMYK"), "JPEG", {}),
        "JPEG several pictures": ("jpg", colors, "MPO", frames),
        "PNG": ("png", colors, "PNG", {}),
        "PNG palette, transparent": ("png", palette, "PNG", {"transparency": 3}),
        "PNG gray and alpha": ("png", clear.convert("LA"), "PNG", {}),
        "PNG 16 bits": ("png", deep, "PNG", {}),
        "PNG animated": ("png", colors, "PNG", frames),
        "BMP": ("bmp", colors, "BMP", {}),
        "BMP palette": ("bmp", palette, "BMP", {}),
        "PPM": ("ppm", colors, "PPM", {}),
        "PGM": ("pgm", gray, "PPM", {}),
        "PGM 16 bits": ("pgm", deep, "PPM", {}),
        "WebP": ("webp", colors, "WEBP", {}),
        "WebP lossless": ("webp", clear, "WEBP", {"lossless": True}),
        "WebP animated": ("webp", colors, "WEBP", frames),
        "TIFF": ("tif", colors, "TIFF", {}),
        "TIFF LZW": ("tiff", colors, "TIFF", {"compression": "tiff_lzw"}),
        "TIFF deflate, palette": ("tif", palette, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "TIFF JPEG": ("tif", colors, "TIFF", {"compression": "jpeg"}),
        "TIFF fax": ("tif", bits, "TIFF", {"compression": "group4"}),
        "TIFF 16 bits": ("tif", deep, "TIFF", {"compression": "packbits"}),
        "TIFF Lab": ("tif", Image.fromarray(np.asarray(colors), "RGB").convert("YCbCr"), "TIFF", {}),
        "GIF": ("gif", palette, "GIF", {}),
        "GIF animated": ("gif", colors, "GIF", frames),
    }
    files = {}
    for kind, (ending, image, image_format, options) in recipes.items():
        buffer = io.BytesIO()
        image.save(buffer, image_format, **options)
        files[kind] = (ending, buffer.getvalue())
    return files


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """The same file with one to four harms, more often near its start, where the formats keep their tables."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not out:
            break
        at = int(len(out) * rng.random() ** rng.integers(1, 4))
        length = int(rng.integers(1, 9))
        harm = rng.integers(8)
        if harm < 4:  # one byte
            out[at] = (int(rng.integers(256)), 0, 255, out[at] ^ (1 << int(rng.integers(8))))[harm]
        elif harm == 4:
            out[at : at + length] = rng.bytes(length)
        elif harm == 5:
            del out[at : at + length]
        elif harm == 6:
            out[at:at] = rng.bytes(length)
        else:
            del out[at:]
    return bytes(out)


def outcome(path: str) -> str:
    """`READ`, `NAMED`, or in words what else happened to the image."""
    try:
        pixels = np.asarray(open_image(path))
    except UserError as e:
        return NAMED if path in str(e) and "\n" not in str(e) else f"a message of another form: {e}"
    except MemoryError:
        return "out of memory"
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        return f"read as {pixels.dtype} {pixels.shape}"
    try:
        at_once = decode_all([path], pixels.shape[:2])[0].permute(1, 2, 0).numpy()
    except Exception as e:
        return f"read alone, but not with others: {type(e).__name__}: {e}"
    return READ if np.array_equal(pixels, at_once) else "read alone and with others with different pixels"


def _serve(requests: Connection, noise: str) -> None:
    """Target of a process: answer each path with its outcome; what comes on standard error goes to `noise`."""
    with Path(noise).open("a") as f:
        os.dup2(f.fileno(), 2)
    while path := requests.recv():
        requests.send(outcome(path))


class Reader:
    """A process that reads images, started again when one of them ends it."""

    def __init__(self, noise: Path, seconds: float) -> None:
        self._noise, self._seconds = noise, seconds
        self._start()

    def _start(self) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.Process(target=_serve, args=(theirs, str(self._noise)), daemon=True)
        self._process.start()
        theirs.close()

    def read(self, path: Path) -> str:
        """The outcome of the image, or how the process ended."""
        self._ours.send(str(path))
        try:
            if self._ours.poll(self._seconds):
                return str(self._ours.recv())
            self._process.kill()
            said = f"no answer in {self._seconds:g} s"
        except EOFError:
            said = "the process that read it crashed"
        self._process.join()
        self._start()
        return said

    def stop(self) -> None:
        self._ours.send(None)
        self._process.join()


def run(files: int, seed: int, seconds: float, keep: Path | None) -> dict[str, object]:
    """Damage and read `files` files; those with a wrong outcome are copied to `keep`."""
    kinds = valid_files()
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    wrong: list[str] = []
    slowest = (0.0, "")
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder, noise = Path(temporary), Path(temporary) / "noise"
        noise.touch()
        reader = Reader(noise, seconds)
        for i in range(files + len(kinds)):
            kind = list(kinds)[i % len(kinds)]
            ending, whole = kinds[kind]
            path = folder / f"image.{ending}"
            path.write_bytes(whole if i < len(kinds) else damage(whole, rng))
            heard, started = noise.stat().st_size, time.perf_counter()
            said = reader.read(path)
            slowest = max(slowest, (time.perf_counter() - started, f"{kind}, file {i}"))
            if noise.stat().st_size > heard:
                said = f"{said}; and on standard error: {noise.read_bytes()[heard:].decode(errors='replace').strip()}"
            if i < len(kinds) and said != READ:
                said = f"whole, and yet: {said}"
            if said not in (READ, NAMED):
                wrong.append(f"{kind}, file {i}: {said}")
                if keep:
                    (keep / f"{i}.{ending}").write_bytes(path.read_bytes())
            counts[kind]["damaged" if i >= len(kinds) else "whole"] += 1
            if i >= len(kinds):
                counts[kind][said if said in (READ, NAMED) else "wrong"] += 1
        reader.stop()
    return {
        "files": files,
        "seed": seed,
        "pillow": Image.__version__,
        "kinds": {k: dict(c) for k, c in counts.items()},
        "slowest": {"seconds": round(slowest[0], 2), "file": slowest[1]},
        "wrong": wrong,
    }


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Damage images of all formats, and read them."""

    files: int = flag(20_000, "damaged files")
    seed: int = flag(0, "random seed of the damage")
    seconds: float = flag(60.0, "longest time for one file")
    keep: Path | None = flag(None, "existing folder for the files with a wrong outcome", metavar="DIR")
    json: Path | None = flag(None, "write the findings to this JSON file", metavar="FILE", output=True)

    def __post_init__(self) -> None:
        if self.files < 1 or self.seconds <= 0:
            raise ValueError("--files and --seconds must be greater than 0")


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Flags, argv, "reliability.image_damage")
    if args.keep and not args.keep.is_dir():
        raise UserError(f"--keep {args.keep}: no such folder")
    result = run(args.files, args.seed, args.seconds, args.keep)
    if args.json:
        args.json.write_text(json.dumps(result | {"environment": environment()}, indent=2) + "\n")
    print(f"{'':30}{READ:>8}{NAMED:>8}{'wrong':>8}")
    for kind, counted in result["kinds"].items():  # type: ignore[attr-defined]
        print(f"{kind:30}" + "".join(f"{counted.get(key, 0):8}" for key in (READ, NAMED, "wrong")))
    wrong: list[str] = result["wrong"]  # type: ignore[assignment]
    for line in wrong[:20]:
        print(line)
    print(f"{args.files} damaged files, {len(wrong)} neither read nor named; the slowest: {result['slowest']}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
