"""The training loop, for one or several processes, with exact resume.

The `Task` defines the loss and the metric that selects the best epoch; all tasks share this loop. A checkpoint can be
written after any optimizer step. A run that is killed and resumed ends with the same weights, bit-identical on a CPU:
see `training.state`.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from vit_core.data import BatchLoader
from vit_core.errors import UserError
from vit_core.training.config import TrainConfig
from vit_core.training.distributed import World, all_sum, together
from vit_core.training.evaluation import StopEvaluation
from vit_core.training.optimization import Schedule, build_optimizer
from vit_core.training.precision import choose_precision
from vit_core.training.run_folder import RunFolder
from vit_core.training.signals import StopRequest
from vit_core.training.state import Progress, TrainingState
from vit_core.training.task import Sums, Task


class Stopped(Exception):
    """SIGTERM or Ctrl-C stopped the run; `checkpoint` holds its state."""

    def __init__(self, signal_number: int, checkpoint: Path, world: World) -> None:
        super().__init__(f"stopped by {StopRequest.name(signal_number)}; state saved in {checkpoint}")
        self.signal_number, self.checkpoint, self.world = signal_number, checkpoint, world


class Trainer:
    """Trains `model` and writes the run folder.

    Args:
        model: on the CPU or the device; all parameters with `requires_grad` are trained.
        train_loader, val_loader: sharded over the ranks of `world`, on its device.
        settings: plain values to store in a checkpoint's `config` (model name and arguments, data, flags).
        before_step: called with the model and the fraction of training completed, before the first batch of each
            optimizer step. Its changes to the model must depend only on that fraction, or be stored in buffers.
        on_step: called with the fraction of training completed, after each optimizer step.
        describe: called with the model after each epoch; the text it returns is printed after the epoch's log line.
    """

    def __init__(
        self,
        model: nn.Module,
        train_loader: BatchLoader,
        val_loader: BatchLoader,
        config: TrainConfig,
        world: World,
        run: RunFolder,
        *,
        task: Task,
        settings: Mapping[str, Any],
        before_step: Callable[[nn.Module, float], None] = lambda model, progress: None,
        on_step: Callable[[float], None] = lambda progress: None,
        describe: Callable[[nn.Module], str] = lambda model: "",
    ) -> None:
        self.config, self.world, self.run, self.settings = config, world, run, settings
        self.task = task
        self.before_step, self.on_step, self.describe = before_step, on_step, describe
        self.train_loader, self.val_loader = train_loader, val_loader
        self.precision = choose_precision(config.amp, world.device)
        self.scaler = self.precision.scaler()
        model = model.to(world.device)
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if config.grad_checkpointing:
            model.set_grad_checkpointing()  # type: ignore[operator]
        self.ema = ModelEmaV3(model, decay=config.ema_decay) if config.ema_decay is not None else None
        self.raw_model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(model, config)
        self.steps_per_epoch = math.ceil(len(train_loader) / config.grad_accum)
        self.schedule = Schedule(self.optimizer, config, self.steps_per_epoch)
        self.model: nn.Module = torch.compile(model) if config.compile else model  # type: ignore[assignment]
        if world.size > 1:
            self.model = DistributedDataParallel(
                self.model, device_ids=[world.device] if world.device.type == "cuda" else None
            )
        self.batch_images = train_loader.batch_images
        self.sums = Sums((*task.sums, "images", "grad_norm", "finite_steps"), world.device)
        self.state = TrainingState(model, self.ema, self.optimizer, self.scaler, self.schedule, self.sums.values)
        self.progress = self.state.progress
        self.recent_losses: list[Tensor] = []  # since the last check, still on the device
        self.last_lr = 0.0
        self.last_saved: Path | None = None

    # ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────

    def fit(self) -> Progress:
        """Train to the last epoch. Raises Stopped after a signal, UserError for a loss that is not finite."""
        self.model.train()
        with StopRequest() as self.stop:
            while self.progress.epoch < self.config.epochs and not self._out_of_patience():
                try:
                    self._one_epoch()
                except torch.OutOfMemoryError as e:
                    raise UserError(self._out_of_memory()) from e
        return self.progress

    def _out_of_patience(self) -> bool:
        patience = self.config.early_stopping
        return patience is not None and self.progress.evaluations_without_gain >= patience

    def _one_epoch(self) -> None:
        p, c = self.progress, self.config
        start = time.perf_counter()
        first = p.batch
        with self._bar() as bar:
            for batch in self._batches(bar):
                self._batch(batch, bar)
        images_here = (p.batch - first) * self.batch_images
        rate = images_here * self.world.size / max(time.perf_counter() - start, 1e-9)
        number = p.epoch + 1
        evaluated: dict[str, float] = {}
        if number % c.eval_freq == 0 or number == c.epochs:
            evaluated = self._evaluate()
            # The last step made the weights non-finite: do not save them. In fp16 finite weights may overflow, too.
            if not math.isfinite(evaluated["val_loss"]) and not self.scaler.is_enabled():
                raise UserError(self._not_finite(p.step))
        row: dict[str, Any] = {
            "epoch": number,
            "step": p.step,
            "lr": self.last_lr,
            **dict.fromkeys(self.task.columns),
            **self._averages(),
            **evaluated,
            "images_per_second": rate,
            "seconds": time.perf_counter() - start,
        }
        names = [f"epoch_{number}"] if c.save_freq and number % c.save_freq == 0 else []
        if evaluated:
            reached = evaluated[self.task.best]
            self.schedule.end_epoch(reached, p.step)
            p.evaluations_without_gain += 1
            if reached > p.best_acc1 or p.best_epoch == 0:
                p.best_acc1, p.best_epoch, p.evaluations_without_gain = reached, number, 0
                names.append("best")
        p.epoch, p.batch = number, 0
        self.sums.reset()
        with together():
            if self.world.is_main:  # before the checkpoint: if killed in between, the resumed run rewrites the row
                self.run.log(row)
        self.save(names)
        if self.world.is_main:
            self._say(number, row, best="best" in names)

    def _batches(self, bar: "tqdm[Any]") -> Iterator[Any]:
        """The remaining batches of the epoch. For unreadable images, see `_save_before`."""
        p = self.progress
        first = p.batch
        batches = self.train_loader.epoch(p.epoch, start_batch=first)
        while True:
            try:
                batch = next(batches, None)
            except UserError as e:
                if p.batch % self.config.grad_accum == 0:  # otherwise accumulated gradients would be lost
                    if self.recent_losses:
                        self._check(bar)
                    self._save_before(e, p.batch > first)
                raise
            if batch is None:
                return
            yield batch

    def _batch(self, batch: Any, bar: "tqdm[Any]") -> None:
        """Forward and backward pass of one batch; an optimizer step after every `grad_accum` batches."""
        p, c = self.progress, self.config
        group = p.batch // c.grad_accum
        group_size = min(c.grad_accum, len(self.train_loader) - group * c.grad_accum)  # the last may be smaller
        if p.batch == group * c.grad_accum:
            self.before_step(self.raw_model, self._share())
        completes = p.batch + 1 == group * c.grad_accum + group_size
        with self._synchronize(completes):
            loss, sums = self.task.loss(self.model, batch, self.precision)
            self.scaler.scale(loss / group_size).backward()
        p.batch += 1
        self.sums.add({**dict(zip(self.task.sums, sums, strict=True)), "images": self.batch_images})
        self.recent_losses.append(loss.detach())
        bar.update()
        if completes:
            self._step()
            self.on_step(self._share())
            ends = p.batch == len(self.train_loader)
            saves = c.save_steps > 0 and p.step % c.save_steps == 0 and not ends
            on_cpu = self.world.device.type == "cpu"  # on other devices, reading the loss synchronizes
            asked = self.stop.signal is not None and self.world.size == 1  # all ranks must check at the same steps
            if on_cpu or asked or saves or ends or p.step % c.print_freq == 0:
                self._check(bar)
            if saves:
                self.save([])

    def _share(self) -> float:
        """Fraction of the training steps completed."""
        return self.progress.step / (self.config.epochs * self.steps_per_epoch)

    def _synchronize(self, completes: bool) -> AbstractContextManager[Any]:
        """Synchronize gradients only for the last batch before an optimizer step."""
        if isinstance(self.model, DistributedDataParallel) and not completes:
            return self.model.no_sync()
        return torch.enable_grad()

    def _step(self) -> None:
        p, c = self.progress, self.config
        self.schedule.set_step(p.step)
        self.last_lr = max(group["lr"] for group in self.optimizer.param_groups)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, c.grad_clip or math.inf)
        if not self.scaler.is_enabled():  # occasional overflow is normal in fp16; otherwise it would ruin the weights
            self.recent_losses[-1] = self.recent_losses[-1] + 0.0 * norm  # NaN if the norm is not finite
        self.scaler.step(self.optimizer)  # skips the step if fp16 gradients overflowed
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.raw_model)
            self.before_step(self.ema.module, self._share())  # values it sets must not be averaged
        p.step += 1
        finite = norm.isfinite()
        self.sums.add({"grad_norm": torch.where(finite, norm, 0.0), "finite_steps": finite})

    def _check(self, bar: "tqdm[Any]") -> None:
        """Check the losses since the last check, and stop requests; all ranks take the same decision."""
        p = self.progress
        bad = (~torch.stack(self.recent_losses).float().isfinite()).nonzero().flatten()
        votes = torch.tensor([len(bad) > 0, self.stop.signal is not None], dtype=torch.int64, device=self.world.device)
        any_bad, any_stop = all_sum(votes).tolist()
        if any_bad:
            batches_ago = len(self.recent_losses) - 1 - int(bad[0]) if len(bad) else 0
            raise UserError(self._not_finite(p.step - batches_ago // self.config.grad_accum))
        if not bar.disable:
            said = self.task.line(self._averages(local=True), "train")
            bar.set_postfix_str(f"{said}, lr {self.last_lr:.1e}", refresh=False)
        self.recent_losses.clear()
        if any_stop:
            self._stop_here()

    def _save_before(self, error: UserError, anything_new: bool = True) -> None:
        """After a data error, save the progress since the last checkpoint. With several processes this is not done:
        they may be at different steps.
        """
        if self.world.size > 1:
            return
        if self.stop.signal is not None:  # the data workers received it, too
            self._stop_here()
        if anything_new:
            self.save([])
            raise UserError(f"{error}; progress saved in {self.last_saved}") from error

    def _stop_here(self) -> None:
        self.save([])
        raise Stopped(self.stop.signal or StopRequest.default, self.run.checkpoint("last"), self.world)

    def _evaluate(self) -> dict[str, float]:
        model = self.ema.module if self.ema is not None else self.raw_model
        # Ranks may evaluate different numbers of batches, so only a single process can stop in between.
        stop = (lambda: self.stop.signal is not None) if self.world.size == 1 else (lambda: False)
        with self._bar("evaluate", len(self.val_loader)) as bar:
            try:
                return self.task.evaluate(model, self.val_loader, self.precision, stop, bar.update)
            except StopEvaluation:
                self._stop_here()  # all batches of the epoch are done: a resumed run starts with the evaluation
                raise
            except UserError as e:  # an unreadable image; a resumed run starts with the evaluation
                self._save_before(e)
                raise

    # ── state ────────────────────────────────────────────────────────────────────────────────────────────────────

    def save(self, also: list[str]) -> None:
        """Write last.pth and the names in `also`. To be called on all ranks: each has its own generators and sums.

        Raises UserError and writes nothing if a weight is not finite (not every epoch ends with an evaluation).
        """
        if not torch.stack([w.detach().isfinite().all() for w in self.parameters]).all():
            raise UserError(self._not_finite(self.progress.step))
        checkpoint = self.state.checkpoint(self.settings, self._epoch_plan())
        with together():
            if self.world.is_main:
                self.run.save(checkpoint, also)
        self.last_saved = self.run.checkpoint("last")

    def restore(self, checkpoint: dict[str, Any], source: Path) -> None:
        """Restore the state of a checkpoint written by `save`. UserError for another model or optimizer."""
        plan = self._epoch_plan()
        changes = self.state.restore(checkpoint, source, plan, self.world.rank)
        if changes:
            self.progress.step = self.progress.epoch * self.steps_per_epoch
            if self.world.is_main:
                print(
                    f"note: {changes} changed, so epoch {self.progress.epoch + 1} restarts from its first batch; the "
                    "result will not be bit-identical"
                )
        self.last_lr = max(group["lr"] for group in self.optimizer.param_groups)
        self.last_saved = source

    def _epoch_plan(self) -> dict[str, int]:
        """Batches and steps per epoch: resuming within an epoch requires that these are unchanged."""
        return {
            "processes": self.world.size,
            "images": self.batch_images,
            "batches": len(self.train_loader),
            "grad_accum": self.config.grad_accum,
        }

    def _averages(self, *, local: bool = False) -> dict[str, float]:
        """Training columns of the current epoch so far: over all ranks, or of this rank if `local`."""
        sums = self.sums.totals(local=local)
        row = self.task.training_row(sums, max(sums["images"], 1.0))
        return row | {"grad_norm": sums["grad_norm"] / max(sums["finite_steps"], 1.0)}

    # ── words ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _bar(self, what: str | None = None, total: int | None = None) -> "tqdm[Any]":
        shown = self.world.is_main and sys.stderr.isatty()
        number = f"epoch {self.progress.epoch + 1}/{self.config.epochs}"
        return tqdm(
            desc=f"{number} {what}" if what else number,
            total=len(self.train_loader) if total is None else total,
            initial=self.progress.batch if total is None else 0,
            disable=not shown,
            leave=False,
            dynamic_ncols=True,
            unit=" images",
            unit_scale=self.batch_images * self.world.size,
        )

    def _say(self, number: int, row: dict[str, Any], best: bool) -> None:
        line = f"epoch {number}/{self.config.epochs}  train {self.task.line(row, 'train')}"
        if "val_loss" in row:
            line += f"  val {self.task.line(row, 'val')}" + (" (best)" if best else "")
        line += f"  lr {row['lr']:.2e}  {row['images_per_second']:.0f} images/s  {row['seconds']:.1f} s"
        said = self.describe(self.raw_model)
        print(f"{line}\n{said}" if said else line, flush=True)

    def _not_finite(self, step: int) -> str:
        good = (
            f"the last checkpoint with finite weights is {self.last_saved}"
            if self.last_saved
            else "no checkpoint was written yet"
        )
        return (
            f"the loss is not finite at step {step} (epoch {self.progress.epoch + 1}, "
            f"learning rate {self.last_lr:.3g}); {good}; "
            f"try a lower --lr, a longer --warmup-epochs, a smaller --grad-clip or --no-amp"
        )

    def _out_of_memory(self) -> str:
        accum = self.config.grad_accum
        return (
            f"out of memory on {self.world.device} with --batch-size {self.config.batch_size}: try half of it with "
            f"--grad-accum {2 * accum} (the same global batch), --amp bf16 or --grad-checkpointing"
        )
