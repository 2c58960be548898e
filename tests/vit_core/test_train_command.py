"""What a run leaves behind, and what the evaluate command says of it."""

import csv
import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import toy_paper
from vit_core.training.checkpoint import KEYS


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert toy_paper.train(str(folder), "--save_freq", "2", "--weight_decay=0.01") == 0  # both spellings
    (path,) = (folder / "checkpoints").iterdir()
    return path


def test_run_folder_has_the_seeds_name_and_files(run):
    assert re.fullmatch(r"test_vit_digits_\d{8}_\d{6}", run.name)
    assert {f.name for f in run.iterdir()} == {
        "config.json",
        "metrics.csv",
        "run.lock",
        "best.pth",
        "last.pth",
        "epoch_2.pth",
    }


def test_checkpoint_has_the_seeds_keys_and_loads_safely(run):
    checkpoint = torch.load(run / "best.pth", weights_only=True)
    assert set(KEYS) <= set(checkpoint)
    assert checkpoint["epoch"] == checkpoint["progress"]["best_epoch"]
    assert torch.load(run / "epoch_2.pth", weights_only=True)["epoch"] == 2


def test_config_says_flags_versions_and_seed(run):
    config = json.loads((run / "config.json").read_text())
    assert config["train"]["weight_decay"] == 0.01
    assert config["train"]["seed"] == 42
    assert config["environment"]["versions"]["torch"] == torch.__version__.split("+")[0]


def test_metrics_and_tensorboard_agree(run):
    with (run / "metrics.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert list(rows[0]) == [
        "epoch",
        "step",
        "lr",
        "train_loss",
        "train_acc1",
        "train_acc5",
        "val_loss",
        "val_acc1",
        "val_acc5",
        "grad_norm",
        "images_per_second",
        "seconds",
    ]
    assert [r["epoch"] for r in rows] == ["1", "2", "3"]
    events = EventAccumulator(str(run.parent.parent / "logs" / run.name))
    events.Reload()
    tags = {
        "Loss/train",
        "Loss/val",
        "Top1/train",
        "Top1/val",
        "Top5/train",
        "Top5/val",
        "LearningRate",
        "GradientNorm",
    }
    assert set(events.Tags()["scalars"]) == tags
    for tag, column in (
        ("Loss/val", "val_loss"),
        ("Top1/train", "train_acc1"),
        ("GradientNorm", "grad_norm"),
    ):
        logged = [(e.step, e.value) for e in events.Scalars(tag)]
        assert logged == [(int(r["epoch"]), pytest.approx(float(r[column]), rel=1e-4)) for r in rows]


def test_a_paper_says_a_line_of_its_own_after_each_epoch(tmp_path, capsys, monkeypatch):
    spoken = dataclasses.replace(toy_paper.RECIPE, describe=lambda model: f"{type(model).__name__} has learned")
    monkeypatch.setattr(toy_paper, "RECIPE", spoken)
    assert toy_paper.train(str(tmp_path), "--epochs", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [lines[i + 1] for i, line in enumerate(lines) if line.startswith("epoch ")] == [
        "VisionTransformer has learned"
    ] * 2


def test_evaluate_repeats_the_validation_of_training(run, tmp_path, capsys):
    with (run / "metrics.csv").open() as f:
        best = max(csv.DictReader(f), key=lambda r: float(r["val_acc1"]))
    report = tmp_path / "result.json"
    argv = ["--checkpoint", str(run / "best.pth"), "--batch-size", "100", "--json", str(report)]
    assert toy_paper.evaluate(argv) == 0
    said = capsys.readouterr().out
    result = json.loads(report.read_text())
    assert result["acc1"] == pytest.approx(float(best["val_acc1"]), rel=1e-4)
    assert result["loss"] == pytest.approx(float(best["val_loss"]), rel=1e-4)
    assert result["num_images"] == 360
    for line in (
        r"EVALUATION RESULTS",
        r"Dataset:              DIGITS",
        r"Model:                TOY-TOY",
        r"Total Samples:        360",
        rf"Top-1 Accuracy:       {result['acc1']:.2f}%",
        r"Avg Inference Time:   [\d.]+ ms/batch",
        r"Throughput:           [\d.]+ images/sec",
    ):
        assert re.search(f"^{line}$", said, re.MULTILINE), line


def test_ema_weights_are_what_is_evaluated(tmp_path, capsys):
    assert toy_paper.train(str(tmp_path), "--ema-decay", "0.5", "--epochs", "2") == 0
    (run,) = (tmp_path / "checkpoints").iterdir()
    checkpoint = torch.load(run / "last.pth", weights_only=True)
    assert any(not torch.equal(v, checkpoint["ema_state_dict"][k]) for k, v in checkpoint["model_state_dict"].items())
    accuracies = []
    for flags in ([], ["--raw-weights"]):
        report = tmp_path / "r.json"
        assert toy_paper.evaluate(["--checkpoint", str(run / "last.pth"), "--json", str(report), *flags]) == 0
        accuracies.append(json.loads(report.read_text())["loss"])
    with (run / "metrics.csv").open() as f:
        assert accuracies[0] == pytest.approx(float(list(csv.DictReader(f))[-1]["val_loss"]), rel=1e-4)
    assert accuracies[0] != accuracies[1]


def test_early_stopping(tmp_path, capsys):
    argv = ["--epochs", "20", "--early-stopping", "2", "--lr", "0", "--min-lr", "0"]  # nothing can improve
    assert toy_paper.train(str(tmp_path), *argv) == 0
    assert "early stopping: no better" in capsys.readouterr().out
    (run,) = (tmp_path / "checkpoints").iterdir()
    assert torch.load(run / "last.pth", weights_only=True)["epoch"] == 3


def test_gradient_accumulation_equals_the_larger_batch(tmp_path):
    rng = np.random.default_rng(0)
    for split, name in itertools.product(("train", "val"), ("cat", "dog")):
        place = tmp_path / "images" / split / name
        place.mkdir(parents=True)
        for i in range(32):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(place / f"{i}.png")
    # Two batches of 32 against four of 16 in pairs: the same images in each step, and nothing random about them.
    flags = [
        "--dataset",
        "imagefolder",
        "--data-path",
        str(tmp_path / "images"),
        "--crop",
        "none",
        "--epochs",
        "2",
        "--optimizer",
        "sgd",
        "--lr",
        "0.1",
        "--warmup-epochs",
        "0",
        "--model-kwargs",
        "patch_size=8",
    ]
    weights, rows = [], []
    for name, argv in (("a", ["--batch-size", "32"]), ("b", ["--batch-size", "16", "--grad-accum", "2"])):
        assert toy_paper.train(str(tmp_path / name), *flags, *argv) == 0
        (run,) = (tmp_path / name / "checkpoints").iterdir()
        weights.append(torch.load(run / "last.pth", weights_only=True)["model_state_dict"])
        with (run / "metrics.csv").open() as f:
            rows.append([(row["step"], float(row["grad_norm"])) for row in csv.DictReader(f)])
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)
    for (step_a, norm_a), (step_b, norm_b) in zip(*rows, strict=True):
        assert step_a == step_b
        assert norm_a == pytest.approx(norm_b, rel=1e-4)
    start = dict(timm.create_model("test_vit", patch_size=8, num_classes=2, img_size=32).state_dict())
    assert any(not torch.equal(start[k], weights[0][k]) for k in start), "nothing was learned: nothing was compared"


def test_the_last_group_of_an_epoch_may_be_short(tmp_path):
    argv = ["--epochs", "1", "--batch-size", "128", "--grad-accum", "2"]  # 1,437 images are eleven batches
    assert toy_paper.train(str(tmp_path), *argv) == 0
    (run,) = (tmp_path / "checkpoints").iterdir()
    with (run / "metrics.csv").open() as f:
        assert [row["step"] for row in csv.DictReader(f)] == ["6"]


def test_amp_bf16_can_be_forced_on_a_cpu_and_auto_is_off(tmp_path, capsys):
    assert toy_paper.train(str(tmp_path), "--amp", "--epochs", "1") == 0
    assert "AMP off: usually slower on cpu" in capsys.readouterr().out
    assert toy_paper.train(str(tmp_path), "--amp", "bf16", "--epochs", "1") == 0
    assert "AMP bf16 on cpu" in capsys.readouterr().out
    assert toy_paper.train(str(tmp_path), "--no-amp", "--epochs", "1") == 0


@pytest.mark.gpu
@pytest.mark.parametrize("amp", ["fp16", "bf16"])
def test_training_on_a_gpu(tmp_path, amp):
    assert toy_paper.train(str(tmp_path), "--device", "cuda", "--amp", amp) == 0


def test_the_split_to_evaluate_on(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3), ("test", 5)):
        for name in ("a", "b"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    data = ("--dataset", "imagefolder", "--data-path", str(tmp_path / "images"))
    flags = (
        "--epochs",
        "1",
        "--warmup-epochs",
        "0",
        "--batch-size",
        "8",
        "--eval-split",
        "test",
        "--normalize",
        "half",
    )
    assert toy_paper.train(str(tmp_path), *data, *flags) == 0
    (run,) = (tmp_path / "checkpoints").iterdir()
    assert json.loads((run / "config.json").read_text())["mean"] == [0.5, 0.5, 0.5]
    for split, images in (((), 10), (("--eval-split", "val"), 6)):
        report = tmp_path / "report.json"
        assert toy_paper.evaluate(["--checkpoint", str(run / "last.pth"), *split, "--json", str(report)]) == 0
        assert json.loads(report.read_text())["num_images"] == images
    assert toy_paper.train(str(tmp_path), "--eval-split", "val") == 2
    assert "digits has no labeled 'val' split" in capsys.readouterr().err
