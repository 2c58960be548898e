"""The commands: presets, training and evaluation, and that a checkpoint needs no pretrained weights."""

import torch

from hthta_vit.evaluate import main as evaluate
from hthta_vit.recipe import RECIPE
from hthta_vit.train import main as train
from vit_core.commands.settings import parse, settle
from vit_core.models import timm_weights


def settled(*flags, resumed=None):
    return settle(RECIPE, parse(RECIPE, flags), resumed)


def test_the_published_recipe():
    run = settled("--model", "base_gru2")
    assert run.model == "hthta_vit_base_patch16_224_gru2"
    assert run.data.dataset == "cifar100"
    t = run.train
    assert (t.batch_size, t.lr, t.weight_decay, t.epochs, t.warmup_steps) == (32, 2e-5, 0.01, 30, 500)
    assert (t.schedule, t.grad_clip, t.early_stopping, t.optimizer) == ("cosine", 0.0, None, "adamw")
    assert run.start["pretrained"]
    assert not settled("--model", "base", "--no-pretrained").start["pretrained"]
    assert not settled("--model", "base", "--weights", "f").start["pretrained"]
    assert not settled().start["pretrained"]


def test_flags_of_the_model_reach_it():
    run = settled("--components", "bigru+pooling", "--gru_layers", "2", "--beta", "0.3")
    assert run.model_kwargs == {"components": "bigru+pooling", "gru_layers": 2, "beta": 0.3}


def test_train_resume_and_evaluate(tmp_path, monkeypatch, capsys):
    """Weights are looked for once, in the new run; a resumed run and an evaluation never ask for them."""
    calls = []
    monkeypatch.setattr(timm_weights, "download", lambda *a: calls.append(a))
    monkeypatch.setattr(timm_weights, "load_backbone", lambda *a: calls.append("loaded"))
    monkeypatch.setitem(RECIPE.models, "micro", "hthta_vit_micro")  # as a base model in all but size
    flags = ["--save-dir", str(tmp_path / "c"), "--log-dir", str(tmp_path / "l"), "--device", "cpu"]
    tiny = ["--model-kwargs", "depth=1", "--batch-size", "256", "--components", "bigru+pooling"]
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "vit.safetensors")
    assert train([*flags, *tiny, "--epochs", "1", "--weights", str(tmp_path / "vit.safetensors")]) == 0
    assert calls == ["loaded"]
    (last,) = tmp_path.glob("c/*/last.pth")
    (tmp_path / "vit.safetensors").unlink()
    same = ["--weights", str(tmp_path / "vit.safetensors")]  # what the run was started with: no longer needed
    assert train([*flags, "--epochs", "2", "--resume", str(last), *same]) == 0
    assert evaluate(["--model_path", str(last), "--device", "cpu", "--no-fap"]) == 0
    assert calls == ["loaded"]
    assert torch.load(last, weights_only=True)["config"]["start"]["weights"].endswith("vit.safetensors")
    assert train([*flags, "--epochs", "3", "--resume", str(last), "--pretrained"]) == 2
    assert "--pretrained applies to new runs only" in capsys.readouterr().err


def test_a_mistake_is_one_line(capsys, tmp_path):
    assert train(["--weights", str(tmp_path / "none"), "--save-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
