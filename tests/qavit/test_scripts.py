"""The seed's commands: flags, defaults, presets, and one short run of each."""

import json

import pytest
import torch

from qavit import evaluate, train, validate, verify_gpu
from qavit.recipe import RECIPE
from vit_core.commands.settings import parse, settle

SHORT = ("--epochs", "1", "--model-kwargs", "depth=1", "embed_dim=32", "patch_size=8", "num_channel_groups=2")


def settled(*argv):
    return settle(RECIPE, parse(RECIPE, argv), None)


@pytest.mark.parametrize(
    ("argv", "model", "dataset", "batch_size", "lr", "warmup"),
    [
        ((), "qavit_micro", "digits", 32, 4e-3, 2),
        (("--model", "tiny"), "qavit_tiny", "cifar100", 256, 1e-3, 20),
        (("--dataset", "cifar100"), "qavit_tiny", "cifar100", 256, 1e-3, 20),
        (("--model", "small", "--dataset", "cifar100"), "qavit_small", "cifar100", 128, 8e-4, 20),
        (("--model", "tiny", "--dataset", "imagenet"), "qavit_tiny", "imagenet", 512, 1e-3, 30),
        (("--model", "small", "--dataset", "imagenet"), "qavit_small", "imagenet", 256, 8e-4, 30),
        (("--model", "tiny", "--preset", "stable"), "qavit_tiny", "cifar100", 256, 5e-4, 10),
        (
            ("--model", "tiny", "--batch-size", "128", "--amp", "--epochs", "300"),
            "qavit_tiny",
            "cifar100",
            128,
            1e-3,
            20,
        ),
    ],
)
def test_presets_are_the_seeds_table(argv, model, dataset, batch_size, lr, warmup):
    run = settled(*argv)
    found = (run.model, run.data.dataset, run.train.batch_size, run.train.lr, run.train.warmup_epochs)
    assert found == (model, dataset, batch_size, lr, warmup)


def test_the_seeds_training_flags_and_defaults():
    run = settled("--model", "tiny", "--dataset", "cifar100")
    t = run.train
    assert (t.epochs, t.min_lr, t.weight_decay, t.amp, t.save_freq) == (300, 1e-6, 0.05, "auto", 10)
    assert (run.augment.crop, run.augment.crop_pad) == ("pad", 0.125)
    assert run.augment.crop_ratio * 256 == 224
    assert run.augment.hflip == 0.5
    every = settled(
        "--model",
        "tiny",
        "--dataset",
        "cifar100",
        "--data-path",
        "d",
        "--epochs",
        "5",
        "--batch-size",
        "8",
        "--lr",
        "1e-3",
        "--min-lr",
        "1e-6",
        "--weight-decay",
        "0.05",
        "--warmup-epochs",
        "2",
        "--no-amp",
        "--optimizer",
        "sgd",
        "--grad-clip",
        "0",
        "--grad-accum",
        "2",
        "--resume",
        "",
        "--save-dir",
        "c",
        "--save-freq",
        "1",
        "--log-dir",
        "l",
        "--print-freq",
        "3",
        "--num-workers",
        "8",
        "--device",
        "cpu",
        "--seed",
        "1",
    )
    assert (every.train.amp, every.train.optimizer, every.data.num_workers) == ("off", "sgd", 8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qavit")
    flags = ["--save-dir", f"{folder}/c", "--log-dir", f"{folder}/l", "--bank-update", "functional"]
    assert train.main([*flags, *SHORT]) == 0
    (path,) = (folder / "c").iterdir()
    return path


def test_checkpoint_of_the_seeds_api(run):
    checkpoint = torch.load(run / "best.pth")
    assert run.name.startswith("qavit_micro_digits_")
    kwargs = checkpoint["config"]["model_kwargs"]
    assert kwargs == {
        "depth": 1,
        "embed_dim": 32,
        "patch_size": 8,
        "num_channel_groups": 2,
        "bank_update": "functional",
    }
    from qavit import qavit_micro

    model = qavit_micro(num_classes=10, **kwargs)
    model.load_state_dict(checkpoint["model_state_dict"])


def test_evaluate_prints_the_seeds_block(run, tmp_path, capsys):
    report = tmp_path / "r.json"
    argv = [
        "--model",
        "micro",
        "--checkpoint",
        str(run / "best.pth"),
        "--dataset",
        "digits",
        "--json",
        str(report),
    ]
    assert evaluate.main(argv) == 0
    out = capsys.readouterr().out
    assert "Model:                QAVIT-MICRO" in out
    assert json.loads(report.read_text())["num_images"] == 360


def test_digits_are_neither_mirrored_nor_cropped_by_any_size():
    for argv in ((), ("--model", "tiny", "--dataset", "digits")):
        augment = settled(*argv).augment
        assert (augment.hflip, augment.crop) == (0.0, "none")
    tiny = settled("--model", "tiny", "--dataset", "digits").train
    assert (tiny.batch_size, tiny.lr) == (256, 1e-3), "the micro model's rate is not the tiny one's"


def test_impossible_model_flags_are_one_line(capsys):
    assert train.main(["--model-kwargs", "num_heads=5"]) == 2
    assert "embed_dim must be a multiple of num_heads" in capsys.readouterr().err
    assert train.main(["--dropout", "1.5"]) == 2
    assert "dropout must lie in [0, 1)" in capsys.readouterr().err


@pytest.mark.slow
def test_validation_suite_passes_and_would_fail(capsys, monkeypatch):
    assert validate.main(["--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for section in ("DIMENSION_FLOW", "COMPONENTS", "MATHEMATICS", "DIGITS"):
        assert f"{section:.<50} ✅ PASS" in out
    assert out.count("✅") == 2 + 9 + 7 + 4 + 4

    assert validate.main(["--device", "cpu", "--model", "small", "--dataset", "fake"]) == 0
    out = capsys.readouterr().out
    assert "Forward pass, qavit_small" in out
    assert "Dataset sizes" not in out, "no size was published: nothing to compare with"

    def broken(device):
        return [("never true", lambda: "as planned")]

    for section in ("dimension_flow", "components", "mathematics"):
        monkeypatch.setattr(validate, section, broken)
    assert validate.main(["--device", "cpu"]) == 1
    assert "SOME TESTS FAILED" in capsys.readouterr().out


def test_verify_gpu_runs_without_a_gpu(capsys):
    assert verify_gpu.main(["--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "SDPA in windows and dilated scales, chunked in channel groups" in out
    assert "no GPU" in out


@pytest.mark.gpu
def test_verify_gpu_suggests_a_batch_size(capsys):
    assert verify_gpu.main(["--device", "cuda"]) == 0
    assert "tiny: --batch-size" in capsys.readouterr().out
