"""`reproduce evaluate --dataset`: evaluate the models of a run on another dataset with the same classes."""

import dataclasses
from typing import Any

from vit_core.commands.trained_model import ImageFlags, load_trained
from vit_core.errors import UserError
from vit_core.reproduce.run import Reproduction, write_json
from vit_core.reproduce.steps import studies
from vit_core.training.distributed import World, pick_device
from vit_core.training.evaluation import evaluate
from vit_core.training.precision import choose_precision
from vit_core.training.run_folder import environment


def evaluate_on(run: Reproduction, dataset: str, data_path: str | None, *, download: bool = False) -> None:
    """Print one line per model, and write evaluation_<dataset>.json to the run folder.

    UserError if a model is not trained, or if the dataset has a different number of classes.
    """
    wanted = ImageFlags(dataset=dataset, data_path=data_path, download=download)
    world = World(0, 1, pick_device(run.options.device))
    rows: list[dict[str, Any]] = []
    for name, paper in run.papers.items():
        if run.only is not None and name not in run.only:
            continue
        for study in studies(paper, run.options, run.folder / name).values():
            for row, seed in ((row, seed) for row in study.rows for seed in study.seeds):
                checkpoint = study.checkpoint(row, seed)
                if checkpoint is None:
                    raise UserError(f"{name}, {row}, seed {seed} is not trained in {run.folder}")
                trained = load_trained(study.recipe, checkpoint, world.device)
                images, _ = trained.dataset(wanted, world)
                size = study.settled(row).train.batch_size
                loader = trained.loader(images, world, batch_size=size, num_workers=wanted.num_workers)
                result = evaluate(trained.model, loader, choose_precision("off", world.device))
                rows.append({"paper": name, "row": row, "seed": seed, **dataclasses.asdict(result)})
                print(
                    f"{name}, {row}, seed {seed}: top-1 {result.acc1:.2f}%, top-5 {result.acc5:.2f}%, loss "
                    f"{result.loss:.4f} on {result.num_images:,} images of {dataset}",
                    flush=True,
                )
    file = run.folder / f"evaluation_{dataset}.json"
    write_json(file, {"dataset": dataset, "data_path": data_path, "rows": rows, "environment": environment()})
    print(f"results written to {file}")
