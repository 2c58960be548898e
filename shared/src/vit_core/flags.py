"""Command lines from dataclasses: each field made by `flag` is one flag.

A script describes its flags in a dataclass and reads them with `parse`. Training uses `given`, which returns only the
flags that were given, so that presets and checkpoints supply the others, and `checked` for the values of a file. tyro
reads the command line, pydantic checks a file's values, both by the same types. `command` decorates a script's main
function: a `UserError` becomes one line on stderr and exit code 2.
"""

import contextlib
import dataclasses
import errno
import functools
import inspect
import io
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

import tyro
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

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
REQUIRED: Any = dataclasses.MISSING  # default of a flag that must be given
Config = TypeVar("Config")
P = ParamSpec("P")


def flag(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    bare: str | None = None,
    aliases: Sequence[str] = (),
    metavar: str | None = None,
    positional: bool = False,
    repeat: bool = False,
    least: int | None = None,
    output: bool = False,
) -> Any:
    """A dataclass field that is also a command-line flag of the same name.

    Args:
        default: of the field; REQUIRED if the flag must be given.
        bare: the value when the flag is given without one. If "off" is among the choices, `--no-NAME` means it.
        aliases: further names of the flag.
        positional: given without a name.
        repeat: for a tuple that gets one value each time the flag is given, as in `--paper a --paper b`.
        least: the smallest number that is allowed.
        output: the value is a file to write; it must be writable before any work is done.
    """
    metadata: dict[str, Any] = {"help": help, "choices": choices, "bare": bare, "aliases": aliases, "metavar": metavar}
    metadata |= {"positional": positional, "repeat": repeat, "least": least, "output": output}
    return dataclasses.field(default=default, metadata=metadata)


Flag = dataclasses.Field[Any]
Groups = Mapping[str, type]  # title in the help -> dataclass of flags


def flags_of(groups: Groups) -> dict[str, Flag]:
    """The fields of all groups that are flags, by name; a class's own come before those of its parents."""
    found: dict[str, Flag] = {}
    for config in groups.values():
        fields = {f.name: f for f in dataclasses.fields(config) if "help" in f.metadata}
        names = (name for parent in config.__mro__ for name in inspect.get_annotations(parent))
        found |= {name: fields[name] for name in dict.fromkeys(names) if name in fields}
    return found


def adapted(
    config: type, aliases: Mapping[str, str], defaults: Mapping[str, Any], without: Collection[str] = ()
) -> type:
    """The dataclass's flags with further names (name -> field) and other defaults; `without`: fields to leave out."""
    hints = typing.get_type_hints(config)
    fields = []
    for name, f in flags_of({"": config}).items():
        if name in without:
            continue
        more = (alias for alias, meant in aliases.items() if meant == name and alias not in without)
        metadata = {**f.metadata, "aliases": (*f.metadata["aliases"], *more)}
        default = defaults.get(name, f.default)
        fields.append((name, hints[name], dataclasses.field(default=default, metadata=metadata)))
    return dataclasses.make_dataclass(config.__name__, fields, kw_only=True)


def spelled(name: str) -> str:
    """batch_size -> --batch-size"""
    return "--" + name.replace("_", "-")


def parse(config: type[Config], argv: Sequence[str] | None, prog: str) -> Config:
    """The dataclass filled from the command line; its docstring is the description in the help.

    UserError for unknown flags and invalid values.
    """
    return build(config, given({"": config}, argv, prog, description_of(config)))


def description_of(config: type) -> str:
    """What a dataclass's docstring says, on one line for each paragraph."""
    return "\n\n".join(" ".join(part.split()) for part in (inspect.getdoc(config) or "").split("\n\n"))


def given(groups: Groups, argv: Sequence[str] | None, prog: str, description: str) -> dict[str, Any]:
    """The values of the flags in `argv` (default: the process's); flags that are not there are left out.

    UserError for unknown flags and invalid values.
    """
    fields = flags_of(groups)
    typed = {title: _typed(config) for title, config in groups.items()}
    box = io.StringIO()
    repeated: dict[str, tuple[str, ...]] = {}
    try:
        words, repeated = _explicit(sys.argv[1:] if argv is None else argv, fields)
        with contextlib.redirect_stderr(box):
            parsed: Mapping[str, Mapping[str, Any]] = tyro.cli(
                TypedDict("Flags", typed),  # type: ignore[operator]
                args=words,
                prog=prog,
                description=description,
                config=(tyro.conf.OmitArgPrefixes,),
            )
        values = {name: value for group in parsed.values() for name, value in group.items()} | repeated
        for name, field in fields.items():
            if name not in values and field.default is REQUIRED:
                raise UserError(f"{name if field.metadata['positional'] else spelled(name)} is required")
            if values.get(name) == () and field.default is not None:  # None: an empty one may mean something
                raise UserError(f"{spelled(name)}: expected at least one value")
    except SystemExit as e:
        if not e.code:  # --help
            raise
        raise UserError(f"{_one_line(box.getvalue())} (see {prog} --help)") from None
    except UserError as e:
        raise UserError(f"{e} (see {prog} --help)") from None
    return values


def checked(groups: Groups, values: Mapping[str, object]) -> dict[str, Any]:
    """The values of a file, by the names of their flags and of the flags' types. ValueError for any other."""
    fields = flags_of(groups)
    names = {alias.replace("-", "_"): f.name for f in fields.values() for alias in (f.name, *f.metadata["aliases"])}
    found: dict[str, object] = {}
    for key, value in values.items():
        name = names.get(str(key).replace("-", "_"))
        if name is None:
            raise ValueError(f"{key} is not a flag")
        bare = fields[name].metadata["bare"]
        if bare is not None and isinstance(value, bool):
            value = bare if value else "off"
        if value is not None:
            found[name] = value
    for config in groups.values():
        own = {f.name: found.pop(f.name) for f in flags_of({"": config}).values() if f.name in found}
        try:
            found |= TypeAdapter(_typed(config)).validate_python(own, strict=True)
        except ValidationError as e:
            first = e.errors()[0]
            raise ValueError(f"{first['loc'][0]}: {first['msg']}, got {first['input']!r:.80}") from None
    return found


def _typed(config: type) -> type:
    """A TypedDict of the dataclass's flags, all optional: the type that tyro reads and pydantic checks."""
    hints = typing.get_type_hints(config)
    return TypedDict(  # type: ignore[operator]
        config.__name__, {name: _annotated(f, hints[name]) for name, f in flags_of({"": config}).items()}, total=False
    )


def _annotated(field: Flag, hint: Any) -> Any:
    """The type of a flag's value when given, with what tyro shows: `float | None` -> float."""
    meta = field.metadata
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = (t for t in typing.get_args(hint) if t is not types.NoneType)
    if meta["repeat"]:  # each time one value; `_explicit` collects them
        (hint, _) = typing.get_args(hint)
    if meta["choices"] is not None:
        one = Literal[tuple(meta["choices"])]  # type: ignore[valid-type]
        hint = types.GenericAlias(tuple, (one, ...)) if typing.get_origin(hint) is tuple else one
    shown = field.default
    if isinstance(shown, tuple):
        shown = " ".join(map(str, shown))
    if shown is True:
        shown = "on"
    said = not any(shown is unsaid for unsaid in (REQUIRED, None, False)) and shown != ""
    alone = f"; alone: {meta['bare']}" if meta["bare"] else ""
    annotated: Any = Annotated[
        hint,
        tyro.conf.arg(
            help=re.sub(r" \(default: .*\)$", "", meta["help"]) if said else meta["help"],
            metavar=meta["metavar"],
            aliases=[spelled(alias) for alias in meta["aliases"]],
            help_behavior_hint=f"(default: {shown}{alone})" if said else "(required)" if shown is REQUIRED else "",
        ),
    ]
    return tyro.conf.Positional[annotated] if meta["positional"] else annotated  # type: ignore[misc]


def _explicit(words: Sequence[str], fields: Mapping[str, Flag]) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """The words, with a value after each flag that may be given without one; and all values of each repeated flag."""
    named = {spelled(name): f for f in fields.values() for name in (f.name, *f.metadata["aliases"])}
    off = {f"--no-{spelled(name)[2:]}": name for name, f in fields.items() if "off" in (f.metadata["choices"] or ())}
    found: list[str] = []
    repeated: dict[str, tuple[str, ...]] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        field = named.get(name)
        if equals and field is not None and field.type in (bool, bool | None):
            raise UserError(f"{name} takes no value: give {name} or --no-{name[2:]}")
        if word.replace("_", "-") in off:
            word = f"{spelled(off[word.replace('_', '-')])}=off"
        elif field is not None and field.metadata["bare"] is not None and not equals:
            if not rest or rest[0].startswith("-"):
                word = f"{name}={field.metadata['bare']}"
        elif field is not None and field.metadata["repeat"] and (equals or rest):
            repeated[field.name] = (*repeated.get(field.name, ()), value if equals else rest[0])
        found.append(word)
    return found, repeated


def _one_line(box: str) -> str:
    """What tyro's boxed error says, and the flags that it suggests."""
    text = " ".join(line.strip("│╰╯ ") for line in box.splitlines()[1:])  # without the title
    message, *more = (part.strip() for part in re.split("[─-]{4,}", text) if part.strip())
    advice = next((part for part in more if part.startswith("Perhaps")), "")
    close = dict.fromkeys(word.rstrip(",") for word in advice.split() if word.startswith("--") and word[-1] != ":")
    return message + (f"; did you mean {' or '.join(close)}?" if close else "")


def build(config: type[Config], values: Mapping[str, Any]) -> Config:
    """Construct the dataclass from the matching entries of `values`, after the checks that its flags ask for.

    Its ValueErrors become UserErrors.
    """
    names = {f.name for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    for name, field in flags_of({"": config}).items():
        value, least = values.get(name, field.default), field.metadata["least"]
        if value is None or value is REQUIRED:
            continue
        if least is not None and value < least:
            raise UserError(f"{spelled(name)} must be at least {least}, got {value}")
        if field.metadata["output"]:
            _check_output(value)
    try:
        return config(**{k: v for k, v in values.items() if k in names})
    except (ValueError, TypeError) as e:
        raise UserError(str(e)) from e


def _check_output(path: Path) -> None:
    """UserError if the output file that a flag names cannot be written."""
    if not path.parent.is_dir():
        raise UserError(f"{path}: {path.parent} is not a folder")
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"{path}: permission denied: choose a folder that you may write to")


def is_out_of_memory(error: Exception) -> bool:
    """Whether the error is a torch.OutOfMemoryError (matched by name, so `--help` does not import torch), a
    MemoryError, or a failure of torch's CPU allocator.
    """
    names = (type(error).__name__, str(error))
    return isinstance(error, MemoryError) or names[0] == "OutOfMemoryError" or "DefaultCPUAllocator" in names[1]


def command(main: Callable[P, int]) -> Callable[P, int]:
    """Decorate a script's `main(argv=None) -> int` so that user errors print one line and exit with code 2."""

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):  # class and file names may not be printable in this encoding
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return main(*args, **kwargs)
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
