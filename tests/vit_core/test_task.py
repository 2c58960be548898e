"""The loop serves any task: one whose batches are no images, and whose best epoch is by a measure of its own."""

import csv
import math
from pathlib import Path

import torch
from torch import nn

from vit_core.training.config import TrainConfig
from vit_core.training.distributed import World
from vit_core.training.run_folder import RunFolder
from vit_core.training.trainer import Trainer


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.slope * x


class Points:
    """Batches are dictionaries."""

    batch_images = 4

    def __len__(self):
        return 3

    def epoch(self, epoch, start_batch=0):
        generator = torch.Generator().manual_seed(epoch)
        drawn = torch.rand(3, 4, generator=generator)
        return iter([{"x": x, "y": 2 * x} for x in drawn[start_batch:]])


class Fit:
    sums = ("loss", "error")
    columns = ("train_loss", "train_error", "val_loss", "val_closeness")
    best, measure = "val_closeness", "closeness"

    def loss(self, model, batch, precision):
        error = model(batch["x"]) - batch["y"]
        return error.square().mean(), [error.detach().square().sum(), error.detach().abs().sum()]

    def training_row(self, sums, images):
        return {"train_loss": sums["loss"] / images, "train_error": sums["error"] / images}

    def evaluate(self, model, loader, precision, should_stop, on_batch):
        gap = abs(model.slope.item() - 2)
        return {"val_loss": gap**2, "val_closeness": -gap}

    def line(self, row, split):
        return f"loss {row[f'{split}_loss']:.2f}"


def trained(folder: Path, epochs: int, resume: Path | None = None) -> Trainer:
    config = TrainConfig(
        epochs=epochs,
        batch_size=4,
        lr=0.1,
        warmup_epochs=0,
        schedule="constant",
        device="cpu",
        weight_decay=0.0,
        ema_decay=0.5,
    )
    run = RunFolder.create(folder, folder / "events", "line")
    told: list[float] = []
    trainer = Trainer(
        Line(),
        Points(),
        Points(),
        config,
        World(0, 1, torch.device("cpu")),
        run,
        task=Fit(),
        settings={},
        on_step=told.append,
    )
    if resume is not None:
        trainer.restore(torch.load(resume, weights_only=True), resume)
    trainer.fit()
    run.close()
    assert told[-1] == 1
    assert told == sorted(set(told)), "once a step, with an EMA too"
    trainer.told = told
    return trainer


def test_another_task_is_trained_judged_and_resumed_exactly(tmp_path, capsys):
    whole = trained(tmp_path / "whole", 4)
    assert len(whole.told) == 12
    half = trained(tmp_path / "half", 2)
    rest = trained(tmp_path / "rest", 4, half.run.checkpoint("last"))
    assert torch.equal(whole.raw_model.slope, rest.raw_model.slope)
    assert whole.progress == rest.progress
    assert whole.progress.best_epoch == 4  # the closest
    assert math.isclose(whole.progress.best_acc1, -abs(whole.ema.module.slope.item() - 2), rel_tol=1e-6)
    assert "train loss" in capsys.readouterr().out
    with (rest.run.path / "metrics.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert [row["epoch"] for row in rows] == ["3", "4"]
    assert float(rows[-1]["val_closeness"]) > float(rows[0]["val_closeness"])
