"""The `train` command of every paper: flags -> model, data, run folder -> `Trainer` -> next steps."""

import logging
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from vit_core.commands.images import check_classes, load_images
from vit_core.commands.settings import Run, parse, run_settings, settle
from vit_core.data import Augment, BatchLoader, EvalTransform
from vit_core.errors import UserError
from vit_core.files import second_name
from vit_core.flags import build
from vit_core.models.create import create_model, input_size
from vit_core.tasks.classification import Classification
from vit_core.training import distributed
from vit_core.training.checkpoint import load_checkpoint
from vit_core.training.config import OutputConfig
from vit_core.training.run_folder import RunFolder
from vit_core.training.state import check_resumable
from vit_core.training.trainer import Stopped, Trainer

if TYPE_CHECKING:
    from vit_core.recipe import Recipe


def run(recipe: "Recipe", argv: Sequence[str] | None = None) -> int:
    """Parse `argv`, train, and print the next steps. Returns the exit code: 0, or 128 + signal after a signal."""
    return run_given(recipe, parse(recipe, argv))[0]


def run_given(recipe: "Recipe", given: Mapping[str, Any]) -> tuple[int, RunFolder | None]:
    """As `run`, for the flags returned by `settings.parse`. Also returns the run's folder if training finished."""
    try:
        trainer = train(recipe, given)
    except Stopped as stopped:
        if stopped.world.is_main:
            print(f"{stopped}\nresume with: {_resume_command(recipe, stopped, build(OutputConfig, given))}")
        return 128 + stopped.signal_number, None
    if trainer.world.is_main:
        _say_what_next(recipe, trainer)
    return 0, trainer.run


OnStep = Callable[[float], None]  # called with the fraction of training completed, after each optimizer step


def nothing_on_step(share: float) -> None:
    """Default of `on_step`: do nothing."""


def train(recipe: "Recipe", given: Mapping[str, Any], on_step: OnStep = nothing_on_step) -> Trainer:
    """Train with the flags returned by `settings.parse`; resumes if they contain `resume`.

    Raises Stopped on SIGTERM or Ctrl-C.
    """
    output = build(OutputConfig, given)
    source = Path(output.resume) if output.resume else None
    planned, checkpoint = _plan(recipe, given, source)
    world = distributed.start(planned.train.device)
    trainer = None
    try:
        logging.basicConfig(
            level=logging.INFO if world.is_main else logging.ERROR, format="%(message)s", stream=sys.stdout
        )
        if (own := _of_earlier_start(output, world)) is not None:  # later than --resume
            source = own
            planned, checkpoint = _plan(recipe, given, source)
        _check_alike(checkpoint, source)
        trainer = prepare(recipe, planned, world, output, checkpoint, source, on_step)
        try:
            trainer.fit()
        except Stopped:
            distributed.wait_for_all()
            raise
        distributed.wait_for_all()
    except RuntimeError as e:
        if not distributed.is_lost_process(e):
            raise
        last = trainer.last_saved if trainer is not None else source
        advice = (
            f"resume with: the same torchrun command with --resume {shlex.quote(str(last))}"
            if last
            else "no checkpoint was written yet"
        )
        raise UserError(f"{distributed.LOST_PROCESS}; {advice}") from e
    finally:
        if trainer is not None:
            trainer.run.close()
        distributed.stop()
    return trainer


def _plan(recipe: "Recipe", given: Mapping[str, Any], source: Path | None) -> tuple[Run, dict[str, Any] | None]:
    """The run's settings, and the checkpoint to resume from, if any."""
    if source is None:
        return settle(recipe, given, None), None
    checkpoint = load_checkpoint(source)
    resumed = run_settings(checkpoint, source)
    check_resumable(checkpoint, source)
    return settle(recipe, given, resumed), checkpoint


def _of_earlier_start(output: OutputConfig, world: distributed.World) -> Path | None:
    """last.pth of this job, if torchrun restarted it after the loss of a process (`--max-restarts`)."""
    job = distributed.job()
    if job is None or not distributed.is_restart():
        return None
    found = RunFolder.latest_of_job(output.save_dir, job) if world.is_main else None
    if world.is_main and found is None:
        print("note: restarted by torchrun, but this job has no checkpoint yet")
    return distributed.broadcast(found)


def _check_alike(checkpoint: Mapping[str, Any] | None, source: Path | None) -> None:
    """UserError if the processes read different checkpoints, on machines without a shared disk."""
    if len(set(distributed.gather(checkpoint and checkpoint["checksum"]))) > 1:
        raise UserError(
            f"{source} is not the same file on all machines: put the checkpoint on a disk that all machines share"
        )


def prepare(
    recipe: "Recipe",
    planned: Run,
    world: distributed.World,
    output: OutputConfig,
    checkpoint: dict[str, Any] | None = None,
    source: Path | None = None,
    on_step: OnStep = nothing_on_step,
) -> Trainer:
    """Create model, data, run folder and trainer; restore the state of `checkpoint`, read from `source`, if given."""
    train = planned.train
    distributed.seed_everything(train.seed)  # the same weights on every rank
    img_size = planned.data.img_size or input_size(create_model(planned.model, planned.model_kwargs, 1, None))
    dataset = load_images(planned.data, img_size, world)
    distributed.seed_everything(train.seed)
    model = create_model(planned.model, planned.model_kwargs, dataset.num_classes, planned.data.img_size)
    if checkpoint is None:
        _initialize(recipe, planned, model, world)
    distributed.seed_everything(train.seed, world.rank)
    augment = Augment(planned.augment, img_size, dataset.mean, dataset.std)
    common: dict[str, Any] = {
        "batch_size": train.batch_size,
        "seed": train.seed,
        "rank": world.rank,
        "world": world.size,
        "device": world.device,
        "num_workers": planned.data.num_workers,
    }
    train_loader = BatchLoader(dataset.train, transform=augment, train=True, **common)
    plain = EvalTransform(img_size, dataset.mean, dataset.std, planned.augment.eval_crop_pct)
    val_loader = BatchLoader(dataset.val, transform=plain, train=False, **common)
    note = None
    if checkpoint is not None and source is not None:
        note = check_classes(checkpoint["config"], source, dataset, planned.data.dataset)
    if checkpoint is not None and checkpoint["epoch"] >= train.epochs:
        raise UserError(
            f"{source} has already completed all {train.epochs} epochs: use a larger --epochs to continue training"
        )
    folder = _run_folder(planned, world, output, source, checkpoint)
    try:
        trainer = Trainer(
            model,
            train_loader,
            val_loader,
            train,
            world,
            folder,
            task=Classification(train, dataset.num_classes, train_loader.batch_images, recipe.loss_function),
            settings=planned.settings(dataset.class_names, img_size, (dataset.mean, dataset.std)),
            before_step=recipe.before_step,
            on_step=on_step,
            describe=recipe.describe,
        )
        if checkpoint is not None and source is not None:
            trainer.restore(checkpoint, source)
        with distributed.together():
            if world.is_main:
                folder.write_config({**trainer.settings, "processes": world.size, "job": distributed.job()})
    except BaseException:
        folder.close()
        raise
    if world.is_main:
        if note:
            print(note)
        _say_what_runs(planned, trainer, dataset.class_names, source)
    return trainer


def _initialize(recipe: "Recipe", planned: Run, model: nn.Module, world: distributed.World) -> None:
    """Initialize the weights of a new run; one process per machine downloads them, the others use its copy."""
    start = recipe.start_options(**planned.start)
    for is_turn in (world.local_rank == 0, world.local_rank != 0):
        with distributed.together():
            if is_turn:
                recipe.initialize(model, start)


def _run_folder(
    planned: Run,
    world: distributed.World,
    output: OutputConfig,
    source: Path | None,
    checkpoint: dict[str, Any] | None,
) -> RunFolder:
    """A new folder, or the checkpoint's own if it is the latest there: a run never overwrites a later state."""
    chosen: tuple[RunFolder, bool] | None = None
    with distributed.together():
        if world.is_main:
            chosen = _choose_folder(planned, output, source, checkpoint)
    # The other ranks get the paths: the folder itself holds a lock and open files.
    said = distributed.broadcast(chosen and (chosen[0].path, chosen[0].log_dir, chosen[1]))
    assert said is not None
    path, log_dir, has_best = said
    if checkpoint is not None and not has_best:
        checkpoint["progress"] |= {"best_acc1": 0.0, "best_epoch": 0}
    return chosen[0] if chosen else RunFolder(path, log_dir)


def _choose_folder(
    planned: Run, output: OutputConfig, source: Path | None, checkpoint: dict[str, Any] | None
) -> tuple[RunFolder, bool]:
    """The folder, and whether its best.pth belongs to the checkpoint's best epoch."""
    name = f"{planned.model}_{planned.data.dataset}"
    if source is None or checkpoint is None:
        return RunFolder.create(output.save_dir, output.log_dir, name), False
    progress = checkpoint["progress"]
    last, best = source.parent / "last.pth", source.parent / "best.pth"
    if last.is_file() and (source.parent / "config.json").is_file():
        if _is_latest(last, source, checkpoint):
            folder = RunFolder.of_checkpoint(source, output.log_dir)
            try:
                changed = load_checkpoint(source)["checksum"] != checkpoint["checksum"]
                if changed or not _is_latest(last, source, checkpoint):  # while this process loaded its images
                    raise UserError(
                        f"{source.parent}: another process has resumed this run in the meantime; run the command again"
                    )
                folder.keep_metrics_until(checkpoint["epoch"])
            except BaseException:
                folder.close()
                raise
            # A run killed after writing best.pth but before last.pth has the best.pth of the next epoch, which will be
            # the best again.
            return folder, _epoch_of(best) == progress["best_epoch"]
        print(f"note: {source.name} is not the latest checkpoint in {source.parent}, so this run uses a new folder")
    folder = RunFolder.create(output.save_dir, output.log_dir, name)
    folder.keep_metrics_until(checkpoint["epoch"], source.parent / "metrics.csv")
    if not progress["best_epoch"]:  # no evaluation yet
        return folder, True
    for file in (best, source):
        if _epoch_of(file) == progress["best_epoch"]:
            second_name(file, folder.checkpoint("best"))
            return folder, True
    print(f"note: the best checkpoint up to {source.name} no longer exists; best.pth will be the best from now on")
    return folder, False


def _is_latest(last: Path, source: Path, checkpoint: dict[str, Any]) -> bool:
    if last.samefile(source):
        return True
    try:
        latest = load_checkpoint(last)
        check_resumable(latest, last)
    except UserError as e:
        print(f"note: {e}")
        return False
    ours, theirs = checkpoint["progress"], latest["progress"]
    if latest["epoch_plan"] != checkpoint["epoch_plan"] and theirs["batch"]:  # different batch size
        return bool(theirs["epoch"] < ours["epoch"])
    return bool((theirs["epoch"], theirs["batch"]) <= (ours["epoch"], ours["batch"]))


def _epoch_of(checkpoint: Path) -> int | None:
    """Epochs completed in the checkpoint; None if it is missing or damaged."""
    try:
        return int(load_checkpoint(checkpoint)["epoch"])
    except UserError:
        return None


def _say_what_runs(planned: Run, trainer: Trainer, class_names: Sequence[str], source: Path | None) -> None:
    c, world = planned.train, trainer.world
    parameters = sum(p.numel() for p in trainer.raw_model.parameters())
    images = trainer.train_loader.num_images * world.size
    print(
        f"{planned.model}: {parameters:,} parameters, {len(class_names)} classes, on {world.device}; "
        f"{trainer.precision.reason}"
    )
    per_step = c.batch_size * c.grad_accum * world.size
    print(
        f"{planned.data.dataset}: {images:,} training images per epoch in {trainer.steps_per_epoch} steps of "
        f"{per_step}; run folder {trainer.run.path}"
    )
    if trainer.schedule.warmup >= c.epochs * trainer.steps_per_epoch:
        print(
            f"note: warm-up lasts the whole training, so the learning rate never reaches --lr {c.lr:g}; "
            "reduce --warmup-epochs"
        )
    if source is not None:
        p = trainer.progress
        print(f"resuming {source} after {p.epoch} epochs" + (f" and {p.batch} batches" if p.batch else ""))


def _say_what_next(recipe: "Recipe", trainer: Trainer) -> None:
    p, run = trainer.progress, trainer.run
    best = run.checkpoint("best") if run.checkpoint("best").is_file() else run.checkpoint("last")
    if p.epoch < trainer.config.epochs:
        print(f"early stopping: no better {trainer.task.measure} in {p.evaluations_without_gain} evaluations")
    data = trainer.settings["data"]
    where = f" --data-path {shlex.quote(data['data_path'])}" if data["data_path"] else ""
    print(f"best validation {trainer.task.measure} {p.best_acc1:.2f}% (epoch {p.best_epoch}); run folder {run.path}")
    print(f"evaluate with: uv run {recipe.command}-evaluate --checkpoint {shlex.quote(str(best))}{where}")
    print(f"view curves with: uv run tensorboard --logdir {shlex.quote(str(run.log_dir.parent))}")


def _resume_command(recipe: "Recipe", stopped: Stopped, output: OutputConfig) -> str:
    log_dir = "" if output.log_dir == OutputConfig.log_dir else f" --log-dir {shlex.quote(output.log_dir)}"
    start = f"uv run {recipe.command}-train"
    if stopped.world.size > 1:  # with another number of processes the epoch would restart
        start = "the same torchrun command with"
    return f"{start} --resume {shlex.quote(str(stopped.checkpoint))}{log_dir}"
