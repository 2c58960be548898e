"""Render results.json as a self-contained HTML page: no server, network or fonts needed.

Style, script and pictures are embedded. Jinja escapes all text, and a content security policy forbids the browser to
load anything, so a page built from untrusted results is safe to open.
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
    "holds": "A measurement at the claim’s setting agrees with it, or the original’s code does what the claim says.",
    "holds if": "Not as stated, but under another reading of the setting, which the row names.",
    "undecided": "Measured at the claim’s setting; the interval includes both agreeing and disagreeing values, or "
    "there is only one training and so no interval.",
    "fails": "Measured at the claim’s setting, and false under every reading. Our fixes do not count.",
    "contradicted": "The original’s own code, logs, tables or figures say otherwise.",
    "scaled: agrees": "A smaller model agrees with the claim’s direction over at least three paired seeds.",
    "scaled: disagrees": "A smaller model shows the opposite direction over at least three paired seeds.",
    "scaled: undecided": "A smaller model’s difference is not significantly different from zero.",
    "not run": "No measurement at the claim’s setting, usually because it takes days on a GPU. "
    "The row gives the command for it.",
    "cannot be run": "Weights, data or hardware are not available; the row says which.",
    "error": "The check itself failed; the row shows its error message.",
}
TERMS = {
    "patch, token": "The image is split into squares, the patches; the network maps each to a vector, its token.",
    "attention": "How much a token takes from each of the others: one weight per token; the weights sum to one.",
    "head, block": "A network is a stack of blocks; in each block, several attention heads work in parallel.",
    "top-1, top-5": "Percentage of images whose true class is the model's first prediction, or among its first five.",
    "seed": "The number that determines all random choices of a training. Several seeds show the random variation.",
    "parameters, multiply-adds": "The numbers that a network learns, and how many multiplications one image takes.",
    "Grad-CAM": "A map of the image regions that support a class, computed from the gradients of its score.",
    "FAP": "Focused Attention Percentage: how much of the area marked by Grad-CAM also has the highest attention.",
    "deletion, insertion": "Tests of such a map: remove the regions it marks as important, or add them back, and "
    "observe how the network's prediction changes.",
}
ORDER = (  # initial order of the claims: the most surprising first
    ERROR,
    CONTRADICTED,
    FAILS,
    DISAGREES,
    UNDECIDED,
    HOLDS_IF,
    HOLDS,
    AGREES,
    OPEN,
    NOT_RUN,
    CANNOT_RUN,
)
WORDS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve")
PNG = b"\x89PNG\r\n\x1a\n"
WIDE = 2.0  # pictures with at least this aspect ratio get the full width of the page


def write_page(results: Mapping[str, Any], folder: Path) -> Path:
    """Render <folder>/index.html from the content of results.json; pictures are read from `folder`. Returns its path.

    For a picture that is missing, not a PNG or outside the folder, the page shows the reason instead.
    """
    page = folder / "index.html"
    text = _environment().get_template("page.html.j2").render(_view(results, folder)).lstrip()
    write_whole(page, text.encode("utf-8", errors="replace").decode())  # atomic: a reload never shows half a page
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
    """The template's variables. Markup (unescaped) is used for our own files only."""
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
        {
            **t,
            "chart": curve_chart(t["rows"]),
            "best": _best(t["rows"]),
            "differences": _differences(t["rows"]),
            "several_seeds": any(len(row["seeds"]) > 1 for row in t["rows"]),
        }
        for t in paper["trainings"]
    ]
    claims = sorted(paper["claims"], key=lambda c: ORDER.index(c["verdict"]))
    problems = [
        f"the step “{s['name']}” failed: {s['error'] or 'no reason was recorded'}"
        for s in paper["steps"]
        if s["state"] == "failed"
    ]
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
    """Short description of the training datasets."""
    names = list(dict.fromkeys(t["dataset"] for p in papers for t in p["trainings"]))
    if names == ["digits"]:
        return "the handwritten digits of scikit-learn (1,437 training images, 360 test images, ten classes)"
    return ", ".join(names)


def _place(environment: Mapping[str, Any]) -> list[str]:
    """Date, commit and machine of this run; claims measured elsewhere show their own."""
    return [environment["date"][:10], environment["git_commit"] or "no checkout", environment["machine"]]


def _best(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The row with the highest top-1, averaged over its seeds."""
    means = [
        {"label": row["label"], "acc1": statistics.fmean(known)}
        for row in rows
        if (known := [s["acc1"] for s in row["seeds"] if s["acc1"] is not None])
    ]
    return max(means, key=lambda m: m["acc1"], default=None)


def _differences(rows: Sequence[Mapping[str, Any]]) -> dict[str, Difference]:
    """Difference in top-1 between each row and the first row; empty without several seeds."""
    values = {r["label"]: {s["seed"]: s["acc1"] for s in r["seeds"] if s["acc1"] is not None} for r in rows}
    if len(values) < 2 or max(map(len, values.values())) < 2:
        return {}
    return differences_to_baseline(values, rows[0]["label"])


def _commands(trainings: Sequence[Mapping[str, Any]]) -> str:
    """The commands that train each row, labeled with its name."""
    rows = [row for t in trainings for row in t["rows"] if row["command"]]
    return "\n".join(f"# {row['label']}\n{row['command']}" for row in rows)


def read_picture(folder: Path, name: str) -> dict[str, Any]:
    """A PNG as {src, width, height, wide}, or {missing: the reason}."""
    try:
        file = (folder / name).resolve()
        if not file.is_relative_to(folder.resolve()):
            return {"missing": "it is outside the run folder and was not read"}
        data = file.read_bytes()
    except (OSError, ValueError) as e:  # ValueError: a null byte in the name
        return {"missing": getattr(e, "strerror", None) or str(e)}
    if not data.startswith(PNG) or len(data) < 24:
        return {"missing": "it is not a PNG"}
    width, height = struct.unpack(">II", data[16:24])
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return {"missing": "", "src": source, "width": width, "height": height, "wide": width >= WIDE * height}


def slug(text: str) -> str:
    """A name for anchors: "HTHTA ViT++" -> "hthta-vit"."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"
