"""What a user gets wrong, and what machines do: one line, exit code 2, nothing lost."""

import csv
import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import toy_paper
from vit_core.errors import UserError
from vit_core.training.checkpoint import KEYS, load_checkpoint, save_checkpoint


def one_line(capsys) -> str:
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


@pytest.fixture
def folder(tmp_path) -> Path:
    """An image folder of two classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name in ("cat", "dog"):
            place = tmp_path / "images" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(place / f"{i}.jpg")
    return tmp_path / "images"


def on_folder(folder: Path, tmp_path: Path, *argv: str) -> int:
    return toy_paper.train(
        str(tmp_path),
        "--dataset",
        "imagefolder",
        "--data-path",
        str(folder),
        "--epochs",
        "1",
        "--batch-size",
        "8",
        *argv,
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dataset", "mnist1k"], "mnist1k"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--num-classes", "7"], "--num-classes 7: the dataset digits has 10 classes"),
        (["--dataset", "imagefolder"], "--data-path"),
        (["--dataset", "imagefolder", "--data-path", "/no/such/folder"], "/no/such/folder"),
        (["--resume", "/no/such/file.pth"], "/no/such/file.pth does not exist"),
        (["--device", "abacus"], "unknown device 'abacus'"),
        (["--model-kwargs", "patch_sise=8"], "patch_sise"),
        (["--model-kwargs", "depth"], "NAME=VALUE"),
        (["--mixup", "0.5", "--batch-size", "33"], "even --batch-size"),
    ],
)
def test_bad_flags(tmp_path, capsys, argv, message):
    assert toy_paper.train(str(tmp_path), *argv) == 2
    assert message in one_line(capsys)


def test_misspelt_flags_and_choices_exit_with_2(tmp_path, capsys):
    for argv in (["--epoch", "3"], ["--optimizer", "lion"], ["--epochs", "three"]):
        assert toy_paper.train(str(tmp_path), *argv) == 2
        assert argv[0] in one_line(capsys)


def test_empty_class_folder(folder, tmp_path, capsys):
    (folder / "train" / "emu").mkdir()
    assert on_folder(folder, tmp_path) == 2
    assert str(folder / "train" / "emu") in one_line(capsys)


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_broken_jpeg_is_named(folder, tmp_path, capsys, cache):
    broken = folder / "train" / "dog" / "3.jpg"
    os.truncate(broken, 200)
    assert on_folder(folder, tmp_path, "--cache", cache, "--num-workers", "1") == 2
    assert str(broken) in one_line(capsys)


def test_an_image_that_breaks_later_loses_no_checkpoint(folder, tmp_path, capsys):
    assert on_folder(folder, tmp_path, "--cache", "disk", "--num-workers", "0") == 0
    (run,) = (tmp_path / "checkpoints").iterdir()
    before = (run / "best.pth").read_bytes()
    os.truncate(folder / "train" / "cat" / "0.jpg", 100)
    assert toy_paper.train(str(tmp_path), "--resume", str(run / "last.pth"), "--epochs", "2") == 2
    assert "0.jpg" in one_line(capsys)
    assert (run / "best.pth").read_bytes() == before
    assert torch.load(run / "last.pth", weights_only=True)["epoch"] == 1


def test_an_image_that_breaks_in_mid_epoch_loses_nothing_before_it(folder, tmp_path, capsys):
    from vit_core.data.loader import BatchLoader

    real = BatchLoader.epoch

    def breaks(self, epoch=0, start_batch=0):
        for i, batch in enumerate(real(self, epoch, start_batch)):
            if self.train and i == 1:
                raise UserError("0.jpg cannot be read")
            yield batch

    argv = ["--cache", "disk", "--num-workers", "0", "--batch-size", "4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchLoader, "epoch", breaks)
        assert on_folder(folder, tmp_path, *argv) == 2
    (run,) = (tmp_path / "checkpoints").iterdir()
    assert f"0.jpg cannot be read; progress saved in {run / 'last.pth'}" in one_line(capsys)
    saved = torch.load(run / "last.pth", weights_only=True)
    assert saved["progress"]["batch"] == 1
    assert toy_paper.train(str(tmp_path), "--resume", str(run / "last.pth")) == 0
    other = tmp_path / "unbroken"
    assert on_folder(folder, other, *argv) == 0
    (unbroken,) = (other / "checkpoints").iterdir()
    a, b = (torch.load(r / "last.pth", weights_only=True)["model_state_dict"] for r in (run, unbroken))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_broken_validation_image_does_not_cost_the_epoch(folder, tmp_path, capsys):
    whole = (folder / "val" / "dog" / "3.jpg").read_bytes()
    argv = ["--cache", "disk", "--num-workers", "0"]
    os.truncate(folder / "val" / "dog" / "3.jpg", 100)
    assert on_folder(folder, tmp_path, *argv) == 2
    (run,) = (tmp_path / "checkpoints").iterdir()
    assert "3.jpg" in (said := one_line(capsys))
    assert f"progress saved in {run / 'last.pth'}" in said
    assert torch.load(run / "last.pth", weights_only=True)["progress"]["batch"] == 2
    (folder / "val" / "dog" / "3.jpg").write_bytes(whole)
    assert toy_paper.train(str(tmp_path), "--resume", str(run / "last.pth")) == 0
    with (run / "metrics.csv").open() as f:
        assert [row["step"] for row in csv.DictReader(f)] == ["2"]


def test_a_metrics_file_cut_short_is_mended_on_resume(tmp_path):
    assert toy_paper.train(str(tmp_path), "--epochs", "2") == 0
    (run,) = (tmp_path / "checkpoints").iterdir()
    with (run / "metrics.csv").open("a") as f:
        f.write("1,2\n\0\0\0")
    assert toy_paper.train(str(tmp_path), "--resume", str(run / "last.pth"), "--epochs", "3") == 0
    with (run / "metrics.csv").open() as f:
        assert [row["epoch"] for row in csv.DictReader(f)] == ["1", "2", "3"]


def test_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    assert toy_paper.train(str(tmp_path)) == 2
    assert "choose another --save-dir" in one_line(capsys)


@pytest.mark.skipif(not Path("/proc/sys").is_dir(), reason="needs a folder that not even root can write to")
def test_read_only_output_folder(capsys):
    assert toy_paper.main(["--save-dir", "/proc/sys/checkpoints", "--epochs", "1"]) == 2
    assert "/proc/sys" in one_line(capsys)


def test_a_full_disk_in_mid_run_keeps_the_last_checkpoint(tmp_path, capsys, monkeypatch):
    import errno

    from vit_core.training import run_folder

    real, saves = run_folder.save_checkpoint, []

    def fills_up(path, checkpoint, also):
        saves.append(path)
        if len(saves) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, checkpoint, also)

    monkeypatch.setattr(run_folder, "save_checkpoint", fills_up)
    assert toy_paper.train(str(tmp_path)) == 2
    assert "last.pth: the disk is full" in one_line(capsys)
    monkeypatch.undo()
    (run,) = (tmp_path / "checkpoints").iterdir()
    assert torch.load(run / "last.pth", weights_only=True)["epoch"] == 1
    assert toy_paper.train(str(tmp_path), "--resume", str(run / "last.pth")) == 0
    with (run / "metrics.csv").open() as f:
        assert [row["epoch"] for row in csv.DictReader(f)] == ["1", "2", "3"]


def test_checkpoint_of_another_model(tmp_path, capsys):
    assert toy_paper.train(str(tmp_path), "--epochs", "1") == 0
    (run,) = (tmp_path / "checkpoints").iterdir()
    capsys.readouterr()
    assert toy_paper.train(str(tmp_path), "--resume", str(run / "last.pth"), "--model", "other") == 2
    assert "is a checkpoint of test_vit, not of test_vit2" in one_line(capsys)
    assert toy_paper.evaluate(["--checkpoint", str(run / "best.pth"), "--model", "other"]) == 2
    assert "is a checkpoint of test_vit, not of test_vit2" in one_line(capsys)


def test_classes_of_other_names_are_pointed_out(folder, tmp_path, capsys):
    assert on_folder(folder, tmp_path) == 0
    (run,) = (tmp_path / "checkpoints").iterdir()
    for split in ("train", "val"):
        (folder / split / "cat").rename(folder / split / "eel")  # sorted after "dog": the labels change places
    capsys.readouterr()
    assert toy_paper.evaluate(["--checkpoint", str(run / "best.pth")]) == 0
    note = "note: 2 class names differ from those in training: for example 'dog' instead of 'cat'"
    assert note in capsys.readouterr().out


def test_a_foreign_config_and_an_output_without_folder(tmp_path, capsys):
    save_checkpoint(tmp_path / "foreign.pth", dict.fromkeys(KEYS, 0) | {"config": {"model": "test_vit"}})
    assert toy_paper.evaluate(["--checkpoint", str(tmp_path / "foreign.pth")]) == 2
    assert "was not written by a run of this project" in one_line(capsys)
    assert toy_paper.evaluate(["--checkpoint", "x.pth", "--json", str(tmp_path / "no" / "result.json")]) == 2
    assert f"{tmp_path / 'no'} is not a folder" in one_line(capsys)


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": [1, 2]},
        {"mean": None},
        {"data": []},
        {"model_kwargs": ["x"]},
        {"num_classes": 3},
        {"std": [1.0]},
    ],
    ids=str,
)
def test_a_config_of_other_types(tmp_path, capsys, change):
    assert toy_paper.train(str(tmp_path), "--epochs", "1") == 0
    (run,) = (tmp_path / "checkpoints").iterdir()
    state = load_checkpoint(run / "last.pth")
    save_checkpoint(run / "odd.pth", state | {"config": state["config"] | change})
    capsys.readouterr()
    assert toy_paper.evaluate(["--checkpoint", str(run / "odd.pth")]) == 2
    assert "was not written by a run of this project" in one_line(capsys)
    assert toy_paper.train(str(tmp_path), "--resume", str(run / "odd.pth"), "--epochs", "2") == 2
    assert "was not written by a run of this project" in one_line(capsys)


def test_a_full_disk_under_tensorboard_is_named(tmp_path, capsys, monkeypatch):
    import tensorboard.summary.writer.event_file_writer as writer

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer.tf.io.gfile, "GFile", lambda *_: Full())
    assert toy_paper.train(str(tmp_path), "--epochs", "1") == 2
    (log_dir,) = (tmp_path / "logs").iterdir()
    assert f"{log_dir}: the disk is full" in one_line(capsys)


def test_checkpoint_of_another_class_count(folder, tmp_path, capsys):
    assert toy_paper.train(str(tmp_path), "--epochs", "1") == 0
    (run,) = (tmp_path / "checkpoints").iterdir()
    capsys.readouterr()
    argv = ["--checkpoint", str(run / "best.pth"), "--dataset", "imagefolder", "--data-path", str(folder)]
    assert toy_paper.evaluate(argv) == 2
    assert "was trained with 10 classes; the dataset imagefolder has 2" in one_line(capsys)


def test_a_loss_that_is_not_finite_names_step_rate_and_checkpoint(tmp_path, capsys):
    assert toy_paper.train(str(tmp_path), at=8, what="nan") == 2  # the third step of the second epoch
    said = one_line(capsys)
    (run,) = (tmp_path / "checkpoints").iterdir()
    assert "not finite at step 8 (epoch 2, learning rate" in said
    assert f"the last checkpoint with finite weights is {run / 'last.pth'}" in said
    weights = torch.load(run / "last.pth", weights_only=True)["model_state_dict"]
    assert all(w.isfinite().all() for w in weights.values())


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path, capsys):
    assert toy_paper.train(str(tmp_path), at=8, what="gradient") == 2
    assert "not finite at step 8 (epoch 2" in one_line(capsys)
    (run,) = (tmp_path / "checkpoints").iterdir()
    weights = torch.load(run / "last.pth", weights_only=True)["model_state_dict"]
    assert all(w.isfinite().all() for w in weights.values())


def test_out_of_memory_names_the_batch_size(tmp_path, capsys):
    assert toy_paper.train(str(tmp_path), at=2, what="memory") == 2
    assert "--batch-size 256: try half of it with --grad-accum 2" in one_line(capsys)
