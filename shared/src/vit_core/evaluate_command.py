"""The `evaluate` command of every paper: a checkpoint's loss, accuracy and speed on a dataset."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from vit_core import distributed
from vit_core.checkpoint import load_checkpoint, load_weights
from vit_core.cli import ArgumentParser, output_file
from vit_core.config import DataConfig
from vit_core.data import AugmentConfig, BatchLoader, EvalTransform
from vit_core.errors import UserError
from vit_core.evaluation import EvalResult, evaluate, format_result
from vit_core.precision import MODES, choose_precision
from vit_core.recipe import Recipe, check_classes, create_model, load_images, run_settings
from vit_core.run_folder import environment


def parser(recipe: Recipe) -> ArgumentParser:
    p = ArgumentParser(prog=f"{recipe.command}-evaluate", description=f"Evaluate a checkpoint of {recipe.paper}.")
    p.add_argument("--checkpoint", required=True, help="file that training wrote, such as best.pth")
    p.add_argument("--model", choices=tuple(recipe.models), help="check that the checkpoint is of this model")
    p.add_argument("--dataset", help="dataset to evaluate on (default: the one it was trained on)")
    p.add_argument("--data-path", help="folder of the dataset (default: the one it was trained on)")
    p.add_argument("--download", action="store_true", help="download the dataset where it is missing")
    p.add_argument("--batch-size", type=int, default=256, help="images a batch (default: %(default)s)")
    p.add_argument("--num-workers", type=int, default=4, help="processes that read images (default: %(default)s)")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    p.add_argument(
        "--amp", nargs="?", const="auto", default="off", choices=MODES, help="mixed precision (default: off)"
    )
    p.add_argument("--no-amp", dest="amp", action="store_const", const="off", help="float32, the default")
    p.add_argument(
        "--raw-weights", action="store_true", help="the weights themselves where the run kept an EMA of them"
    )
    p.add_argument("--json", metavar="FILE", type=output_file, help="write the result there too")
    return p


def run(recipe: Recipe, argv: Sequence[str] | None = None) -> int:
    """Parse `argv`, evaluate, print the result block. Returns the exit code."""
    args = parser(recipe).parse_args(argv)
    if args.batch_size < 1 or args.num_workers < 0:
        raise UserError("--batch-size must be at least 1 and --num-workers at least 0")
    world = distributed.start(args.device)
    try:
        result, settings, data = _evaluate(recipe, args, world)
    finally:
        distributed.stop()
    if world.is_main:
        short = {name: key for key, name in recipe.models.items()}[settings["model"]]
        print(format_result(result, data.dataset, f"{recipe.paper}-{short}"))
        if args.json:
            record = dataclasses.asdict(result) | {
                "dataset": data.dataset, "model": settings["model"], "checkpoint": args.checkpoint,
                "environment": environment(),
            }  # fmt: skip
            args.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


def _evaluate(recipe: Recipe, args: Any, world: distributed.World) -> tuple[EvalResult, dict[str, Any], DataConfig]:
    checkpoint = load_checkpoint(args.checkpoint)
    settings = run_settings(checkpoint, args.checkpoint)
    if settings["model"] not in recipe.models.values():
        raise UserError(f"{args.checkpoint} is not a checkpoint of {recipe.paper}")
    if args.model and recipe.models[args.model] != settings["model"]:
        raise UserError(f"{args.checkpoint} is a checkpoint of {settings['model']}, not of {recipe.models[args.model]}")
    trained = settings["data"]
    same = args.dataset in (None, trained["dataset"])
    data = DataConfig(
        dataset=args.dataset or trained["dataset"],
        data_path=args.data_path or (trained["data_path"] if same else None),
        download=args.download,
        num_workers=args.num_workers,
    )
    dataset = load_images(data, settings["img_size"], world)
    note = check_classes(settings, args.checkpoint, dataset, data.dataset)
    if note and world.is_main:
        print(note)
    model = create_model(settings["model"], settings["model_kwargs"], settings["num_classes"], settings["img_size"])
    ema = None if args.raw_weights else checkpoint.get("ema_state_dict")
    load_weights(model, ema or checkpoint["model_state_dict"], args.checkpoint)
    crop_pct = AugmentConfig(**settings["augment"]).eval_crop_pct
    loader = BatchLoader(
        dataset.val,
        batch_size=args.batch_size,
        transform=EvalTransform(settings["img_size"], settings["mean"], settings["std"], crop_pct),
        train=False,
        rank=world.rank,
        world=world.size,
        device=world.device,
        num_workers=args.num_workers,
    )
    precision = choose_precision(args.amp, world.device)
    shown = world.is_main and sys.stderr.isatty()
    with tqdm(total=len(loader), disable=not shown, leave=False, desc="evaluate", unit=" batches") as bar:
        result = evaluate(
            model.to(world.device),
            loader,
            precision,
            on_batch=bar.update,
        )
    return result, settings, data
