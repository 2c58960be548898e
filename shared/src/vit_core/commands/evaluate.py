"""The `evaluate` command of every paper: loss, accuracy and speed of a checkpoint on a dataset."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from vit_core.commands.trained_model import add_checkpoint_flag, add_data_flags, check_data_flags, load_trained
from vit_core.errors import UserError
from vit_core.files import write_whole
from vit_core.flags import ArgumentParser, output_file
from vit_core.recipe import Recipe
from vit_core.training import distributed
from vit_core.training.evaluation import evaluate, format_result
from vit_core.training.precision import choose_precision
from vit_core.training.run_folder import environment


def parser(recipe: Recipe, folder: str | None = None) -> ArgumentParser:
    p = ArgumentParser(prog=f"{recipe.command}-evaluate", description=f"Evaluate a checkpoint of {recipe.paper}.")
    add_checkpoint_flag(p)
    p.add_argument("--model", choices=tuple(recipe.models), help="fail unless the checkpoint is of this model")
    add_data_flags(p)
    if folder is not None:
        p.add_argument("--output-dir", default=folder, help="folder for results.txt and .json (default: %(default)s)")
    p.add_argument("--json", metavar="FILE", type=output_file, help="also write the result to this JSON file")
    return p


def run(recipe: Recipe, argv: Sequence[str] | None = None, folder: str | None = None) -> int:
    """Parse `argv`, evaluate, and print the result block; if `folder` is given, also write it to results.txt there.

    Returns the exit code.
    """
    args = parser(recipe, folder).parse_args(argv)
    check_data_flags(args)
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
        short = {name: key for key, name in recipe.models.items()}[name]
        block = format_result(result, data.dataset, f"{recipe.paper}-{short}")
        print(block)
        record = dataclasses.asdict(result) | {
            "dataset": data.dataset, "eval_split": dataset.eval_split, "model": name, "checkpoint": args.checkpoint,
            "environment": environment(),
        }  # fmt: skip
        text = json.dumps(record, indent=2) + "\n"
        if args.json:
            write_whole(args.json, text)
        if folder is not None:
            place = Path(args.output_dir)
            place.mkdir(parents=True, exist_ok=True)
            write_whole(place / "results.txt", block + "\n")
            write_whole(place / "results.json", text)
            print(f"results written to {place / 'results.txt'} and {place / 'results.json'}")
    return 0
