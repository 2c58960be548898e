"""The scripts that look at trained models: reports, pictures, studies that go on where they were interrupted."""

import csv
import json
import math

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from hthta_vit import ablation_study, baseline_comparison, evaluate, visualize_attention
from hthta_vit.focus import attention_map
from hthta_vit.model import COMPONENTS
from hthta_vit.recipe import RECIPE
from hthta_vit.registry import hthta_vit_micro
from hthta_vit.train import main as train
from vit_core.commands.settings import parse_with
from vit_core.commands.trained_model import TrainedModel
from vit_core.explain import class_token_attention, default_layer, grad_cam
from vit_core.training.precision import choose_precision

TINY = ("--device", "cpu", "--batch-size", "256", "--epochs", "1", "--model-kwargs", "depth=1")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert train(["--save-dir", str(folder / "c"), "--log-dir", str(folder / "l"), *TINY]) == 0
    (last,) = folder.glob("c/*/last.pth")
    return last


def test_evaluate_writes_its_reports(checkpoint, tmp_path, capsys):
    folder = tmp_path / "reports"
    argv = ["--model_path", str(checkpoint), "--robustness", "--output-dir", str(folder), "--device", "cpu"]
    assert evaluate.main(argv) == 0
    said = capsys.readouterr().out
    record = json.loads((folder / "report.json").read_text())
    trained = torch.load(checkpoint, weights_only=True)
    assert record["acc1"] == pytest.approx(trained["best_acc1"]), "the accuracy of the run itself"
    assert f"Accuracy:    {record['acc1']:.2f}%" in said
    assert len(record["by_class"]) == 10
    assert next(iter(record["robustness"])) == "none"
    assert len(record["robustness"]) == 5
    assert record["fap"]["num_images"] == 360
    assert record["fap"]["chance"] == pytest.approx(100 * 10 / 64)  # 15% of 64 places are ten
    assert "macro avg" in (folder / "report.txt").read_text()
    assert width(folder / "confusion_matrix.png") > 500


def test_tta_is_the_mean_of_the_two_views():
    model = hthta_vit_micro(num_classes=4, depth=1).eval()
    trained = TrainedModel(model=model, settings={}, source=None)
    images, off = torch.randn(3, 3, 32, 32), choose_precision("off", torch.device("cpu"))
    scores, labels = evaluate.predictions(trained, [(images, torch.arange(3))], off, tta=True)
    with torch.no_grad():
        mean = (model(images).softmax(1) + model(images.flip(-1)).softmax(1)) / 2
    torch.testing.assert_close(scores.exp(), mean)
    assert labels.tolist() == [0, 1, 2]
    plain, _ = evaluate.predictions(trained, [(images, torch.arange(3))], off)
    torch.testing.assert_close(plain, model(images).log_softmax(1).detach())


def test_the_map_of_each_row():
    images = torch.randn(2, 3, 32, 32)
    pooled = hthta_vit_micro(depth=1).eval()
    with torch.no_grad():
        alpha = pooled(images, return_attention=True)[1]
    torch.testing.assert_close(attention_map(pooled, images), alpha.mean(1).view(2, 8, 8))
    for row in ("none", "bigru"):
        plain = hthta_vit_micro(depth=1, components=row).eval()
        torch.testing.assert_close(attention_map(plain, images), class_token_attention(plain, images))


def test_visualize_a_file_and_a_folder(checkpoint, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for name in ("one.png", "two.jpg"):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(images / name)
    argv = ["--model_path", str(checkpoint), "--device", "cpu", "--output-dir", str(tmp_path / "out")]
    assert visualize_attention.main([*argv, "--image_path", str(images)]) == 0
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["001_one.png", "002_two.png"]
    assert visualize_attention.main([*argv, "--image_path", str(images / "one.png"), "--target", "3"]) == 0
    assert "FAP" in capsys.readouterr().out
    for wrong, message in (
        (["--image_path", str(images / "three.png")], "no such file or folder"),
        (
            ["--image_path", str(images / "one.png"), "--target", "cow"],
            "cow: not a class of the model; its classes are 0, 1",
        ),
    ):
        assert visualize_attention.main([*argv, *wrong]) == 2
        assert message in capsys.readouterr().err


def width(picture):
    with Image.open(picture) as image:
        return image.size[0]


def rows(folder):
    with (folder / "measurements.csv").open() as f:
        return list(csv.DictReader(f))


def test_the_ablation_writes_its_table_and_picture(tmp_path, capsys):
    argv = ["--output-dir", str(tmp_path), "--fap-images", "64", "--seeds", "0", *TINY]
    assert ablation_study.main(["--components", "none", "bigru+pooling", *argv]) == 0
    table = (tmp_path / "table.md").read_text()
    assert "| none |" in table
    assert "| 92.1 | 72.4 |" in table, "the claim stands beside the measurement"
    assert width(tmp_path / "ablation.png") > 1000
    measured = rows(tmp_path)
    assert [m["row"] for m in measured] == ["none", "bigru+pooling"]
    assert {m["fap_images"] for m in measured} == {"64"}
    assert all(float(m["fap_chance"]) == pytest.approx(15.625) for m in measured)
    assert "ablation.png" in capsys.readouterr().out
    assert ablation_study.main(["--components", "none", *argv, "--lr", "0.5"]) == 2
    assert "contains another study: row none differs in train" in capsys.readouterr().err
    assert ablation_study.main([*argv[:2], "--fap-images", "0"]) == 2
    assert "--fap-images must be at least 1, got 0" in capsys.readouterr().err


def test_one_grad_cam_layer_for_all_rows():
    for row in COMPONENTS:
        model = hthta_vit_micro(components=row).eval()
        assert default_layer(model) is model.blocks[-2]
        assert grad_cam(model, torch.randn(2, 3, 32, 32), 0).shape == (2, 8, 8)


def test_baselines_of_timm_beside_ours(tmp_path, capsys):
    flags = ["--device", "cpu", "--batch-size", "256", "--epochs", "1", "--no-pretrained", "--img-size", "32"]
    argv = ["--output-dir", str(tmp_path), "--dataset", "digits", "--fap-images", "64", *flags]
    models = ["hthta_vit_micro", "test_vit", "test_convnext"]
    file = tmp_path / "gamma.yaml"  # as the shipped files have it: for ours alone
    file.write_text("gamma: 0.3\n")
    assert baseline_comparison.main(["--models", *models, *argv, "--config", str(file)]) == 0
    assert {f: gamma_of(tmp_path, f) for f in models} == {
        "hthta_vit_micro": 0.3,
        "test_vit": None,
        "test_convnext": None,
    }
    measured = {m["row"]: m for m in rows(tmp_path)}
    assert list(measured) == models
    assert measured["test_vit"]["fap"]
    assert not measured["test_convnext"]["fap"], "no attention, no FAP"
    assert "| test_convnext |" in (tmp_path / "table.md").read_text()
    assert baseline_comparison.main(["--models", "vit_huge9", *argv]) == 2
    assert "not a timm model: vit_huge9" in capsys.readouterr().err


def gamma_of(study, row):
    (last,) = study.glob(f"runs/{row}_seed0/*/last.pth")
    return torch.load(last, weights_only=True)["config"]["model_kwargs"].get("gamma")


def brightness_reader(img_size):
    """A model that looks at the brightest patch: every part passes on channel 0, which is a patch's brightness."""
    model = hthta_vit_micro(img_size=img_size, num_classes=2, depth=2).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.norm = torch.nn.Identity()  # the blocks add nothing: their weights are zero
        model.patch_embed.proj.weight[0] = 1 / (3 * 4 * 4)
        gru, projection = model.guided.bigru.bigru, model.guided.bigru.projection
        gru.bias_ih_l0[64:128] = -50  # z = 0: a step's state is its n = tanh(x)
        gru.weight_ih_l0[128, 0] = 1
        projection.weight[0, 0] = 1
        model.guided.attention_pooling.proj.weight[::16, 0] = 1
        model.guided.attention_pooling.score[:, 0] = 1
        model.guided.cls_fusion.projection.weight[0, 0] = 1  # gamma and beta are zero: the pooled vector alone
        model.head.weight[1, 0] = 1
    return model


@pytest.mark.parametrize(("size", "row", "column"), [((32, 32), 1, 6), ((32, 48), 6, 9), ((48, 32), 10, 0)])
def test_a_planted_patch_is_found_where_it_lies(size, row, column):
    model = brightness_reader(size)
    images = torch.zeros(2, 3, *size)
    images[1, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 2.0
    for maps in (attention_map(model, images), grad_cam(model, images, 1)):
        assert maps.shape == (2, size[0] // 4, size[1] // 4)
        assert maps[1].flatten().argmax() == row * (size[1] // 4) + column
    torch.testing.assert_close(
        attention_map(model, images)[0], torch.full((size[0] // 4, size[1] // 4), 16 / math.prod(size))
    )


def test_the_drawn_maps_show_the_planted_patch(tmp_path, monkeypatch):
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[8:16, 40:48] = 255  # patch row 1, column 5 of the 8 x 8 grid
    settings = {"img_size": 32, "mean": [0.0] * 3, "std": [0.5] * 3, "augment": {}, "class_names": ["no", "yes"]}
    trained = TrainedModel(model=brightness_reader((32, 32)), settings=settings, source=None)
    drawn = {}
    monkeypatch.setattr(visualize_attention, "figure_of_maps", lambda image, maps, *_, **__: drawn.update(maps))
    images = trained.transform()(torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous())
    says = visualize_attention.draw(trained, images, tmp_path / "p.png", "a patch", "yes")
    assert len(drawn) == 4 + 3, "four heads, their mean, Grad-CAM, and where the two agree"
    for name, heat in drawn.items():
        assert heat[1, 5] == heat.max(), name
    assert says.startswith("yes")


def test_swins_map_is_what_each_place_receives():
    small = {"num_classes": 5, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4}
    one_window, four = (timm.create_model("swin_tiny_patch4_window7_224", img_size=s, **small).eval() for s in (32, 64))
    received = baseline_comparison.maps_of(one_window)
    maps = received(one_window, torch.randn(2, 3, 32, 32))
    assert maps.shape == (2, 4, 4)
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(2))  # each gives away 1
    with pytest.raises(ValueError, match="more than one window"):
        received(four, torch.randn(2, 3, 64, 64))


def test_the_components_of_a_config_file_are_not_the_rows_of_the_ablation(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("components: bigru\n")
    args, shared = parse_with(RECIPE, ablation_study.Flags, ["--config", str(file)], "test")
    assert args.components == tuple(COMPONENTS)
    assert shared["components"] == "bigru"
