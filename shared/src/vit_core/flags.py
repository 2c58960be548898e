"""Command lines built from dataclasses: each field defines one flag with its default and help text.

A script builds an `ArgumentParser`, adds the flags of its config dataclasses with `add_flags`, and decorates its
main function with `command`, which turns a `UserError` into one line on stderr and exit code 2.
"""

import argparse
import dataclasses
import errno
import functools
import io
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from vit_core.errors import UserError
from vit_core.files import full_disk, is_full

_OS_ADVICE = {
    errno.ENOENT: "no such file or folder",
    errno.EEXIST: "a file of that name already exists",
    errno.EISDIR: "this is a folder, not a file",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.ENOSPC: "the disk is full: free some space",
    errno.EPIPE: "the program reading the output has closed it",
    errno.EFBIG: "the file would exceed the maximum file size",
    errno.ENAMETOOLONG: "this name is too long",
    errno.ELOOP: "the symbolic links form a loop",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "permission denied: choose a folder that you may write to",
    errno.EPERM: "operation not permitted: choose a folder that you may write to",
}


def flag(default: Any, help: str, *, choices: Sequence[str] | None = None, bare: str | None = None) -> Any:
    """A dataclass field that is also a command-line flag of the same name.

    bare: the value when the flag is given without one; if set, `--no-NAME` means "off".
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "bare": bare})


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser that accepts `--batch-size` and `--batch_size` and exits with code 2 and a one-line error.

    source: where the arguments come from, if not from the command line; errors are then UserErrors that name it.
    """

    source: str | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        args = sys.argv[1:] if args is None else list(args)
        for name, _, value in (a.partition("=") for a in args if a.startswith("--")):
            if value == "--":  # argparse would pass on an empty list
                self.error(f"argument {name}: expected a value, not --")
        return super().parse_known_args([_hyphens(a) for a in args], namespace)

    def error(self, message: str) -> NoReturn:
        message = " ".join(message.split())  # arguments may contain line breaks
        if self.source is not None:
            raise UserError(f"{self.source}: {message}")
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _hyphens(arg: str) -> str:
    if not arg.startswith("--"):
        return arg
    name, sep, value = arg.partition("=")
    return name.replace("_", "-") + sep + value


def add_flags(
    parser: argparse.ArgumentParser, config: type, title: str, aliases: Mapping[str, str] = types.MappingProxyType({})
) -> None:
    """Add one flag for each field of the dataclass `config`; `aliases`: alternative flag name -> field.

    Flags that are not given are left out of the namespace (`argparse.SUPPRESS`), so that a preset or the
    configuration of a resumed run can supply them; the field's default is shown in the help.
    """
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(config)
    for f in dataclasses.fields(config):
        if "help" not in f.metadata:
            continue
        meta = f.metadata
        default = "" if f.default is None else f" (default: {f.default})"
        options: dict[str, Any] = {
            "help": (meta["help"] + default).replace("%", "%%"),
            "default": argparse.SUPPRESS,
        }
        name = "--" + f.name.replace("_", "-")
        kind = _plain_type(hints[f.name])
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": kind, "choices": meta["choices"]}
            if meta["choices"] is None:
                options["metavar"] = kind.__name__.upper() if kind in (int, float) else "VALUE"
            if meta["bare"] is not None:
                options |= {"nargs": "?", "const": meta["bare"]}
                group.add_argument(
                    "--no-" + name[2:], dest=f.name, action="store_const", const="off", default=argparse.SUPPRESS,
                    help=f"same as {name} off",
                )  # fmt: skip
        others = ["--" + theirs.replace("_", "-") for theirs, ours in aliases.items() if ours == f.name]
        group.add_argument(name, *others, dest=f.name, **options)


def _plain_type(hint: Any) -> Any:
    """`float | None` -> float; to keep the None of an optional field, omit its flag."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = [t for t in typing.get_args(hint) if t is not types.NoneType]
    return str if typing.get_origin(hint) is typing.Literal else hint


def build(config: type, values: Mapping[str, Any]) -> Any:
    """Construct the dataclass from the matching entries of `values`; its ValueErrors become UserErrors."""
    names = {f.name for f in dataclasses.fields(config)}
    try:
        return config(**{k: v for k, v in values.items() if k in names})
    except (ValueError, TypeError) as e:
        raise UserError(str(e)) from e


def output_file(text: str) -> Path:
    """The output file that a flag names. Raises UserError before any work is done if it cannot be written."""
    path = Path(text)
    if not path.parent.is_dir():
        raise UserError(f"{path}: {path.parent} is not a folder")
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"{path}: permission denied: choose a folder that you may write to")
    return path


def is_out_of_memory(error: Exception) -> bool:
    """Whether the error is a torch.OutOfMemoryError (matched by name, so `--help` does not import torch), a
    MemoryError, or a failure of torch's CPU allocator.
    """
    names = (type(error).__name__, str(error))
    return isinstance(error, MemoryError) or names[0] == "OutOfMemoryError" or "DefaultCPUAllocator" in names[1]


def command(main: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """Decorate a script's `main(argv=None) -> int` so that user errors print one line and exit with code 2."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):  # class and file names may not be printable in this encoding
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return main(argv)
        except UserError as e:
            message = str(e)
        except OSError as e:
            if e.errno is None:  # raised by a library, not by the operating system
                raise
            if isinstance(e, BrokenPipeError):  # the flush at exit would fail again
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if is_full(e) and e.filename:
                message = full_disk(Path(e.filename), e)
            else:
                message = f"{e.filename or 'output'}: {_OS_ADVICE.get(e.errno, e.strerror)}"
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e):
                raise
            message = "out of memory: try a smaller --batch-size"
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return 2

    return wrapped
