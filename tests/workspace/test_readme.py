"""The root README's table of claims is what the checks give now."""

import re
from pathlib import Path

from vit_core.claims import KINDS, VERDICTS, count
from vit_core.papers import load_papers
from vit_core.reproduce.steps import verdicts_of

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAPERS, BROKEN = load_papers()
ROWS = {
    name: [int(n) for n in numbers.split(" | ")]
    for name, numbers in re.findall(r"^\|[^|]*\| \[`(\w+)`\]\([^)]*\) \| ([\d |]+) \|$", README, re.MULTILINE)
}


def test_every_paper_has_its_row():
    assert not BROKEN
    assert ROWS.keys() == PAPERS.keys(), "a row a paper"
    assert f"**{sum(row[0] for row in ROWS.values())} claims" in README


def cells(verdicts):
    counts = count(verdicts)
    assert counts["error"] == 0
    return [len(verdicts), *(counts[v] for v in VERDICTS if v != "error")]


def test_the_tables_count_what_the_checks_give():
    verdicts = {name: verdicts_of(paper, lambda share, what: None) for name, paper in PAPERS.items()}
    assert {name: cells(v) for name, v in verdicts.items()} == ROWS
    everything = [v for paper in verdicts.values() for v in paper]
    of_kind = dict(re.findall(r"^\| (\w+) \|[^|]*\| ([\d |]+) \|$", README, re.MULTILINE))
    assert of_kind.keys() == set(KINDS)
    for kind, numbers in of_kind.items():
        assert [int(n) for n in numbers.split(" | ")] == cells([v for v in everything if v.claim.kind == kind]), kind


def test_its_links_and_pictures_are_there():
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
