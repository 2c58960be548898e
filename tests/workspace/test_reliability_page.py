"""docs/reliability.md: its commands can be given, and its figures are those of the records in results/."""

import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
RECORDS = ROOT / "results" / "2026-11-27" / "reliability"


def record(name: str) -> dict[str, Any]:
    return json.loads((RECORDS / f"{name}.json").read_text())


def commands() -> list[list[str]]:
    found = re.findall(r"^uv run python -m (reliability\.\S+)(.*?)(?:\s+#.*)?$", PAGE, re.MULTILINE)
    return [[module, *shlex.split(flags)] for module, flags in found]


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words))
def test_each_command_can_be_given(words, capsys):
    module, *given = words
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(module).main(["--help"])
    known = capsys.readouterr().out
    assert all(word in known for word in given if word.startswith("--"))


def test_every_script_is_on_the_page():
    scripts = {f.stem for f in (ROOT / "reliability").glob("*.py") if "def main(" in f.read_text()}
    assert {module.partition(".")[2] for module, *_ in commands()} == scripts


def test_its_figures_are_those_of_the_records():
    kill, term = record("kill"), record("term")
    for name, found in (("SIGKILL", kill), ("SIGTERM", term)):
        cells = [
            *(found["kills"], found["trainings"], found["starts"], found["before_the_first_checkpoint"]),
            *(found["left_half_a_file"], found["after_the_last_checkpoint"], len(found["differences"])),
        ]
        assert f"| {name} | {' | '.join(map(str, cells))} |" in PAGE
    damage = record("checkpoint_damage")
    for kind, count in damage["counts"].items():
        what, _, became = kind.partition(": ")
        assert f"| {what} | {count} | {became} |" in PAGE
    assert damage["wrong"] == []
    for what, good in record("disks")["findings"].items():
        assert good
        assert f"- {what}\n" in PAGE
    processes = record("processes")
    assert processes["wrong"] == []
    for count in (1, 2, 4):
        found = processes["findings"]
        line = [
            f"{found[f'{count} processes: largest relative difference of a figure']:.1e}",
            f"{found[f'{count} processes: largest difference of a weight']:.1e}",
            f"{found[f'{count} processes: images evaluated']}",
            f"{found[f'{count} processes: files changed by rank 0']}",
            f"{found[f'{count} processes: files changed by others']}",
        ]
        assert f"| {count} | {' | '.join(line)} |" in PAGE
    for name, found in record("memory").items():
        if name != "environment":
            assert f"| {name} | {found['MiB at the end']} | {found['MiB in 100 epochs']:+.2f} |" in PAGE
    index, images = record("folder_index"), record("image_damage")
    assert f"{index['files']:,} files in {index['seconds']:.2f} s" in PAGE
    assert f"{index['peak_mib']} MiB" in PAGE
    assert f"{images['files']:,} damaged files" in PAGE


def test_nothing_is_left_to_fill_in():
    assert not re.findall(r"@\w+@", PAGE)
