"""Shared by HTHTA-ViT's two studies: measuring the Focused Attention Percentage (FAP), tables and plots."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hthta_vit.recipe import RECIPE
from vit_core.commands.study import (
    Measurement,
    Study,
    StudyFlags,
    Subject,
    bars,
    column,
    markdown_table,
    mean_and_spread,
)
from vit_core.explain import measure_focus
from vit_core.flags import flag
from vit_core.recipe import Recipe

AttentionMaps = Callable[[nn.Module, Tensor], Tensor]
Claimed = Mapping[str, tuple[str, str]]  # row -> accuracy and FAP claimed in the paper


@dataclass(frozen=True, kw_only=True)
class FocusFlags(StudyFlags):
    """The flags of both studies."""

    fap_images: int = flag(2000, "number of images for FAP", least=1)


def run_study(
    args: FocusFlags,
    rows: Mapping[str, Mapping[str, Any]],
    maps_of: Callable[[nn.Module], AttentionMaps | None],
    claimed: Claimed,
    title: str,
    *,
    name: str,
    recipe: Recipe = RECIPE,
) -> None:
    """Train and evaluate the rows, then write table.md and <name>.png.

    maps_of: returns a model's attention-map function for FAP, or None.
    """
    study = Study(
        recipe=recipe,
        rows=rows,
        seeds=args.seeds,
        folder=args.output_dir,
        measure=lambda subject: focus_of(subject, maps_of(subject.trained.model), args.fap_images),
        measured_by={"fap_images": args.fap_images},
    )
    measurements = study.run()
    text = table(measurements, list(rows), claimed)
    (study.folder / "table.md").write_text(text)
    picture(measurements, list(rows), study.folder / f"{name}.png", study.title(title))
    print(f"\n{text}\nmeasurements.csv, table.md and {name}.png are in {study.folder}")


def focus_of(subject: Subject, maps: AttentionMaps | None, images: int) -> Measurement:
    """FAP with its chance level and random control; empty for a model without an attention map."""
    if maps is None:
        return {}
    try:
        focus = measure_focus(subject.trained.model, subject.loader(images), maps)
    except ValueError as e:  # no attention map: report accuracy only
        print(f"note: FAP is not measured for this model: {e}")
        return {}
    print(focus)
    return {
        "fap": focus.fap,
        "fap_chance": focus.chance,
        "fap_random": focus.random,
        "fap_images": focus.num_images,
        "empty_cams": focus.empty_cams,
    }


def table(measurements: Sequence[Measurement], rows: Sequence[str], claimed: Claimed) -> str:
    """Markdown table with one line per row; the last columns are the paper's claims."""
    seeds = ", ".join(map(str, sorted({int(m["seed"]) for m in measurements})))
    heads = ["model", f"top-1 % (seeds {seeds})", "FAP %", "chance", "random maps", "claimed top-1", "claimed FAP"]
    lines = []
    for row in rows:
        shown = (mean_and_spread(column(measurements, row, name)) for name in ("fap", "fap_chance", "fap_random"))
        top1 = mean_and_spread(column(measurements, row, "acc1"), 2)
        lines.append([row, top1, *shown, *claimed.get(row, ("—", "—"))])
    return markdown_table(heads, lines)


def picture(measurements: Sequence[Measurement], rows: Sequence[str], path: Path, title: str) -> None:
    """Plot accuracy and FAP side by side, with each row's chance level."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 1.4 + 0.55 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    bars(left, measurements, rows, "acc1", "top-1 accuracy, %")
    bars(right, measurements, rows, "fap", "Focused Attention Percentage, %")
    for place, row in enumerate(rows):  # the chance level depends on the row's patch grid
        for chance in column(measurements, row, "fap_chance")[:1]:
            right.vlines(chance, place - 0.4, place + 0.4, color="#b03a2e", linestyle="--")
            right.text(chance, place - 0.4, "chance", color="#b03a2e", fontsize=7, ha="center", va="bottom")
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=150)
