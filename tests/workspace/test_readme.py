"""The root README's table of claims is what the checks give now."""

import re
from pathlib import Path

import pytest

from vit_core.claims import VERDICTS, count
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
    assert ROWS.keys() == PAPERS.keys()
    assert f"**{sum(row[0] for row in ROWS.values())} of their claims" in README


@pytest.mark.parametrize("name", PAPERS)
def test_the_table_counts_what_the_checks_give(name):
    counts = count(verdicts_of(PAPERS[name], lambda share, what: None))
    assert counts["error"] == 0
    assert ROWS[name] == [sum(counts.values()), *(counts[v] for v in VERDICTS if v != "error")]


def test_its_links_and_pictures_are_there():
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
