"""What claims.yaml says was measured is what results/ holds, and every command in it exists."""

import csv
import importlib.util
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from vit_core.claims import load_claims
from vit_core.papers import load_papers
from vit_core.recipe import settle

RESULTS = Path(__file__).parents[2] / "results"
PAPERS, _ = load_papers()
CLAIMS = [(name, claim) for name, paper in PAPERS.items() for claim in load_claims(paper.claims_file)]


def records():
    """(id, what was measured) of claims and of their other readings."""
    for _, claim in CLAIMS:
        if claim.measured:
            yield claim.id, claim.measured
        for reading in claim.readings:
            if reading.measured:
                yield f"{claim.id}, if {reading.when}", reading.measured


@pytest.mark.parametrize(("name", "measured"), [pytest.param(n, m, id=n) for n, m in records()])
def test_a_measured_value_is_in_the_results(name, measured):
    file = RESULTS / measured.results
    values = measured.value if isinstance(measured.value, list) else [measured.value]
    assert (measured.cell is None) != (measured.quote is None), "a value names its cell, or the words that say it"
    if measured.quote is not None:
        text = re.sub(r"\s+", " ", file.read_text())
        assert re.sub(r"\s+", " ", measured.quote) in text
        if not isinstance(measured.value, bool | str):  # the figures are in the quoted words
            numbers = re.findall(r"[-−+]?\d[\d,]*\.?\d*", measured.quote)
            quoted = [float(n.replace(",", "").replace("−", "-")) for n in numbers]
            for value in values:
                assert any(value == pytest.approx(q) for q in quoted), (value, quoted)
        return
    if "path" in measured.cell:
        found = json.loads(file.read_text())
        for key in measured.cell["path"]:
            found = found[key]
        found = found if isinstance(found, list) else [found]
    else:
        with file.open(newline="") as f:
            rows = list(csv.DictReader(f))
        wanted = {k: str(v) for k, v in measured.cell.get("where", {}).items()}
        found = [float(r[measured.cell["column"]]) for r in rows if all(r[k] == v for k, v in wanted.items())]
    assert len(found) == len(values)
    for value, there in zip(values, found, strict=True):
        digits = len(str(value).partition(".")[2])
        assert round(there, digits) == pytest.approx(value), "rounded as the claim has it"


@pytest.mark.parametrize(
    "related", [pytest.param(c.related, id=c.id) for _, c in CLAIMS if c.related is not None and c.related.results]
)
def test_what_is_related_is_in_the_results(related):
    text = re.sub(r"\s+", " ", (RESULTS / related.results).read_text())
    assert related.quote is not None
    assert re.sub(r"\s+", " ", related.quote) in text


SCRIPTS = {
    script
    for file in RESULTS.parent.glob("packages/*/pyproject.toml")
    for script in tomllib.loads(file.read_text())["project"]["scripts"]
}
RECIPES = {
    f"{t.recipe.command}-train": t.recipe for paper in PAPERS.values() for t in (*paper.micro, *paper.published)
}  # fmt: skip
SWITCHES = {"--extra": 2, "--package": 2, "--no-sync": 1}  # of uv run: how many words


@pytest.mark.parametrize("claim", [pytest.param(c, id=c.id) for _, c in CLAIMS if c.command])
def test_a_command_is_one_of_ours_and_trainings_take_its_flags(claim):
    parts = [shlex.split(part) for part in re.split(r"&&|;|\n", claim.command.replace("\\\n", " "))]
    assert all(part[:2] == ["uv", "run"] for part in parts), claim.command
    for _, _, *words in parts:
        while words[0] in SWITCHES:
            words = words[SWITCHES[words[0]] :]
        if words[0] == "torchrun":
            return
        if words[0] == "python":
            assert words[1] == "-m"
            assert importlib.util.find_spec(words[2]) is not None, words[2]
        else:
            assert words[0] in SCRIPTS | {"reproduce"}, words[0]
        if words[0] in RECIPES:
            recipe = RECIPES[words[0]]
            given = recipe.parse(words[1:])
            if given.get("model") not in recipe.model_groups:
                settle(recipe, given, None)


@pytest.mark.parametrize(("name", "claim"), [pytest.param(n, c, id=c.id) for n, c in CLAIMS if c.outcome])
def test_an_outcome_names_a_training_of_the_papers_recipe(name, claim):
    trainings = {t.name: t for t in PAPERS[name].published}
    training = trainings[claim.outcome.training]
    epochs = settle(training.recipe, training.rows[claim.outcome.row], None).train.epochs
    assert claim.outcome.epoch is None or claim.outcome.epoch <= epochs


def test_every_paper_has_its_claims():
    """The seeds' tables and sentences: well over a hundred in all, of each kind."""
    counts = {name: sum(n == name for n, _ in CLAIMS) for name in PAPERS}
    asked_for = {"clear_vit", "hthta_vit", "qavit", "selective_vit", "zoom_vit"}
    assert set(counts) >= asked_for
    assert sum(counts.values()) > 250
    assert min(counts[name] for name in asked_for) >= 30, counts
    assert {c.cost for _, c in CLAIMS} == {"instant", "cpu-minutes", "gpu-hours"}


def test_no_verdict_is_typed_in():
    for paper in PAPERS.values():
        for entry in yaml.safe_load(paper.claims_file.read_text()):
            assert not {"verdict", "holds", "fails"} & entry.keys()
