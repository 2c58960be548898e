"""The report page: what it shows, what it refuses, and how it behaves in a real browser (Debian's Chromium)."""

import copy
import math
import os
import re
import shutil
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import report_example
from vit_core.ledger.verdicts import VERDICTS
from vit_core.reproduce import number_format
from vit_core.reproduce.curve_chart import curve_chart
from vit_core.reproduce.page import read_picture, slug, write_page

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> {{ 7*7 }} &amp; \ud800"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """results, and the folder that holds its pictures and its page."""
    folder = tmp_path_factory.mktemp("run")
    results = report_example.results(folder)
    write_page(results, folder)
    return results, folder


class Tags(HTMLParser):
    """Names and attributes of all elements, and the text outside of style and script."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] not in ("style", "script"):
            self.text += data

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def everything(value: Any, text: str) -> Any:
    """The same structure with every text that readers see replaced."""
    if isinstance(value, dict):
        fixed = ("verdict", "comparison", "state", "preset", "file", "cost", "command", "name", "kind")
        return {k: v if k in fixed else everything(v, text) for k, v in value.items()}
    if isinstance(value, list):
        return [everything(v, text) for v in value]
    return text if isinstance(value, str) else value


def test_hostile_text_stays_text(example, tmp_path):
    results, _ = example
    shutil.copytree(example[1], tmp_path, dirs_exist_ok=True)
    plain = Tags(write_page(results, tmp_path)).tags
    hostile = everything(copy.deepcopy(results), HOSTILE)
    hostile["preset"] = hostile["papers"][0]["name"] = hostile["papers"][0]["steps"][0]["name"] = HOSTILE
    hostile["papers"][0]["trainings"][0]["rows"][0]["command"] = HOSTILE
    hostile["broken"] = {HOSTILE: HOSTILE}
    page = Tags(write_page(hostile, tmp_path))
    assert [t for t, _ in page.tags].count("script") == 1
    assert len(page.named("img")) == len([t for t, _ in plain if t == "img"])
    allowed = {"enlarge", "style", "class", "id", "src", "alt"}
    assert not [a for _, a in page.tags for name in a if name.startswith("on") and name not in allowed]
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7*7 }}" in page.text


def test_page_loads_nothing_and_says_so_to_the_browser(example):
    page = Tags(example[1] / "index.html")
    policy = next(m["content"] for m in page.named("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    addresses = [a[n] for _, a in page.tags for n in ("src", "href") if a.get(n)]
    assert len(addresses) > 10
    assert all(a.startswith(("#", "data:")) for a in addresses)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a[1:] for a in addresses if a.startswith("#")} <= set(ids)
    script = (Path(write_page.__code__.co_filename).parent / "page.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


def test_missing_and_foreign_pictures_are_named(example, tmp_path):
    results = copy.deepcopy(example[0])
    folder = tmp_path / "run"
    folder.mkdir()
    secret = tmp_path / "secret.png"
    shutil.copy(next(example[1].rglob("*.png")), secret)
    (folder / "link.png").symlink_to(secret)
    (folder / "text.png").write_text("no picture")
    shown = results["papers"][0]["analysis"]["pictures"]
    for picture, file in zip(shown, ("gone.png", "../secret.png", "link.png"), strict=True):
        picture["file"] = file
    page = Tags(write_page(results, folder))
    assert not page.named("img")
    assert page.text.count("it is outside the run folder") == 2
    assert "gone.png cannot be shown: No such file" in page.text
    assert read_picture(folder, str(secret))["missing"].startswith("it is outside")
    assert read_picture(folder, "text.png")["missing"] == "it is not a PNG"
    assert read_picture(folder, "a\0b.png")["missing"]
    assert read_picture(folder, ".")["missing"]


def test_empty_and_interrupted_run(example, tmp_path):
    empty = {**example[0], "papers": [], "comparison": None, "finished": None, "seconds": None}
    empty["environment"] = {**empty["environment"], "git_commit": None, "gpu": "NVIDIA H100"}
    text = Tags(write_page(empty, tmp_path)).text
    assert "No Vision-Transformer papers" in text
    assert "This run contains no papers." in text
    assert "It was interrupted; the results so far" in text
    assert "NVIDIA H100" in text


def test_failed_paper_is_announced_at_the_top(example, tmp_path):
    results = copy.deepcopy(example[0])
    results["broken"] = {"otherpaper": "ImportError: no module named flash"}
    paper = results["papers"][0]
    paper["steps"] = [
        {"name": "train", "state": "failed", "seconds": 1.0, "error": "the loss is not finite at step 12"},
        {"name": "claims", "state": "pending", "seconds": None, "error": None},
    ]
    paper.update(trainings=[], claims=[], analysis=None)
    results["papers"][1]["trainings"] = [{"name": "digits", "dataset": "digits", "rows": []}]
    text = Tags(write_page(results, tmp_path)).text
    top = text[: text.index("Summary", text.index("This run is not complete"))]
    assert "otherpaper could not be loaded: ImportError: no module named flash" in top
    assert "the step “train” failed: the loss is not finite at step 12" in top
    assert "not done yet: claims" in text


def test_claims_show_both_numbers_and_where_they_come_from(example):
    text = " ".join(Tags(example[1] / "index.html").text.replace(number_format.THIN, " ").split())
    for words in (
        "2.47 M",
        "± 0.005 M allowed",
        "13.05 M",
        "the depth is 2, not 12",
        "at depth 2: 2.47 M",
        "78.0–80.0 %",
        "≥ 2.5×",
        "1.31×",
        "93.06 ± 0.28 %",
        "seeds 42, 43, 44",
        "b7f1f6b8a2ce",
        "results/toyvit/cifar10.csv",
        "< 1×10⁻⁶",
        "2.13×10⁻⁷",
        "measured by this run, seed 0",
        "takes hours or days on a GPU",
        "mat1 and mat2 shapes",
        "Near this setting (not used for the verdict): seven epochs of CIFAR-10, 62.2 %",
        "uv run reproduce --paper toyvit",
        "5 min 12 s",
        "96.8 %",
        "_of_the_dense_model.txt: The recalls by class",
        "1 of 2 agree",
        "2.40 … 4.10",
        "the original’s own code, run here",
    ):
        assert words in text, words


def test_five_hundred_claims_are_quick(example, tmp_path):
    """Under 2 MB and 5 s; it takes 0.6 MB and 0.2 s here."""
    results = copy.deepcopy(example[0])
    results["papers"][0]["claims"] = [report_example.claim(n) for n in range(500)]
    results["papers"][0]["analysis"] = results["papers"][1]["analysis"] = None
    started = time.perf_counter()
    page = write_page(results, tmp_path)
    assert time.perf_counter() - started < 5
    assert page.stat().st_size < 2e6
    assert page.read_text(encoding="utf-8").count("<tr role=") == 4 + 500 + 14  # with the heads of two tables a paper


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (13054564, "13,054,564"),
        (0.012345, "0.0123"),
        (0.5, "0.5"),
        (93.0556, "93.06"),
        (1249.3, "1,249"),
        (2.1e-7, "2.1×10⁻⁷"),
        (-3, "−3"),
        (True, "yes"),
        (None, "—"),
        ("dense", "dense"),
        (math.nan, "not a number"),
        (math.inf, "∞"),
        (0.0, "0"),
        (999.999, "1,000"),
        (1e300, "1×10³⁰⁰"),
    ],
)
def test_numbers(value, text):
    assert number_format.number(value) == text


def test_columns_align_their_digits():
    assert number_format.columns([["a", 93.1, 5], ["b", 62.25, 1000], ["c", "—"]]) == [
        ["a", "93.10", "5"],
        ["b", "62.25", "1,000"],
        ["c", "—", "—"],
    ]
    assert number_format.columns([[1e-7], [1.5]]) == [["1×10⁻⁷"], ["1.5"]]
    assert number_format.columns([[math.nan], [0.25]])[0] == ["not a number"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.7, "1 min"), (312.4, "5 min 12 s"), (7260, "2 h 1 min")]
)
def test_durations(seconds, text):
    assert number_format.duration(seconds).replace(number_format.THIN, " ") == text


def test_measured_values_get_at_least_the_digits_of_the_claim():
    claim = report_example.claim(0)
    assert number_format.measured(93.1249, {**claim, "claimed": 93.125, "unit": ""}, None) == "93.125"
    assert number_format.measured(2469404, {**claim, "claimed": 2470000, "unit": ""}, None) == "2,469,404"
    assert number_format.measured("softmax", {**claim, "claimed": "softmax"}, None) == "softmax"
    assert number_format.measured([], claim, None) == "[]"


@pytest.mark.parametrize(
    ("unit", "number", "words"),
    [
        ("% top-1", "4.6 %", "top-1"),
        ("x", "4.6×", ""),
        ("10^9 multiply-adds", "4.6×10⁹", "multiply-adds"),
        ("10⁶ parameters", "4.6×10⁶", "parameters"),
        ("largest difference", "4.6", "largest difference"),
        ("", "4.6", ""),
    ],
)
def test_units(unit, number, words):
    claim = {"claimed": 4.6, "comparison": "about", "unit": unit}
    assert number_format.claimed(claim).replace(number_format.THIN, " ") == number
    assert number_format.measured(4.6, claim, None).replace(number_format.THIN, " ") == number
    assert number_format.unit_words(claim) == words


def test_curves_are_means_over_the_seeds():
    def seed(values):
        return {"curve": [{"epoch": e, "val_acc1": v} for e, v in enumerate(values, 1)]}

    chart = curve_chart(
        [
            {"label": "a", "seeds": [seed([20.0, 60.0]), seed([40.0, 80.0, math.nan])]},
            {"label": "b", "seeds": [seed([30.0, 90.0])]},
            {"label": "none", "seeds": []},
        ]
    )
    assert [line["label"] for line in chart["lines"]] == ["b", "a"]
    assert chart["lines"][1]["final"] == 70
    assert [label for _, label in chart["x_ticks"]] == ["1", "2"]
    assert chart["y_ticks"][0] == (100, "20")
    assert chart["y_ticks"][-1][0] == 0
    one = curve_chart([{"label": "a", "seeds": [seed([50.0])]}])
    assert one["lines"][0]["points"] == "50,100"
    assert curve_chart([]) is None


def test_slug():
    assert slug("HTHTA-ViT++ <b>") == "hthta-vit-b"
    assert slug("…") == "unnamed"


# ---- in the browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if chromium is None or sync_playwright is None:
        why = "chromium is not installed" if chromium is None else "playwright is not installed"
        if os.environ.get("VIT_CHROMIUM"):
            pytest.fail(f"VIT_CHROMIUM is set, but {why}")
        pytest.skip(why)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, example):
    """open_page(width, scheme) -> the page, without a word on the console; nothing but the file may be asked for."""
    contexts, complaints = [], []

    def load(width: int = 1280, scheme: str = "light", **options: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda m: complaints.append(m.text))
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.on("requestfailed", lambda r: complaints.append(f"failed: {r.url[:80]}"))
        page.on(
            "request", lambda r: r.url.startswith(("file:", "data:")) or complaints.append(f"asked for {r.url[:80]}")
        )
        page.goto((example[1] / "index.html").as_uri())
        return page

    yield load
    for context in contexts:
        context.close()
    assert not complaints


# Text on its background, WCAG's contrast below 4.5 to 1.
PALE = """() => {
  const channels = (c) => c.match(/[\\d.]+/g).map(Number);
  const luminance = (c) => channels(c).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if ((channels(c)[3] ?? 1) === 1) return c;
    }
  };
  const pale = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !e.checkVisibility()) continue;
    const style = getComputedStyle(e);
    const ink = e instanceof SVGElement ? style.fill : style.color;
    const [low, high] = [luminance(ink), luminance(behind(e))].sort((a, b) => a - b);
    if ((high + 0.05) / (low + 0.05) < 4.5) pale.add(`${e.className}: ${ink} on ${behind(e)}`);
  }
  return [...pale];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_renders_and_is_legible(open_page, scheme):
    page = open_page(scheme=scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(253, 253, 251)") == (scheme == "light")
    assert page.evaluate(PALE) == []
    pictures = page.evaluate("[...document.images].map((i) => [i.naturalWidth, i.alt.length])")
    assert len(pictures) == 6
    assert all(width > 0 and alt > 0 for width, alt in pictures)
    style = "(all) => all.map((e) => getComputedStyle(e)).map((s) => [s.stroke, s.strokeDasharray, s.color])"
    assert len({color for _, _, color in page.locator(".legend .chip").evaluate_all(style)}) == 7
    lines = page.locator(".plot polyline").evaluate_all(style)
    assert len(lines) == 8
    assert len({tuple(line[:2]) for line in lines[:5]}) == 5
    assert all(line[0].startswith("rgb") for line in lines)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("width", [390, 768])
def test_phone_does_not_scroll_sideways(open_page, width):
    page = open_page(width, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    wide = page.locator("#comparison .scroll")
    assert wide.evaluate("(e) => e.scrollWidth > e.clientWidth && e.getBoundingClientRect().right <= innerWidth")
    cells = "[...document.querySelectorAll('.claims td > *')]"
    assert page.evaluate(f"{cells}.length > 10 && {cells}.every((e) => e.getBoundingClientRect().right <= innerWidth)")
    labels = page.evaluate("[...document.querySelectorAll('.tick')].map((t) => t.getBoundingClientRect().height)")
    assert min(labels) >= 12
    card = page.locator(".claims td.claim").first.evaluate("(e) => getComputedStyle(e).display")
    assert card == ("block" if width < 700 else "table-cell")


def test_print_shows_everything(open_page):
    page = open_page()
    page.locator(".filters button", has_text="fails").first.click()
    assert page.locator("tr[data-verdict=holds]").first.is_hidden()
    page.emulate_media(media="print")
    assert page.locator(".claims tbody tr").evaluate_all("(all) => all.filter((e) => !e.checkVisibility()).length") == 0
    hows = "(all) => all.map((e) => e.getBoundingClientRect().height)"
    assert min(page.locator("details > :not(summary)").evaluate_all(hows)) > 0
    for control in (".controls", "nav", "#theme"):
        assert not page.locator(control).first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 50_000
    page.emulate_media(media="screen")
    assert page.locator("tr[data-verdict=holds]").first.is_hidden(), "printing leaves the filter as it was"


def column(table: Any, number: int) -> list[str]:
    return table.locator(f"tbody td:nth-child({number})").all_inner_texts()


def test_heads_sort_both_ways_by_mouse_and_keyboard(open_page):
    page = open_page()
    table = page.locator("#comparison table")
    as_written = column(table, 3)
    head = table.locator("th").nth(2)
    assert head.get_attribute("aria-sort") == "none"
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(table, 3) == ["99,018", "142,026", "302,402"]
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert column(table, 3) == ["302,402", "142,026", "99,018"]
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "none"
    assert column(table, 3) == as_written

    names = table.locator("th").nth(0)
    names.locator("button").click()
    assert column(table, 1) == ["no paper", "SlimViT", "ToyViT"]
    names.locator("button").click()
    assert column(table, 1) == ["ToyViT", "SlimViT", "no paper"]

    sparsity = table.locator("th").nth(8).locator("button")
    for expected in (["0.00", "0.62", "—"], ["0.62", "0.00", "—"]):  # what has no value stays last
        sparsity.click()
        assert column(table, 9) == expected
    assert page.locator("table:not(.sortable, .cells)").count() == 0
    assert page.locator("table:not(.cells) > thead th:not(:has(button))").count() == 0

    claims = page.locator(".claims table").first
    claims.locator("th button", has_text="verdict").click()
    order = claims.locator("tr[data-verdict]").evaluate_all("(rows) => rows.map((r) => r.dataset.verdict)")
    assert order == sorted(order, key=VERDICTS.index)


def test_filters_show_one_verdict(open_page):
    page = open_page()
    claims, other = page.locator(".claims").first, page.locator(".whole-paper").nth(1).locator(".claims").first
    all_of_other = other.locator("tbody tr:visible").count()
    for button in claims.locator(".filters button").all():
        button.press("Enter")
        assert button.get_attribute("aria-pressed") == "true"
        assert claims.locator(".filters [aria-pressed=true]").count() == 1
        wanted, number = button.get_attribute("data-show"), int(button.locator("b").inner_text())
        shown = claims.locator("tr[data-verdict]").evaluate_all(
            "(rows) => rows.filter((r) => r.checkVisibility()).map((r) => r.dataset.verdict)"
        )
        assert len(shown) == number > 0
        assert not wanted or set(shown) == {wanted}
    assert other.locator("tbody tr:visible").count() == all_of_other > 0, "each table has its own filter"

    claims.locator(".unfold").click()
    assert claims.locator("details:not([open])").count() == 0
    claims.locator(".unfold").click()
    assert claims.locator("details[open]").count() == 0


def test_pictures_enlarge_by_keyboard(open_page):
    page = open_page()
    button = page.locator(".enlarge").nth(1)
    small = button.locator("img").bounding_box()["width"]
    button.focus()
    page.keyboard.press("Enter")
    large = page.locator("dialog[open] img")
    assert large.bounding_box()["width"] > 1.5 * small
    assert large.get_attribute("alt").startswith("Weights of the attentions")
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert button.evaluate("(e) => e === document.activeElement")
    button.click()
    page.locator("dialog img").click()
    assert page.locator("dialog[open]").count() == 0


def test_theme_button_turns_the_systems_choice(open_page):
    page = open_page(scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    first = page.evaluate(background)
    button = page.locator("#theme")
    assert button.inner_text() == "Light theme"
    button.click()
    assert page.evaluate(background) != first
    button.click()
    assert page.evaluate(background) == first
    page.emulate_media(color_scheme="light")
    assert page.evaluate(background) != first, "the system decides again"


def test_without_script_everything_is_there(open_page):
    page = open_page(java_script_enabled=False)
    assert page.locator(".claims tr[data-verdict]").count() == 40
    for fold in page.locator(".more-claims > summary").all():
        fold.click()
    assert page.locator(".claims tr[data-verdict]:visible").count() == 40
    assert not page.locator(".controls").first.is_visible()
    assert not page.locator("#theme").is_visible()


def test_hostile_page_runs_nothing(browser, example, tmp_path):
    hostile = everything(copy.deepcopy(example[0]), HOSTILE)
    page = browser.new_page()
    alerts: list[Any] = []
    page.on("dialog", lambda d: alerts.append(d.message) or d.dismiss())
    page.goto(write_page(hostile, tmp_path).as_uri())
    page.locator(".claims th button").first.click()
    page.close()
    assert not alerts


def test_rows_of_several_seeds_are_compared_by_paired_differences(example, tmp_path):
    results = copy.deepcopy(example[0])
    rows = [report_example.training_row("toyvit", n, label, (0, 1, 2)) for n, label in enumerate(("dense", "sparse"))]
    for row, values in zip(rows, ((50.0, 60.0, 70.0), (52.0, 62.1, 71.9)), strict=True):
        for run, value in zip(row["seeds"], values, strict=True):
            run["acc1"] = value
    results["papers"][0]["trainings"] = [{"name": "digits", "dataset": "digits", "rows": rows}]
    text = " ".join(Tags(write_page(results, tmp_path)).text.split())
    assert "difference from dense, points" in text
    assert "+2.00 (+1.75 … +2.25)" in text, "t = 4.30, n = 3, standard deviation 0.1"
    assert "to dense" not in Tags(example[1] / "index.html").text, "one seed has no interval"
