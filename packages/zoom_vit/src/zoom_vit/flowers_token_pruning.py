"""Token pruning, and whether it helps only if the intent is aligned (`alignment.py` defines how this is measured).

    uv run zoom-vit-flowers-token-pruning --checkpoint FILE

Uses the whole test split; the study used three images. Writes pruning_results.txt, pruning_results.json and
pruning_by_image.csv.
"""

import csv
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from vit_core.commands.study import markdown_table
from vit_core.flags import command, flag, parse
from zoom_vit.alignment import GROUPS, LABELS, MEASURES, Judgment, groups, judge, summarize, verdict
from zoom_vit.experiment import (
    Experiment,
    JudgmentFlags,
    begin,
    judgment,
    threshold_of,
)
from zoom_vit.recipe import FLOWERS

# The study's images from Flowers-102's test split: intent, then confidence and class, dense and pruned.
PUBLISHED = {
    1143: "good, 3.29% (84), 3.46% (71)",
    5238: "inverted, 3.19% (23), 3.10% (25)",
    204: "diffuse, 5.53% (6), 5.19% (6)",
}
Columns = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Flags(JudgmentFlags):
    """Measure token pruning, by alignment of the intent."""

    max_images: int | None = flag(None, "number of evenly spaced images (default: the whole split)", least=1)
    indices: tuple[int, ...] | None = flag(None, "single images to report (default on Flowers-102: the study's three)")


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Flags, argv, "zoom-vit-flowers-token-pruning")
    experiment = begin(FLOWERS, args)
    by, threshold = judgment(args, experiment.model), threshold_of(args, experiment.model)
    flowers = experiment.dataset.name == "flowers102" and experiment.dataset.eval_split == "test"
    indices = list(args.indices) if args.indices is not None else list(PUBLISHED) if flowers else []
    single = images_report(experiment, by, threshold, indices, published=flowers) if indices else ""
    columns = study(experiment, by, args.max_images)
    rows = summarize(columns, threshold)
    text = report(experiment, by, threshold, columns, rows) + sensitivity(columns, threshold, rows) + single
    write(experiment, by, threshold, columns, rows, text)
    print(f"{text}\npruning_results.txt, pruning_results.json and pruning_by_image.csv are in {experiment.folder}")
    return 0


def study(experiment: Experiment, by: Judgment, limit: int | None = None) -> Columns:
    """`judge`'s columns over the evaluation split, with `index` and `target`."""
    parts: list[Columns] = []
    numbers = experiment.numbers(limit)
    with tqdm(total=len(numbers), disable=not sys.stderr.isatty(), leave=False, unit=" images") as bar:
        for indices, images, targets in experiment.batches(limit):
            judged = {k: v.cpu().numpy() for k, v in judge(experiment.model, images, targets, by).items()}
            parts.append({"index": np.array(indices), "target": targets.cpu().numpy(), **judged})
            bar.update(len(indices))
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def report(
    experiment: Experiment, by: Judgment, threshold: float, columns: Columns, rows: Sequence[dict[str, Any]]
) -> str:
    """Markdown report: the changes by pruning in each group, and the verdict on the claim."""
    patches = experiment.model.patch_embed.num_patches
    quartiles = ", ".join(f"{q:.3f}" for q in np.percentile(columns["entropy"], [25, 50, 75]))
    where = "after the last block" if by.judged_at == "last" else "at the pruning layer"
    lines = [
        f"{experiment.trained.settings['model']}, epoch {experiment.trained.epoch}, {len(columns['index']):,} images "
        f"of {experiment.dataset.name} ({experiment.dataset.eval_split}); importance {by.importance}, keep "
        f"{by.keep_ratio:g} of {patches} patches after block {by.prune_layer}.",
        f"Intent: map {where}, judged by {by.judged_by}. Pruning keeps {columns['overlap'].mean():.0f}% of its "
        f"top patches; chance is {100 * by.keep_ratio:.0f}%. Diffuse: normalized entropy above {threshold:.3f} "
        f"(quartiles of all images: {quartiles}).",
        "Changes are differences from the dense model in percentage points, with 95% bootstrap intervals. Beyond "
        "random: pruning minus random pruning of the same images. Good against it: the good group's change minus this "
        "group's.",
        "",
    ]
    for measure in MEASURES:
        heads = ["intent", "images", f"dense: {LABELS[measure]}", "change by pruning", "by random pruning"]
        heads += ["beyond random", "good against it"]
        table = []
        for row in rows:
            cells = [row["group"], f"{row['images']:,} ({row['share']:.1f}%)"]
            cells += [f"{row[f'dense_{measure}']:.2f}"] if row["images"] else ["—"]
            table.append(
                cells + [_change(row.get(f"{kind}_{measure}")) for kind in ("pruned", "random", "beyond", "contrast")]
            )
        lines.append(markdown_table(heads, table))
    lines.append(
        'Claim: "Pruning is beneficial only when visual intent is correctly aligned". Verdicts (gain or loss: p < 0.05 '
        "with Holm's correction for the groups):"
    )
    lines += [f"- {verdict(rows, measure)}" for measure in MEASURES]
    return "\n".join(lines) + "\n"


def _change(values: Sequence[float] | None) -> str:
    return "—" if values is None else f"{values[0]:+.2f} ({values[1]:+.2f} … {values[2]:+.2f})"


def sensitivity(columns: Columns, threshold: float, rows: Sequence[dict[str, Any]]) -> str:
    """The verdicts for other definitions of "diffuse": no image, or the third of the images with the highest entropy.

    rows: the summary at the given threshold.
    """
    lines = []
    for name, value in (
        ("none", 1.0),
        ("as above", threshold),
        ("a third", np.percentile(columns["entropy"], 200 / 3)),
    ):
        group = groups(columns, value)
        shares = " / ".join(f"{100 * (group == i).mean():.0f}" for i in range(3))
        at = rows if value == threshold else summarize(columns, value)
        lines += [[name, f"{value:.3f}", shares, verdict(at, measure)] for measure in MEASURES]
    heads = ["diffuse", "entropy above", "good / inverted / diffuse, %", "verdict"]
    return "\nSensitivity to the entropy threshold:\n\n" + markdown_table(heads, lines)


def images_report(
    experiment: Experiment, by: Judgment, threshold: float, indices: Sequence[int], *, published: bool
) -> str:
    """Markdown table of single images of the split. UserError for an index outside the split."""
    images, targets = experiment.pick(list(indices))
    columns = {k: v.cpu().numpy() for k, v in judge(experiment.model, images, targets, by).items()}
    group = groups(columns, threshold)
    names = experiment.trained.class_names
    table = []
    for i, number in enumerate(indices):
        line = [str(number), f"{names[int(targets[i])]} ({int(targets[i])})", GROUPS[group[i]]]
        line.append(f"{columns['entropy'][i]:.3f}")
        for kind in ("dense", "pruned", "random"):
            line.append(f"{columns[f'{kind}_confidence'][i]:.2f}% ({columns[f'{kind}_class'][i]})")
        table.append(line + [PUBLISHED.get(number, "—")] * published)
    heads = ["image", "class", "intent", "entropy", "dense: confidence (class)", "pruned", "random pruning"]
    return "\nSingle images:\n\n" + markdown_table(heads + ["published: intent, dense, pruned"] * published, table)


def write(
    experiment: Experiment, by: Judgment, threshold: float, columns: Columns, rows: Sequence[dict[str, Any]], text: str
) -> None:
    folder = experiment.folder
    (folder / "pruning_results.txt").write_text(text)
    record = {
        "judgment": dataclasses.asdict(by),
        "entropy_threshold": threshold,
        "groups": list(rows),
        "overlap": float(columns["overlap"].mean()),
        "verdicts": {measure: verdict(rows, measure) for measure in MEASURES},
        **experiment.record(),
    }
    (folder / "pruning_results.json").write_text(json.dumps(record, indent=2) + "\n")
    table = {**columns, "group": np.array(GROUPS)[groups(columns, threshold)]}
    with (folder / "pruning_by_image.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(table)
        for values in zip(*table.values(), strict=True):
            writer.writerow([f"{v:.6g}" if isinstance(v, np.floating) else v for v in values])


if __name__ == "__main__":
    sys.exit(main())
