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

from vit_core.commands.settings import parse, settle
from vit_core.ledger.claims import COSTS, KINDS, cells, load_claims
from vit_core.papers import load_papers

RESULTS = Path(__file__).parents[2] / "results"
PAPERS, _ = load_papers()
CLAIMS = [(name, claim) for name, paper in PAPERS.items() for claim in load_claims(paper.claims_file)]


def records():
    """(id, what was measured) of claims and of their other readings."""
    for _, claim in CLAIMS:
        for measured in claim.measured:
            yield f"{claim.id}, {measured.run.name}", measured
        for reading in claim.readings:
            if reading.measured:
                yield f"{claim.id}, if {reading.when}", reading.measured


def plain(text):
    return re.sub(r"\s+", " ", text)


def in_file(measured):
    """The values that a record's cell names in its CSV or JSON file."""
    file = RESULTS / measured.results
    if "path" in measured.cell:
        found = json.loads(file.read_text())
        for key in measured.cell["path"]:
            found = found[key]
        return found if isinstance(found, list) else [found]
    with file.open(newline="") as f:
        rows = list(csv.DictReader(f))
    wanted = {k: str(v) for k, v in measured.cell.get("where", {}).items()}
    return [float(r[measured.cell["column"]]) for r in rows if all(r[k] == v for k, v in wanted.items())]


@pytest.mark.parametrize(("name", "measured"), [pytest.param(n, m, id=n) for n, m in records()])
def test_a_measured_value_is_in_the_results(name, measured):
    assert (measured.cell is None) != (measured.quote is None), "a value names its cell, or the words that say it"
    values = [v for *_, cell in cells(measured.value) for v in (cell if isinstance(cell, list) else [cell])]
    if measured.quote is not None:
        assert plain(measured.quote) in plain((RESULTS / measured.results).read_text())
        numbers = re.findall(r"[-−+]?\d[\d,]*\.?\d*", measured.quote)  # the figures are in the quoted words
        found = [float(n.replace(",", "").replace("−", "-")) for n in numbers]
        for value in [v for v in (*values, *(measured.interval or ())) if not isinstance(v, bool | str)]:
            assert any(value == pytest.approx(f) for f in found), (value, found)
        return
    found = in_file(measured)
    assert len(found) == len(values)
    for value, there in zip(values, found, strict=True):
        digits = len(str(value).partition(".")[2])
        assert round(there, digits) == pytest.approx(value), "rounded as the claim has it"


SCALED = [pytest.param(s, id=c.id) for _, c in CLAIMS for s in c.scaled]


@pytest.mark.skipif(not SCALED, reason="no claim has a scaled measurement yet")
@pytest.mark.parametrize("scaled", SCALED)
def test_scaled_values_are_in_the_results(scaled):
    text = (RESULTS / scaled.results).read_text()
    for values in (scaled.baseline, *scaled.rows.values()):
        assert all(f"{value:g}" in text for value in values)


PARITY = sorted({(c.parity, c.id) for _, c in CLAIMS if c.parity})


@pytest.mark.parametrize(("parity", "claim"), PARITY)
def test_the_test_of_parity_exists(parity, claim):
    file, _, function = parity.partition("::")
    text = (RESULTS.parent / file).read_text()
    assert not function or f"def {function}(" in text


SCRIPTS = {
    script
    for file in RESULTS.parent.glob("packages/*/pyproject.toml")
    for script in tomllib.loads(file.read_text())["project"]["scripts"]
}
RECIPES = {f"{t.recipe.command}-train": t.recipe for paper in PAPERS.values() for t in (*paper.micro, *paper.published)}
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
            given = parse(recipe, words[1:])
            if given.get("model") not in recipe.model_groups:
                settle(recipe, given, None)


@pytest.mark.parametrize(("name", "claim"), [pytest.param(n, c, id=c.id) for n, c in CLAIMS if c.outcomes])
def test_an_outcome_names_a_training_of_the_papers_recipe(name, claim):
    trainings = {t.name: t for t in PAPERS[name].published}
    for outcome in claim.outcomes:
        training = trainings[outcome.training]
        epochs = settle(training.recipe, training.rows[outcome.row], None).train.epochs
        assert outcome.epoch is None or outcome.epoch <= epochs


def test_every_paper_has_its_claims():
    """What the papers say, and not what we say of them."""
    counts = {name: sum(n == name for n, _ in CLAIMS) for name in PAPERS}
    asked_for = {"clear_vit", "hthta_vit", "qavit", "selective_vit", "zoom_vit"}
    assert set(counts) >= asked_for
    assert all(any(c.kind == "result" for n, c in CLAIMS if n == name) for name in asked_for), counts
    assert {c.cost for _, c in CLAIMS} <= set(COSTS)
    assert {c.kind for _, c in CLAIMS} == set(KINDS)


OURS = re.compile(r"our (own )?(specification|spec|preset)|the seed\b", re.IGNORECASE)


@pytest.mark.parametrize("claim", [pytest.param(c, id=c.id) for _, c in CLAIMS])
def test_a_claim_is_the_originals(claim):
    """Its source is a document of the original, and evidence names a place in one."""
    places = (claim.source, *(e.where for e in claim.evidence))
    assert all(place.strip() and not OURS.search(place) for place in places), places
    assert not OURS.search(claim.statement)


def test_no_verdict_is_typed_in():
    for paper in PAPERS.values():
        for group in yaml.safe_load(paper.claims_file.read_text())["groups"]:
            for entry in (group, *group["entries"]):
                assert not {"verdict", "holds", "fails", "contradicted"} & entry.keys()
