"""Token pruning, and whether it helps only where the intent is aligned (`alignment.py` says how that is measured).

    uv run zoom-vit-flowers-token-pruning --checkpoint FILE

Over the whole test split; the study looked at three images. Writes pruning_results.txt, pruning_results.json and
pruning_by_image.csv.
"""

import csv
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

import zoom_vit  # noqa: F401 -- registers the models with timm
from vit_core.cli import ArgumentParser, command
from vit_core.run_folder import environment
from vit_core.study import markdown_table
from zoom_vit.alignment import GROUPS, LABELS, MEASURES, Judgement, judge, noise_entropy, summarise, verdict
from zoom_vit.experiment import (
    FLOWERS_FOLDER,
    PUBLISHED_IMAGES,
    Experiment,
    add_experiment_flags,
    add_judgement_flags,
    begin,
    judgement,
)
from zoom_vit.recipe import FLOWERS

Columns = dict[str, np.ndarray]


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    experiment = begin(FLOWERS, args)
    by = judgement(experiment)
    columns = study(experiment, by, args.max_images)
    rows = summarise(columns)
    text = report(experiment, by, columns, rows) + images_report(experiment, by, args.indices)
    write(experiment, by, columns, rows, text)
    print(f"{text}\npruning_results.txt, pruning_results.json and pruning_by_image.csv are in {experiment.folder}")
    return 0


def study(experiment: Experiment, by: Judgement, limit: int | None = None) -> Columns:
    """`judge`'s columns over the evaluation split, with `index` and `target`."""
    parts: list[Columns] = []
    numbers = experiment.numbers(limit)
    with tqdm(total=len(numbers), disable=not sys.stderr.isatty(), leave=False, unit=" images") as bar:
        for indices, images, targets in experiment.batches(limit):
            judged = {k: v.cpu().numpy() for k, v in judge(experiment.model, images, targets, by).items()}
            parts.append({"index": np.array(indices), "target": targets.cpu().numpy(), **judged})
            bar.update(len(indices))
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def report(experiment: Experiment, by: Judgement, columns: Columns, rows: Sequence[dict[str, Any]]) -> str:
    """What pruning changes in each group, as Markdown, and what that says of the claim."""
    patches = experiment.model.patch_embed.num_patches
    threshold = noise_entropy(patches) if by.entropy_threshold is None else by.entropy_threshold
    quartiles = np.percentile(columns["entropy"], [25, 50, 75])
    lines = [
        f"{experiment.trained.settings['model']} of epoch {experiment.trained.epoch}, {len(columns['index']):,} images "
        f"of {experiment.dataset.name} ({experiment.dataset.eval_split}); importance {by.importance}, keep "
        f"{by.keep_ratio:g} of {patches} patches after block {by.prune_layer}, intent judged by {by.judged_by}.",
        f"Diffuse: normalised entropy over {threshold:.3f}; quartiles {', '.join(f'{q:.3f}' for q in quartiles)}.",
        "Changes against the dense model in percentage points, with 95% bootstrap intervals; beyond random: the "
        "difference to random pruning of the same images.",
        "",
    ]
    for measure in MEASURES:
        heads = [
            "intent",
            "images",
            f"dense: {LABELS[measure]}",
            "change by pruning",
            "by random pruning",
            "beyond random",
        ]
        table = []
        for row in rows:
            cells = [row["group"], f"{row['images']:,} ({row['share']:.1f}%)"]
            cells += [f"{row[f'dense_{measure}']:.2f}"] if row["images"] else ["—"]
            table.append(cells + [_change(row.get(f"{kind}_{measure}")) for kind in ("pruned", "random", "beyond")])
        lines.append(markdown_table(heads, table))
    lines.append('"Pruning is beneficial only when visual intent is correctly aligned", by')
    lines += [f"- {verdict(rows, measure)}" for measure in MEASURES]
    return "\n".join(lines) + "\n"


def _change(values: Sequence[float] | None) -> str:
    return "—" if values is None else f"{values[0]:+.2f} ({values[1]:+.2f} … {values[2]:+.2f})"


def images_report(experiment: Experiment, by: Judgement, indices: Sequence[int] | None) -> str:
    """The images that the study shows, one by one; by default those it names, where the split has them."""
    count = len(experiment.dataset.val)
    chosen = [i for i in PUBLISHED_IMAGES if i < count] if indices is None else list(indices)
    if not chosen:
        return ""
    images, targets = experiment.pick(chosen)
    columns = {k: v.tolist() for k, v in judge(experiment.model, images, targets, by).items()}
    names = experiment.trained.class_names
    table = []
    for i, number in enumerate(chosen):
        says = [f"{names[columns[f'{k}_class'][i]]} {columns[f'{k}_confidence'][i]:.2f}%" for k in ("dense", "pruned")]
        group = GROUPS[columns["group"][i]]
        table.append([str(number), names[int(targets[i])], group, f"{columns['entropy'][i]:.3f}", *says])
    heads = ["image", "class", "intent", "entropy", "dense says", "pruned says"]
    return "\nSingle images:\n" + markdown_table(heads, table)


def write(experiment: Experiment, by: Judgement, columns: Columns, rows: Sequence[dict[str, Any]], text: str) -> None:
    folder = experiment.folder
    (folder / "pruning_results.txt").write_text(text)
    record = {
        "judgement": dataclasses.asdict(by), "checkpoint": str(experiment.trained.source),
        "dataset": experiment.dataset.name, "eval_split": experiment.dataset.eval_split, "groups": list(rows),
        "verdicts": {measure: verdict(rows, measure) for measure in MEASURES}, "environment": environment(),
    }  # fmt: skip
    (folder / "pruning_results.json").write_text(json.dumps(record, indent=2) + "\n")
    with (folder / "pruning_by_image.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(columns)
        for values in zip(*columns.values(), strict=True):
            writer.writerow([f"{v:.6g}" if isinstance(v, np.floating) else v for v in values])


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="zoom-vit-flowers-token-pruning", description="What token pruning changes, by the alignment of the intent."
    )
    parser.add_argument("--max-images", type=int, help="evenly spread (default: all of the split)")
    parser.add_argument("--indices", type=int, nargs="*", help="single images to report (default: the study's three)")
    add_judgement_flags(parser)
    add_experiment_flags(parser, FLOWERS_FOLDER)
    return parser


if __name__ == "__main__":
    sys.exit(main())
