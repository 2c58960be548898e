"""The `evaluate` command of every paper: loss, accuracy and speed of a checkpoint on a dataset."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from vit_core.commands.trained_model import AmpFlags, CheckpointFlags, ImageFlags, load_trained
from vit_core.errors import UserError
from vit_core.files import write_whole
from vit_core.flags import flag, parse
from vit_core.training import distributed
from vit_core.training.evaluation import evaluate, format_result
from vit_core.training.precision import choose_precision
from vit_core.training.run_folder import environment

if TYPE_CHECKING:
    from vit_core.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags(CheckpointFlags, ImageFlags, AmpFlags):
    """The flags of the evaluate command; `of_recipe` adds those that depend on the paper."""

    model: str | None = None
    output_dir: str | None = None
    json: Path | None = flag(None, "also write the result to this JSON file", metavar="FILE", output=True)


def of_recipe(recipe: "Recipe") -> type[EvaluateFlags]:
    """The flags of a paper's evaluate command."""
    model = flag(None, "fail unless the checkpoint is of this model", choices=tuple(recipe.models))
    place = flag(recipe.results_folder, "folder for results.txt and results.json", metavar="DIR")
    return dataclasses.make_dataclass(
        "EvaluateFlags",
        [("model", str | None, model), ("output_dir", str | None, place)],
        bases=(EvaluateFlags,),
        namespace={"__doc__": f"Evaluate a checkpoint of {recipe.paper}."},
        frozen=True,
        kw_only=True,
    )


def run(recipe: "Recipe", argv: Sequence[str] | None = None) -> int:
    """Parse `argv`, evaluate, and print the result block. Returns the exit code."""
    args = parse(of_recipe(recipe), argv, f"{recipe.command}-evaluate")
    world = distributed.start(args.device)
    try:
        trained = load_trained(recipe, args.checkpoint, world.device, model=args.model, raw_weights=args.raw_weights)
        dataset, data = trained.dataset(args, world)
        loader = trained.loader(dataset, world, batch_size=args.batch_size, num_workers=args.num_workers)
        shown = world.is_main and sys.stderr.isatty()
        with tqdm(total=len(loader), disable=not shown, leave=False, desc="evaluate", unit=" batches") as bar:
            precision = choose_precision(args.amp, world.device)
            result = evaluate(trained.model, loader, precision, on_batch=bar.update)
    except RuntimeError as e:
        if not distributed.is_lost_process(e):
            raise
        raise UserError(distributed.LOST_PROCESS) from e
    finally:
        distributed.stop()
    if world.is_main:
        name = trained.settings["model"]
        block = format_result(result, data.dataset, f"{recipe.paper}-{recipe.short_name(name)}")
        print(block)
        record = dataclasses.asdict(result) | {
            "dataset": data.dataset,
            "eval_split": dataset.eval_split,
            "model": name,
            "checkpoint": args.checkpoint,
            "environment": environment(),
        }
        text = json.dumps(record, indent=2) + "\n"
        if args.json:
            write_whole(args.json, text)
        if args.output_dir is not None:
            place = Path(args.output_dir)
            place.mkdir(parents=True, exist_ok=True)
            write_whole(place / "results.txt", block + "\n")
            write_whole(place / "results.json", text)
            print(f"results written to {place / 'results.txt'} and {place / 'results.json'}")
    return 0
