"""Run a training script as one rank of torchrun, and note each file that it opens to write, makes or renames.

    torchrun … -m reliability.watched_rank FOLDER MODULE [flags]

FOLDER/rank_<r>.txt gets a line each for what happens under FOLDER; nothing else differs from running MODULE.
"""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink", "os.truncate", "os.rmdir")


def watch(folder: str) -> None:
    notes = os.open(f"{folder}/rank_{os.environ['RANK']}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def look(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            written = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            written = event in CHANGES
        if written and isinstance(args[0], str | Path) and str(args[0]).startswith(folder):
            os.write(notes, f"{event} {args[0]}\n".encode())

    sys.addaudithook(look)


if __name__ == "__main__":
    watch(sys.argv[1])
    sys.exit(importlib.import_module(sys.argv[2]).main(sys.argv[3:]))
