"""All variants with the same training budget: accuracy, parameters, multiply-adds, step time, and the claimed order.

    uv run clear-vit-compare                                                        micro models on the digits
    uv run clear-vit-compare --dataset imagefolder --data-path DIR --epochs 10 --seeds 0 1 2

The flags of clear-vit-train apply to every variant. Repeat the command to resume an interrupted
comparison. Writes measurements.csv, table.md and comparison.png.
"""

import functools
import itertools
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clear_vit.model import VARIANTS, SuppressionAttention
from clear_vit.recipe import RECIPE, of_variant
from clear_vit.registry import SIZES
from vit_core.bench.pair import Contestant, in_turn
from vit_core.commands.settings import parse_with
from vit_core.commands.study import (
    Measurement,
    Study,
    StudyFlags,
    Subject,
    column,
    markdown_table,
    mean_and_spread,
)
from vit_core.errors import UserError
from vit_core.flags import command, flag
from vit_core.ledger.statistics import corrected_differences, differences_to_baseline
from vit_core.training.precision import choose_precision

# The README's table, ImageNet-100 after 90 epochs: acc@1 and acc@5.
CLAIMED = {
    "pos_dropout": (44.970, 75.240), "diff_similarity": (46.360, 75.540), "baseline": (48.109, 75.617),
    "suppression": (49.383, 77.673), "rope": (53.331, 80.407), "diff_entropy": (53.803, 80.530),
    "rope_mixed_ape": (56.805, 83.326),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Flags(StudyFlags):
    """Train the variants with the same budget and compare them.

    The flags of clear-vit-train apply to every variant. Repeat the command to resume an interrupted comparison.
    """

    seeds: tuple[int, ...] = flag((0, 1, 2), "random seeds of each variant")
    output_dir: Path = flag(Path("./comparison"), "folder of the comparison", metavar="DIR")
    variants: tuple[str, ...] = flag(tuple(CLAIMED), "variants to compare", choices=tuple(VARIANTS))
    size: str = flag("micro", "model size", choices=tuple(SIZES))
    time_rounds: int = flag(5, "rounds for timing a training step", least=1)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args, shared = parse_with(RECIPE, Flags, argv, "clear-vit-compare")
    if "model" in shared:
        raise UserError("--model and --variant are not available here: use --variants and --size")
    name = {v: f"micro_{v}" if args.size == "micro" else v for v in args.variants}
    study = Study(
        recipe=RECIPE,
        rows={v: {**of_variant(v, shared), "model": name[v]} for v in args.variants},
        seeds=args.seeds,
        folder=args.output_dir,
        measure=measure_cost(f"clear_vit_{args.size}_baseline", args.time_rounds),
        measured_by={"time_rounds": args.time_rounds},
    )
    measurements = study.run()
    text = table(measurements)
    (study.folder / "table.md").write_text(text)
    draw(measurements, study.folder / "comparison.png", study.title("clear-vit, one budget"))
    print(f"\n{text}\nwrote measurements.csv, table.md and comparison.png to {study.folder}")
    return 0


def measure_cost(baseline: str, rounds: int) -> Callable[[Subject], Measurement]:
    """Multiply-adds, and the time of a training step and of the baseline's, measured alternately.

    Multiply-adds are counted from the definition, whatever implementation runs: all variants have the baseline's matrix
    products (diff_entropy: two maps of half the width, one product with V), and suppression also its convolution.
    """

    def measure(subject: Subject) -> Measurement:
        run, settings, device = subject.run, subject.trained.settings, subject.world.device
        precision = choose_precision(run.train.amp, device)
        size = {"img_size": settings["img_size"], "num_classes": settings["num_classes"]}
        ours, plain = (
            Contestant(model, {**kwargs, **size}, run.train.batch_size, device, precision)
            for model, kwargs in ((run.model, run.model_kwargs), (baseline, _sizes_of(run.model_kwargs)))
        )
        times = in_turn([ours.train, plain.train], device, rounds)
        attentions = [m for m in ours.model.modules() if isinstance(m, SuppressionAttention)]
        tokens = ours.model.patch_embed.num_patches + 1  # type: ignore[operator, union-attr]
        convolutions = sum(9 * attn.num_heads * tokens**2 for attn in attentions)
        return {
            "gmacs": plain.gmacs() + convolutions / 1e9,
            "step_ms": 1e3 * statistics.median(t[0] for t in times),
            "step_to_baseline": statistics.median(t[0] / t[1] for t in times),
        }

    return measure


def _sizes_of(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The size arguments, which the baseline shares; the arguments specific to a variant are left out."""
    return {k: v for k, v in kwargs.items() if k in ("depth", "embed_dim", "num_heads", "mlp_ratio", "patch_size")}


def ranked(measurements: Sequence[Measurement]) -> list[str]:
    """The variants by mean acc@1, best first."""
    names = dict.fromkeys(m["row"] for m in measurements)
    return sorted(names, key=lambda v: -statistics.fmean(column(measurements, v, "acc1")))


def by_seed(measurements: Sequence[Measurement]) -> dict[str, dict[int, float]]:
    """row -> seed -> acc@1."""
    values: dict[str, dict[int, float]] = {}
    for m in measurements:
        values.setdefault(m["row"], {})[int(m["seed"])] = float(m["acc1"])
    return values


def pairs_in_order(measurements: Sequence[Measurement]) -> tuple[int, int, int]:
    """(pairs in the claimed order, pairs in the opposite order, all pairs): of the pairs whose paired difference over
    the seeds is significant after correction for the number of pairs. With one seed, none is.
    """
    values = by_seed(measurements)
    pairs = {}
    for a, b in itertools.combinations([v for v in CLAIMED if v in values], 2):
        seeds = sorted(values[a].keys() & values[b].keys())
        if seeds:
            pairs[f"{a} {b}"] = ([values[a][s] for s in seeds], [values[b][s] for s in seeds])
    agree = against = 0
    for name, difference in corrected_differences(pairs).items():
        a, b = name.split()
        if difference.differs:
            claimed = (difference.mean > 0) == (CLAIMED[a][0] > CLAIMED[b][0])
            agree, against = agree + claimed, against + (not claimed)
    return agree, against, len(pairs)


def table(measurements: Sequence[Measurement]) -> str:
    """Markdown: one line per variant, best first, and how many pairs are in the claimed order."""
    seeds = ", ".join(map(str, sorted({int(m["seed"]) for m in measurements})))
    heads = [
        "variant",
        f"acc@1 % (seeds {seeds})",
        "acc@5 %",
        "vs. baseline, points (95% interval)",
        "parameters",
        "multiply-adds, 10⁹",
        "step time, ms",
        "× baseline",
        "claimed acc@1",
        "claimed acc@5",
        "claimed vs. baseline",
    ]
    values = by_seed(measurements)
    differences = differences_to_baseline(values, "baseline") if "baseline" in values else {}
    lines = []
    for v in ranked(measurements):
        of = functools.partial(column, measurements, v)
        claimed = CLAIMED.get(v)
        lines.append(
            [
                v,
                mean_and_spread(of("acc1"), 2),
                mean_and_spread(of("acc5"), 2),
                str(differences.get(v, "")),
                f"{int(of('parameters')[0]):,}",
                f"{of('gmacs')[0]:.4f}",
                mean_and_spread(of("step_ms"), 0),
                mean_and_spread(of("step_to_baseline"), 2),
                f"{claimed[0]:.2f}" if claimed else "—",
                f"{claimed[1]:.2f}" if claimed else "—",
                f"{claimed[0] - CLAIMED['baseline'][0]:+.2f}" if claimed and v != "baseline" else "",
            ]
        )
    agree, against, pairs = pairs_in_order(measurements)
    return markdown_table(heads, lines) + (
        "\nvs. baseline: mean paired difference over the seeds with its 95% interval, corrected for the number of rows "
        f"(Holm).\nOf {pairs} pairs of variants, {agree} differ in the claimed direction and {against} in the opposite "
        f"direction; {pairs - agree - against} do not differ significantly (paired differences, Holm's correction).\n"
    )


def draw(measurements: Sequence[Measurement], path: Path, title: str) -> None:
    """Measured order on the left, claimed order on the right, each from best to worst; lines connect a variant."""
    from matplotlib.figure import Figure
    from matplotlib.patches import ConnectionPatch

    ours = ranked(measurements)
    theirs = sorted((v for v in ours if v in CLAIMED), key=lambda v: -CLAIMED[v][0])
    figure = Figure(figsize=(11, 1.6 + 0.5 * len(ours)), layout="constrained")
    left, between, right = figure.subplots(1, 3, width_ratios=(4, 1.2, 4))
    between.axis("off")
    colors = {v: f"C{i}" for i, v in enumerate(VARIANTS)}
    for place, v in enumerate(ours):
        values = column(measurements, v, "acc1")
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        mean = statistics.fmean(values)
        left.barh(place, mean, xerr=spread or None, color=colors[v], alpha=0.55, height=0.6, capsize=3)
        left.plot(values, [place] * len(values), "o", color="#1f3b57", markersize=4)
        left.text(0.02, place, f"{mean:.2f}", va="center", fontsize=9, transform=left.get_yaxis_transform())
    for place, v in enumerate(theirs):
        right.barh(place, CLAIMED[v][0], color=colors[v], alpha=0.55, height=0.6)
        right.text(0.02, place, f"{CLAIMED[v][0]:.2f}", va="center", fontsize=9, transform=right.get_yaxis_transform())
        between.add_artist(
            ConnectionPatch(
                (1, ours.index(v)),
                (0, place),
                coordsA=left.get_yaxis_transform(),
                coordsB=right.get_yaxis_transform(),
                color=colors[v],
                lw=2,
                clip_on=False,
            )
        )
    for ax, names in ((left, ours), (right, theirs)):
        ax.set_yticks(range(len(names)), names)
        ax.set(ylim=(len(ours) - 0.5, -0.5), xlim=(0, None))
    right.yaxis.tick_right()
    seeds = len({m["seed"] for m in measurements})
    left.set(
        xlabel=f"acc@1, %: mean, standard deviation and values of {seeds} seeds" if seeds > 1 else "acc@1, % (one seed)"
    )
    right.set(xlabel="acc@1, %: claimed, ImageNet-100, 90 epochs")
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
