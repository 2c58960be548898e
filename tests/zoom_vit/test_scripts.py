"""The scripts under the study's names, on the digits."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from vit_core.commands.settings import parse, settle
from vit_core.errors import UserError
from vit_core.models.create import create_model
from zoom_vit import (
    bench_pruning,
    bench_recipe,
    cifar_analysis_attention,
    cifar_evaluate,
    cifar_train,
    flowers_analysis_attention,
    flowers_evaluate,
    flowers_token_pruning,
    flowers_train,
    flowers_zoom_image,
    pruning_curve,
    zoom_curve,
)
from zoom_vit.experiment import ExperimentFlags, begin
from zoom_vit.recipe import CIFAR, FLOWERS, StartOptions

CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder of a short training on the digits, its last checkpoint)."""
    folder = tmp_path_factory.mktemp("zoom")
    flags = ["--dataset", "digits", "--save-dir", str(folder / "c"), "--log-dir", str(folder / "l"), *CPU]
    assert cifar_train.main([*flags, "--epochs", "3", "--save-freq", "0"]) == 0
    (last,) = folder.glob("c/*/last.pth")
    return folder, str(last)


def rows(file):
    with file.open() as f:
        return list(csv.DictReader(f))


def settled(recipe, *flags):
    return settle(recipe, parse(recipe, flags), None)


def test_presets_are_the_studys():
    cifar, flowers = settled(CIFAR), settled(FLOWERS)
    for run, model, dataset, size, epochs, normalize in (
        (cifar, "zoom_vit_tiny_patch8_32", "cifar10", 64, 3, "half"),
        (flowers, "zoom_vit_tiny_patch16_224", "flowers102", 32, 5, "imagenet"),
    ):
        t = run.train
        assert (run.model, run.data.dataset, t.batch_size, t.epochs) == (model, dataset, size, epochs)
        assert (t.optimizer, t.lr, t.weight_decay, t.schedule, t.warmup_epochs) == ("adam", 1e-4, 0, "constant", 0)
        assert (t.label_smoothing, t.grad_clip, run.augment.crop) == (0, 0, "none")
        assert run.data.normalize == normalize
        assert not run.start["pretrained"]
    assert (cifar.augment.hflip, flowers.augment.hflip) == (0, 0.5)
    digits = settled(FLOWERS, "--dataset", "digits")
    assert (digits.model, digits.augment.hflip) == ("zoom_vit_micro", 0)
    assert settled(CIFAR, "--dataset", "digits", "--preset", "published").train.optimizer == "adam"
    assert settled(CIFAR, "--model", "micro").data.dataset == "cifar10"


def test_normalization_is_the_runs(run):
    folder, _ = run
    config = json.loads(next(folder.glob("c/*/config.json")).read_text())
    assert config["mean"] == config["std"] == [0.5, 0.5, 0.5]


def test_pretrained_weights_of_another_size_are_refused():
    model = create_model("zoom_vit_micro", {}, 10, None)
    with pytest.raises(UserError, match="no pretrained weights for this model size"):
        CIFAR.initialize(model, StartOptions(pretrained=True))


def test_pretrained_weights_are_those_of_the_tiny_vit(monkeypatch):
    from vit_core.models import timm_weights

    asked = []
    theirs = create_model("vit_tiny_patch16_224", {}, 7, None)
    monkeypatch.setattr(timm_weights, "download", lambda *a: asked.append(a) or theirs.state_dict())
    model = create_model("zoom_vit_tiny_patch16_224", {}, 102, None)
    FLOWERS.initialize(model, StartOptions(pretrained=True))
    assert asked == [("vit_tiny_patch16_224.augreg_in21k_ft_in1k",)]
    assert torch.equal(model.blocks[5].mlp.fc1.weight, theirs.blocks[5].mlp.fc1.weight)
    assert model.head.out_features == 102


def test_evaluations_write_the_results(run, tmp_path, capsys):
    for script in (cifar_evaluate, flowers_evaluate):
        assert script.main(["--checkpoint", run[1], "--output-dir", str(tmp_path / "e"), *CPU]) == 0
        record = json.loads((tmp_path / "e/results.json").read_text())
        text = (tmp_path / "e/results.txt").read_text()
        assert f"Top-1 Accuracy:       {record['acc1']:.2f}%" in text
        assert text.strip() in capsys.readouterr().out
        assert record["num_images"] == 360
        assert record["eval_split"] == "test"


def test_attention_analysis(run, tmp_path):
    flags = ["--pictures", "2", "--max-images", "60", "--batch-size", "32"]
    assert cifar_analysis_attention.main(["--checkpoint", run[1], "--output-dir", str(tmp_path), *flags, *CPU]) == 0
    record = json.loads((tmp_path / "attention.json").read_text())
    assert record["images"] == 60
    agreement = torch.tensor(record["agreement"])
    assert agreement[0, 0] == pytest.approx(100)
    assert record["chance"] == pytest.approx(100 * 19 / 64)
    assert torch.equal(agreement, agreement.T)
    assert agreement[-1, :-1].mean() == pytest.approx(30, abs=3), "what the random maps share with the others"
    pictures = sorted((tmp_path / "visualizations").iterdir())
    assert [p.name[:6] for p in pictures] == ["00000_", "00180_"]
    with Image.open(pictures[0]) as picture:
        assert picture.size[0] > 1200
    assert "token_norm" in (tmp_path / "attention.txt").read_text()


def test_pictures_lie_in_the_folder_of_their_group(run, tmp_path, capsys):
    flags = ["--checkpoint", run[1], "--output-dir", str(tmp_path), "--per-group", "1", "--max-images", "80", *CPU]
    flags += ["--importance", "cls_attention"]
    assert flowers_analysis_attention.main([*flags, "--entropy-threshold", "0.6"]) == 0
    assert flowers_zoom_image.main([*flags, "--entropy-threshold", "0.6"]) == 0
    said = capsys.readouterr().out
    found = sorted(str(p.parent.relative_to(tmp_path)) for p in tmp_path.rglob("*.png"))
    groups = [f"{i}_{g}_attention" for i, g in enumerate(("good", "inverted", "diffuse"), 1) if f" 0 {g}" not in said]
    assert len(groups) >= 2
    assert found == sorted(
        f"{f}/{g}" for f in ("1_visualizations", "2_zoom_image", "3_image_level_zoom") for g in groups
    )
    for folder in ("1_visualizations", "2_zoom_image", "3_image_level_zoom"):
        record = json.loads((tmp_path / folder / "images.json").read_text())["images"]
        assert [f"{folder}/{i}" for i in groups] == [
            f"{folder}/{('good', 'inverted', 'diffuse').index(e['intent']) + 1}_{e['intent']}_attention"
            for e in sorted(record, key=lambda e: ("good", "inverted", "diffuse").index(e["intent"]))
        ]
        assert "entropy" in (tmp_path / folder / "images.txt").read_text()
    assert flowers_zoom_image.main([*flags, "--indices", "7", "300"]) == 0
    assert len([p for p in tmp_path.rglob("00300.png") if "zoom" in str(p)]) == 2


def test_token_pruning(run, tmp_path, capsys):
    flags = ["--checkpoint", run[1], "--output-dir", str(tmp_path), "--indices", "204", "3", *CPU]
    assert flowers_token_pruning.main(flags) == 0
    record = json.loads((tmp_path / "pruning_results.json").read_text())
    by_image = rows(tmp_path / "pruning_by_image.csv")
    assert len(by_image) == 360
    assert [int(r["index"]) for r in by_image] == list(range(360))
    groups = {g["group"]: g for g in record["groups"]}
    assert sum(groups[g]["images"] for g in ("good", "inverted", "diffuse")) == groups["all"]["images"] == 360
    good = [r for r in by_image if r["group"] == "good"]
    change = sum(float(r["pruned_correct"]) - float(r["dense_correct"]) for r in good) / len(good)
    assert groups["good"]["pruned_correct"][0] == pytest.approx(change, abs=1e-3)
    assert groups["all"]["dense_correct"] == pytest.approx(
        sum(float(r["dense_correct"]) for r in by_image) / 360, abs=1e-3
    )
    text = (tmp_path / "pruning_results.txt").read_text()
    assert text in capsys.readouterr().out
    for verdict in record["verdicts"].values():
        assert verdict in text
    assert "| 204 |" in text
    assert "| 3 |" in text
    assert "published" not in text, "those are images of Flowers-102"
    for line in text.splitlines():
        if line.startswith("| good"):
            assert line.count("|") == 8
    assert text.count("the claim ") + text.count("inconclusive") == 12  # three measures, and under three thresholds
    capsys.readouterr()
    assert flowers_token_pruning.main([*flags[:4], "--max-images", "40", *CPU]) == 0
    assert "Single images" not in capsys.readouterr().out


def test_pruning_curve(run, tmp_path):
    flags = ["--importances", "cls_attention", "random", "random", "--keep-ratios", "0.5", "1", "0.50"]
    flags += ["--max-images", "60", "--batch-size", "32"]
    assert pruning_curve.main(["--checkpoint", run[1], "--output-dir", str(tmp_path), *flags, *CPU]) == 0
    table = rows(tmp_path / "pruning_curve.csv")
    assert [r["importance"] for r in table] == ["dense"] + ["cls_attention"] * 6 + ["random"] * 6
    assert [r["prune_layer"] for r in table[1:7]] == ["1", "1", "2", "2", "3", "3"]
    dense = table[0]
    assert all(r["acc1"] == dense["acc1"] for r in table if r["keep_ratio"] == "1")
    half = next(
        r for r in table if r["importance"] == "random" and r["prune_layer"] == "1" and r["keep_ratio"] == "0.5"
    )
    assert 1.5 < float(half["ideal_speed_up"]) < 1.8
    assert float(half["images_per_second"]) > 0
    with Image.open(tmp_path / "pruning_curve.png") as picture:
        assert picture.size[0] > 1000


def test_zoom_curve(run, tmp_path, capsys):
    flags = ["--importances", "grad_rollout", "--keep-ratios", "1", "0.1", "--max-images", "60"]
    assert zoom_curve.main(["--checkpoint", run[1], "--output-dir", str(tmp_path), *flags, *CPU]) == 0
    whole, part = rows(tmp_path / "zoom_curve.csv")
    dense = json.loads((tmp_path / "zoom_curve.json").read_text())["dense_acc1"]
    assert float(whole["crop_acc1"]) == float(whole["both_acc1"]) == pytest.approx(dense, abs=1e-3)
    assert float(whole["box_area"]) == 100
    assert float(part["box_area_low"]) < float(part["box_area"]) < float(part["box_area_high"]) < 90
    assert [float(whole[f"crop_change{end}"]) for end in ("", "_low", "_high")] == [0, 0, 0]
    assert float(part["crop_change"]) == pytest.approx(float(part["crop_acc1"]) - dense, abs=0.01)
    assert float(part["both_change_low"]) <= float(part["both_change"]) <= float(part["both_change_high"])
    assert f"dense {dense:.2f}%" in capsys.readouterr().out


def test_flowers_are_tested_on_their_test_split(run):
    flags = ExperimentFlags(checkpoint=run[1], dataset="flowers102", data_path="nowhere")
    asked = {}

    def load(name, **fields):
        asked.update(fields, name=name)
        raise ValueError("asked")

    from vit_core.commands import images

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "load_dataset", load)
        with pytest.raises(ValueError, match="asked"):
            begin(FLOWERS, flags)
    assert (asked["name"], asked["eval_split"]) == ("flowers102", "test")
    assert settled(FLOWERS).data.eval_split is None, "training is validated on the validation split"


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        (flowers_token_pruning, ["--keep-ratio", "0"], "keep-ratio must lie in (0, 1]"),
        (flowers_token_pruning, ["--keep-ratio", "0.6"], "so that top and bottom patches do not overlap"),
        (flowers_token_pruning, ["--prune-layer", "4"], "--prune-layer must lie in 1 … 3"),
        (flowers_token_pruning, ["--prune-layer", "0"], "--prune-layer must lie in 1 … 3"),
        (flowers_token_pruning, ["--entropy-threshold", "2"], "--entropy-threshold"),
        (flowers_token_pruning, ["--indices", "360"], "--indices 360"),
        (flowers_token_pruning, ["--max-images", "0"], "--max-images"),
        (flowers_zoom_image, ["--per-group", "0"], "--per-group"),
        (flowers_zoom_image, ["--indices", "-1"], "--indices -1"),
        (cifar_analysis_attention, ["--pictures", "-1"], "--pictures"),
        (pruning_curve, ["--keep-ratios", "1.5"], "--keep-ratios"),
        (pruning_curve, ["--prune-layers", "9"], "--prune-layers must lie in 1 … 3"),
        (zoom_curve, ["--keep-ratios", "0"], "--keep-ratios"),
        (zoom_curve, ["--dataset", "cifar10", "--data-path", "nowhere"], "cifar10 not found"),
    ],
)
def test_mistakes(run, tmp_path, capsys, script, flags, message):
    assert script.main(["--checkpoint", run[1], "--output-dir", str(tmp_path), *flags, *CPU]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_mistakes_of_training_and_benchmarks(tmp_path, capsys):
    assert flowers_train.main(["--data-path", str(tmp_path)]) == 2
    assert "flowers102 not found" in capsys.readouterr().err
    assert bench_pruning.main(["--prune-layer", "12"]) == 2
    assert bench_recipe.main(["--data-path", str(tmp_path)]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert cifar_evaluate.main(["--checkpoint", str(tmp_path / "none.pth")]) == 2


def test_interval_of_a_median():
    values = np.random.default_rng(1).normal(1.5, 0.1, 400)
    low, high = bench_pruning.median_interval(values)
    assert low < np.median(values) < high
    assert high - low == pytest.approx(2 * 1.96 * 1.2533 * 0.1 / 20, rel=0.25), "normal values: 1.2533 σ/√n"
    assert bench_pruning.median_interval(np.array([2.0])) == (2, 2)


@pytest.mark.slow
def test_benchmarks(tmp_path, capsys):
    for split in ("train", "test"):
        for name, color in (("a", 10), ("b", 200)):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(96):
                Image.new("RGB", (32, 32), (color, i, 0)).save(folder / f"{i}.jpg")
    flags = ["--data-path", str(tmp_path), "--steps", "2", "--rounds", "1", "--json", str(tmp_path / "r.json")]
    assert bench_recipe.main(flags) == 0
    record = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert set(record) == {"ours", "torchvision"}
    for row in record.values():
        assert row["loader_share"] == pytest.approx(row["loader_s"] / row["epoch_s"])
    flags = ["--batch-sizes", "1", "--keep-ratios", "0.3", "--rounds", "1", "--json", str(tmp_path / "p.json"), *CPU]
    assert bench_pruning.main(flags) == 0
    theirs, pruned = json.loads((tmp_path / "p.json").read_text())["rows"]
    assert theirs["ideal"] == 1
    assert pruned["ideal"] == pytest.approx(1.556, abs=0.01)
    assert pruned["share"] == pytest.approx(pruned["realized"] / pruned["ideal"])
