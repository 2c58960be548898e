"""results.json -> one HTML page that needs nothing else: no server, no network, no fonts.

Style, script and pictures are inside it. Every text is escaped by Jinja, and a content security policy forbids the
browser to load anything, so that a page made from a stranger's results can be opened without a thought.
"""

import base64
import re
import statistics
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vit_core.files import write_whole
from vit_core.ledger.claims import KINDS
from vit_core.ledger.statistics import Difference, differences_to_baseline
from vit_core.ledger.verdicts import (
    AGREES,
    CANNOT_RUN,
    CONTRADICTED,
    DISAGREES,
    ERROR,
    FAILS,
    HOLDS,
    HOLDS_IF,
    NOT_RUN,
    OPEN,
    UNDECIDED,
    VERDICTS,
    count,
    in_words,
)
from vit_core.reproduce import number_format
from vit_core.reproduce.curve_chart import curve_chart

HERE = Path(__file__).parent
MEANINGS = {
    "holds": "What was measured at the claim’s setting agrees with it, or the original’s code does what is said of it.",
    "holds if": "Not as stated, but under another reading of the setting, which the row names.",
    "undecided": "Measured at the claim’s setting; the interval reaches from agreement into disagreement, or there is "
    "one training only and so no interval.",
    "fails": "Measured at the claim’s setting, and false under every reading. Our fixes do not count.",
    "contradicted": "The original’s own code, logs, tables or figures say otherwise.",
    "scaled: agrees": "A smaller model agrees with the claim’s direction over at least three paired seeds.",
    "scaled: disagrees": "A smaller model goes in the other direction over at least three paired seeds.",
    "scaled: undecided": "A smaller model’s difference cannot be told from zero.",
    "not run": "No measurement at the claim’s setting, usually because that takes a GPU and days. "
    "The row gives the command that would make one.",
    "cannot be run": "Weights, data or machine are not to be had; the row says which.",
    "error": "The check itself broke; the row shows its message.",
}
TERMS = {
    "patch, token": "The image is cut into squares, the patches; the network turns each into a vector, its token.",
    "attention": "How a token looks at the others: a weight for each of them, and all weights of a token sum to one.",
    "head, block": "A network is a stack of blocks; in each, several heads attend at once, each in its own way.",
    "top-1, top-5": "Share of images whose true class is the model's first guess, or among its first five.",
    "seed": "The number that all random choices of a training follow from. Other seeds show how much is chance.",
    "parameters, multiply-adds": "The numbers that a network learns, and how many multiplications one image takes.",
    "Grad-CAM": "A map over the image of what speaks for a class, from the gradients of the network's answer.",
    "FAP": "Focused Attention Percentage: how much of what Grad-CAM marks is also where the attention is highest.",
    "deletion, insertion": "Tests of such a map: take away what it calls important, or put it back, and see what the "
    "network then says.",
}
ORDER = (  # of the claims at first: what surprises comes on top
    ERROR, CONTRADICTED, FAILS, DISAGREES, UNDECIDED, HOLDS_IF, HOLDS, AGREES, OPEN, NOT_RUN, CANNOT_RUN
)  # fmt: skip
WORDS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve")
PNG = b"\x89PNG\r\n\x1a\n"
WIDE = 2.0  # width / height from which a picture gets the full width of the page


def write_page(results: Mapping[str, Any], folder: Path) -> Path:
    """Render <folder>/index.html from the content of results.json; pictures are read from `folder`. Returns the page.

    A picture that is missing, no PNG or outside of the folder is named in the page, with the reason.
    """
    page = folder / "index.html"
    text = _environment().get_template("page.html.j2").render(_view(results, folder)).lstrip()
    write_whole(page, text.encode("utf-8", errors="replace").decode())  # who reloads it meanwhile sees the old one
    return page


def _environment() -> Environment:
    env = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    nf = number_format
    filters: list[Callable[..., Any]]
    filters = [nf.number, nf.percent, nf.duration, nf.claimed, nf.measured, nf.allowance, nf.as_written, nf.cell]
    filters += [nf.columns, nf.is_number_column, nf.sort_value, nf.unit_words, slug, count_verdicts, in_words]
    env.filters |= {function.__name__: function for function in filters}
    return env


def _view(results: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Everything that the template shows. Markup is for our own files only."""
    papers = [_paper(p, folder) for p in results["papers"]]
    claims = [c for p in papers for c in p["claims"]]
    total = count_verdicts(claims)
    return {
        "run": results,
        "papers": papers,
        "how_many": WORDS[len(papers)] if len(papers) < len(WORDS) else str(len(papers)),
        "total": total,
        "results": count_verdicts([c for c in claims if c["kind"] == "result"]),
        "seen": [name for name in VERDICTS if total[name]],
        "problems": [f"{name} could not be loaded: {why}" for name, why in results["broken"].items()]
        + [f"{p['title']}: {problem}" for p in papers for problem in p["problems"]],
        "images": _images(papers),
        "verdicts": VERDICTS,
        "meanings": MEANINGS,
        "terms": TERMS,
        "kinds": KINDS,
        "by_kind": {kind: count_verdicts([c for c in claims if c["kind"] == kind]) for kind in KINDS},
        "here": _place(results["environment"]),
        "style": Markup((HERE / "page.css").read_text(encoding="utf-8")),  # noqa: S704 -- our own file
        "script": Markup((HERE / "page.js").read_text(encoding="utf-8")),  # noqa: S704
    }


def _paper(paper: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    analysis = paper["analysis"] or {"findings": [], "pictures": [], "tables": []}
    trainings = [
        {**t, "chart": curve_chart(t["rows"]), "best": _best(t["rows"]), "differences": _differences(t["rows"]),
         "several_seeds": any(len(row["seeds"]) > 1 for row in t["rows"])} for t in paper["trainings"]
    ]  # fmt: skip
    claims = sorted(paper["claims"], key=lambda c: ORDER.index(c["verdict"]))
    problems = [
        f"the step “{s['name']}” failed: {s['error'] or 'no reason was recorded'}"
        for s in paper["steps"] if s["state"] == "failed"
    ]  # fmt: skip
    pending = [s["name"] for s in paper["steps"] if s["state"] == "pending"]
    return {
        **paper,
        "claims": claims,
        "results": [c for c in claims if c["kind"] == "result"],
        "more_claims": [c for c in claims if c["kind"] != "result"],
        "anchor": f"paper-{slug(paper['name'])}",
        "trainings": trainings,
        "counts": count_verdicts([c for c in claims if c["kind"] == "result"]),
        "findings": analysis["findings"],
        "tables": analysis["tables"],
        "pictures": [{**p, **read_picture(folder, p["file"])} for p in analysis["pictures"]],
        "problems": problems,
        "state": "failed" if problems else "unfinished" if pending else "done",
        "pending": pending,
        "commands": _commands(trainings),
    }


def count_verdicts(claims: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return count(c["verdict"] for c in claims)


def _images(papers: Sequence[Mapping[str, Any]]) -> str:
    """What the models were trained on, for who does not know the dataset's name."""
    names = list(dict.fromkeys(t["dataset"] for p in papers for t in p["trainings"]))
    if names == ["digits"]:
        return "the handwritten digits that come with scikit-learn: 1,437 images to train, 360 to test, ten classes"
    return ", ".join(names)


def _place(environment: Mapping[str, Any]) -> list[str]:
    """Where and when this run measured: a claim measured elsewhere shows its own."""
    return [environment["date"][:10], environment["git_commit"] or "no checkout", environment["machine"]]


def _best(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The row with the highest top-1, as the mean over its seeds."""
    means = [
        {"label": row["label"], "acc1": statistics.fmean(known)}
        for row in rows if (known := [s["acc1"] for s in row["seeds"] if s["acc1"] is not None])
    ]  # fmt: skip
    return max(means, key=lambda m: m["acc1"], default=None)


def _differences(rows: Sequence[Mapping[str, Any]]) -> dict[str, Difference]:
    """Of each row the difference of its top-1 to the first row's, where there are several seeds."""
    values = {r["label"]: {s["seed"]: s["acc1"] for s in r["seeds"] if s["acc1"] is not None} for r in rows}
    if len(values) < 2 or max(map(len, values.values())) < 2:
        return {}
    return differences_to_baseline(values, rows[0]["label"])


def _commands(trainings: Sequence[Mapping[str, Any]]) -> str:
    """The commands that train each row by itself, under its name."""
    rows = [row for t in trainings for row in t["rows"] if row["command"]]
    return "\n".join(f"# {row['label']}\n{row['command']}" for row in rows)


def read_picture(folder: Path, name: str) -> dict[str, Any]:
    """A PNG as {src, width, height, wide}, or {missing: the reason}."""
    try:
        file = (folder / name).resolve()
        if not file.is_relative_to(folder.resolve()):
            return {"missing": "it lies outside of the run's folder and was not read"}
        data = file.read_bytes()
    except (OSError, ValueError) as e:  # ValueError: a zero byte in the name
        return {"missing": getattr(e, "strerror", None) or str(e)}
    if not data.startswith(PNG) or len(data) < 24:
        return {"missing": "it is no PNG"}
    width, height = struct.unpack(">II", data[16:24])
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return {"missing": "", "src": source, "width": width, "height": height, "wide": width >= WIDE * height}


def slug(text: str) -> str:
    """A name for links: "HTHTA ViT++" -> "hthta-vit"."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"
