"""The root README's table of claims is what the checks give now."""

import itertools
import re
from pathlib import Path

import pytest

from vit_core.ledger.claims import KINDS
from vit_core.ledger.verdicts import ERROR, VERDICTS, count, in_words
from vit_core.papers import load_papers
from vit_core.reproduce.steps import verdicts_of

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAPERS, BROKEN = load_papers()


@pytest.fixture(scope="module")
def verdicts():
    """paper -> (kind, verdict) of each of its claims."""
    assert not BROKEN
    found = {name: verdicts_of(paper, lambda share, what: None) for name, paper in PAPERS.items()}
    broken = {v.claim.id: v.error for paper in found.values() for v in paper if v.verdict == ERROR}
    assert not broken
    return {name: [(v.claim.kind, v.verdict) for v in paper] for name, paper in found.items()}


def table(header):
    """The rows under a header as lists of cells."""
    lines = README[README.index(header) :].splitlines()[2:]
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_results_of_each_paper_are_counted(verdicts):
    """| paper | package | results | and how they were checked |"""
    rows = {re.search(r"`(\w+)`", row[1]).group(1): row[2:] for row in table("| paper | package | results |")}
    assert rows.keys() == PAPERS.keys(), "a row a paper"
    for name, paper in verdicts.items():
        of_results = [verdict for kind, verdict in paper if kind == "result"]
        assert rows[name] == [str(len(of_results)), in_words(count(of_results))], name


def test_the_headline_counts_all_results(verdicts):
    of_results = [verdict for paper in verdicts.values() for kind, verdict in paper if kind == "result"]
    said = f"{len(of_results)} results: {in_words(count(of_results))}"
    assert said in " ".join(README.split()), said


def test_all_claims_are_counted_by_kind(verdicts):
    everything = [entry for paper in verdicts.values() for entry in paper]
    shown = [v for v in VERDICTS if v in {verdict for _, verdict in everything}]
    header = next(line for line in README.splitlines() if line.startswith("| about | claims |"))
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["about", "claims", *shown]
    rows = {row[0].partition(":")[0]: row[1:] for row in table("| about | claims |")}
    assert rows.keys() == set(KINDS)
    for kind, numbers in rows.items():
        counts = count(verdict for k, verdict in everything if k == kind)
        assert numbers == [str(sum(counts.values())), *(str(counts[v]) for v in shown)], kind


def test_its_links_and_pictures_are_there():
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
