"""The scripts: both models side by side, their curves, sparsity, sweeps, explanations, the original's findings."""

import csv
import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from selective_vit import explain, findings, judge, sparsity, threshold_sweep, thresholds
from selective_vit.evaluate import main as evaluate
from selective_vit.findings import first_step
from selective_vit.model import make_selective
from selective_vit.plot_logs import main as plot_logs
from selective_vit.plot_logs import read as read_log
from selective_vit.recipe import RECIPE, initialize, presets
from selective_vit.train import main as train
from vit_core.commands.curves import read_metrics
from vit_core.commands.settings import parse, settle
from vit_core.commands.trained_model import load_trained
from vit_core.explain import SparsityTracker, figure_of_maps
from vit_core.models.create import create_model, input_size
from vit_core.models.timm_weights import StartOptions

TINY = ("--device", "cpu", "--batch-size", "256", "--epochs", "2", "--model-kwargs", "depth=2")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(folder, dense run, selective run) of one side-by-side training."""
    folder = tmp_path_factory.mktemp("runs")
    flags = ["--save-dir", str(folder / "c"), "--log-dir", str(folder / "l"), "--save-freq", "1", "--threshold", "0.02"]
    assert train([*flags, *TINY]) == 0
    dense, selective = (next(folder.glob(f"c/{name}_vit_micro_digits_*")) for name in ("dense", "selective"))
    return folder, dense, selective


def width(picture):
    with Image.open(picture) as image:
        return image.size[0]


def rows(file):
    with file.open() as f:
        return list(csv.DictReader(f))


# ── training ─────────────────────────────────────────────────────────────────────────────────────────────────────


def settled(*flags):
    return settle(RECIPE, parse(RECIPE, flags), None)


# The original at commit 73eab5592e45: what each document says of a training. README: table "Experimental Setup"; PDF:
# section 6; notebook: cells 5, 7, 11 and 13, with torch's defaults where it gives no value.
README = {"dataset": "cifar10", "epochs": 70, "optimizer": "adamw", "batch_size": 16, "lr": 3e-4, "schedule": "cosine",
          "label_smoothing": 0.0}  # fmt: skip
PDF = {"dataset": "cifar10", "epochs": 10, "optimizer": "adamw", "batch_size": 16, "lr": 3e-4, "schedule": "cosine"}
NOTEBOOK = {
    "dataset": "cifar10", "normalize": "cifar10_image_std", "hflip": 0.5, "crop": "none", "epochs": 10,
    "optimizer": "adamw", "batch_size": 16, "lr": 3e-4, "min_lr": 1e-5, "schedule": "cosine", "schedule_by": "epoch",
    "warmup_epochs": 0, "weight_decay": 0.01, "decay_all": True, "beta1": 0.9, "beta2": 0.999, "grad_clip": 0.0,
    "label_smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0, "early_stopping": 3, "ema_decay": None, "amp": "auto",
}  # fmt: skip
NOTEBOOK_ONLY = {"epochs": 10}  # of the notebook's values those that the README replaces


@pytest.mark.parametrize("model", ["vit", "selective"])
@pytest.mark.parametrize(
    ("preset", "documents"),
    [
        ("notebook", [PDF, NOTEBOOK]),
        ("published", [README, {k: v for k, v in NOTEBOOK.items() if k not in NOTEBOOK_ONLY}]),
    ],
)
def test_presets_are_what_the_documents_say(preset, documents, model):
    run = settled("--model", model, "--preset", preset)
    values = {**vars(run.data), **vars(run.train), **vars(run.augment)}
    for document in documents:
        assert {name: values[name] for name in document} == document
    assert run.start["pretrained"]
    assert run.model == {"vit": "vit_base_patch16_224", "selective": "selective_vit_base_patch16_224"}[model]
    assert input_size(timm.create_model(run.model, depth=1)) == 224
    theirs = {"mode": "hard", "empty_row": "zero", "reinit_attention": True}
    assert run.model_kwargs == (theirs if (preset, model) == ("notebook", "selective") else {})


def test_the_notebooks_threshold_and_epsilon_are_the_defaults():
    attn = make_selective(VisionTransformer(depth=1, embed_dim=12, num_heads=3)).blocks[0].attn
    assert (attn.threshold.form.tau, attn.selection.eps) == (0.01, 1e-6)


def test_other_presets():
    assert not settled("--model", "vit", "--weights", "f").start["pretrained"]
    assert settled("--model", "vit", "--preset", "fine_tune").train.lr == 2e-5
    assert presets({})["model"] == "selective_micro"
    assert settled("--threshold", "0.05", "--mode", "hard").model_kwargs == {"threshold": 0.05, "mode": "hard"}
    assert settled("--preset", "notebook", "--mode", "relu").model_kwargs == {
        "mode": "relu",
        "empty_row": "zero",
        "reinit_attention": True,
    }
    assert settled("--preset", "notebook", "--model", "vit_micro").model_kwargs == {}


def test_both_models_train_under_one_recipe(runs):
    folder, dense, selective = runs
    kwargs = [json.loads((run / "config.json").read_text()) for run in (dense, selective)]
    assert kwargs[0]["model_kwargs"] == {"depth": 2}, "a plain model knows no threshold"
    assert kwargs[1]["model_kwargs"] == {"depth": 2, "threshold": 0.02}
    assert kwargs[0]["train"] == kwargs[1]["train"]
    (curves,) = folder.glob("c/curves_*.png")
    assert width(curves) > 1000


def test_one_model_and_resume(runs, tmp_path, capsys):
    _, _, selective = runs
    flags = ["--save-dir", str(tmp_path), "--log-dir", str(tmp_path / "l"), "--device", "cpu"]
    assert train([*flags, "--resume", str(selective / "epoch_1.pth"), "--epochs", "2"]) == 0
    resumed, whole = (torch.load(next(p.glob("**/last.pth")), weights_only=True) for p in (tmp_path, selective))
    for name, value in whole["model_state_dict"].items():
        assert torch.equal(resumed["model_state_dict"][name], value), name
    assert train([*flags, "--model", "both", "--resume", str(selective / "last.pth")]) == 2
    assert "--resume continues one model" in capsys.readouterr().err
    assert train([*flags, "--model", "vit_micro", "--threshold", "0.1", *TINY]) == 2
    assert "dense_vit_micro has plain attention and does not support threshold" in capsys.readouterr().err


@pytest.mark.slow
def test_a_growing_threshold_grows_in_training_and_resumes_exactly(tmp_path):
    flags = ["--model", "selective_micro", "--threshold-growth", "0.5", "--save-freq", "1", *TINY, "--epochs", "4"]
    assert train([*flags, "--save-dir", str(tmp_path / "a"), "--log-dir", str(tmp_path / "l")]) == 0
    (run,) = (tmp_path / "a").iterdir()
    shares = []
    for epoch in (1, 2, 4):
        model = load_trained(RECIPE, run / f"epoch_{epoch}.pth", CPU).model
        shares.append(float(thresholds(model)["blocks.0.attn"].share))
    # 5 steps an epoch; the last one of epoch 1 begins after 4 of 20, and τ has grown at 10.
    assert shares == pytest.approx([4 / 10, 9 / 10, 1.0])
    again = ["--save-dir", str(tmp_path / "b"), "--log-dir", str(tmp_path / "l"), "--device", "cpu"]
    assert train([*again, "--resume", str(run / "epoch_1.pth")]) == 0
    (last,) = (tmp_path / "b").glob("*/last.pth")
    resumed, whole = (torch.load(f, weights_only=True)["model_state_dict"] for f in (last, run / "last.pth"))
    assert all(torch.equal(resumed[k], v) for k, v in whole.items())


@pytest.mark.slow
def test_a_growing_threshold_is_no_average(tmp_path):
    """The EMA of the weights is evaluated under the τ of the training, not under a mean of earlier ones."""
    flags = ["--model", "selective_micro", "--threshold-growth", "0.5", "--ema-decay", "0.99", *TINY]
    assert train([*flags, "--save-dir", str(tmp_path / "a"), "--log-dir", str(tmp_path / "l")]) == 0
    (last,) = (tmp_path / "a").glob("*/last.pth")
    for raw in (False, True):
        model = load_trained(RECIPE, last, CPU, raw_weights=raw).model
        assert float(thresholds(model)["blocks.0.attn"].share) == 1


def test_a_mistake_in_the_second_model_shows_before_the_first_trains(tmp_path, capsys):
    flags = ["--save-dir", str(tmp_path), "--device", "cpu"]
    assert train([*flags, "--threshold", "1.5"]) == 2
    assert "threshold must be below 1" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_weights_from_a_dense_run_kept_or_lost_in_attention(runs, tmp_path):
    _, dense, _ = runs
    theirs = torch.load(dense / "best.pth", weights_only=True)["model_state_dict"]
    save_file(theirs, tmp_path / "vit.safetensors")
    for file in (dense / "best.pth", tmp_path / "vit.safetensors"):
        for lost in (False, True):
            kwargs = {"depth": 2, "learned_threshold": "head", "reinit_attention": lost}
            model = create_model("selective_vit_micro", kwargs, 10, None)
            initialize(model, StartOptions(weights=str(file)))
            same = {k for k, v in model.state_dict().items() if k in theirs and torch.equal(v, theirs[k])}
            assert {k for k in theirs if k not in same and not k.startswith("head.")} == {
                k for k in theirs if lost and ".attn." in k
            }


def test_evaluate_reports_the_runs_accuracy(runs, capsys):
    _, _, selective = runs
    assert evaluate(["--checkpoint", str(selective / "best.pth"), "--device", "cpu"]) == 0
    best = torch.load(selective / "best.pth", weights_only=True)["best_acc1"]
    assert f"{best:.2f}%" in capsys.readouterr().out


# ── looking at what was trained ──────────────────────────────────────────────────────────────────────────────────


def test_plot_logs(runs, tmp_path, capsys):
    _, dense, selective = runs
    picture = tmp_path / "curves.png"
    assert plot_logs([str(dense), str(selective), "--labels", "ViT", "SelectiveViT", "--output", str(picture)]) == 0
    assert width(picture) > 1000
    for wrong, message in (
        ([str(dense), "--labels", "a", "b"], "got 2 labels for 1 runs"),
        ([str(tmp_path)], "it has no metrics.csv"),
    ):
        assert plot_logs([*wrong, "--output", str(picture)]) == 2
        assert message in capsys.readouterr().err


NOTEBOOK_LOG = (
    "Epoch,Train Loss,Train Acc,Test Loss,Test Acc\r\n1,1.51,0.4471,1.184,0.567\r\n2,1.09,0.6094,1.01,0.634\r\n"
)


def test_plot_logs_of_the_originals_notebook(runs, tmp_path, capsys):
    """Its CSV: other names of columns, accuracies as shares, and a file that a second training was appended to."""
    _, dense, _ = runs
    logs = tmp_path / "vit_log.csv", tmp_path / "selectivevit_log.csv"
    logs[0].write_text(NOTEBOOK_LOG)
    logs[1].write_text(NOTEBOOK_LOG + "1,1.53,0.44,1.28,0.52\r\n2,1.17,0.58,1.13,0.5843\r\n3,0.95,0.66,0.98,0.648\r\n")
    picture = tmp_path / "curves.png"
    assert plot_logs([*map(str, logs), str(dense), "--output", str(picture)]) == 0
    assert width(picture) > 1000
    assert "selectivevit_log.csv contains 2 trainings; only the last one is plotted" in capsys.readouterr().out
    first, second = read_log(logs[0])
    assert first == {"epoch": "1", "train_loss": "1.51", "train_acc1": "44.71", "val_loss": "1.184", "val_acc1": "56.7"}
    assert float(second["val_acc1"]) == pytest.approx(63.4)
    assert [row["train_loss"] for row in read_log(logs[1])] == ["1.53", "1.17", "0.95"]
    assert read_log(dense) == read_metrics(dense)
    for text, message in (
        ("a,b\n1,2\n", "is not a notebook log: its columns must be Epoch, Train Loss"),
        (NOTEBOOK_LOG.splitlines()[0] + "\n", "contains no epochs yet"),
        (
            NOTEBOOK_LOG + "3,much,0.5,0.5,little\n",
            "cannot be read as a notebook log: could not convert string to float: 'little'",
        ),
        (NOTEBOOK_LOG + "3,0.5\n", "cannot be read as a notebook log"),
    ):
        logs[0].write_text(text)
        assert plot_logs([str(logs[0]), "--output", str(picture)]) == 2
        assert message in capsys.readouterr().err


def test_sparsity_of_a_run_and_of_a_dense_model(runs, tmp_path, capsys):
    _, dense, selective = runs
    epochs = [str(selective / f"epoch_{e}.pth") for e in (1, 2)]
    argv = ["--device", "cpu", "--max-images", "40", "--output-dir", str(tmp_path)]
    assert sparsity.main(["--checkpoint", *epochs, *argv]) == 0
    table = rows(tmp_path / "sparsity.csv")
    assert len(table) == 2 * 2 * 4, "a row a head of each block and epoch"
    assert {r["keys"] for r in table} == {"65"}
    assert {r["threshold"] for r in table} == {"0.02"}
    assert all(float(r["sparsity"]) == pytest.approx(1 - float(r["active_tokens"]) / 65, abs=1e-4) for r in table)
    assert sum(float(r["sparsity"]) for r in table) > 0.5
    assert width(tmp_path / "active_tokens.png") > 300
    assert width(tmp_path / "sparsity_by_epoch.png") > 600
    assert sparsity.main(["--checkpoint", str(dense / "best.pth"), *argv]) == 0
    assert "0.00% of the weights are zero" in capsys.readouterr().out
    assert sparsity.main(["--checkpoint", str(dense / "best.pth"), "--threshold", "0.02", *argv]) == 0
    assert " 0.00% of the weights" not in capsys.readouterr().out
    assert sparsity.main(["--checkpoint", str(dense / "best.pth"), "--threshold", "1", *argv]) == 2


def test_learned_thresholds_and_the_sparsity_term_in_training(tmp_path, capsys):
    """The term makes the attention sparser, and the log and the sparsity command say where the thresholds went."""
    flags = ["--model", "selective_micro", "--learned-threshold", "head", "--lr", "1e-2", "--warmup-epochs", "0", *TINY]
    share, moved = {}, {}
    for weight in ("0", "20"):
        where = ["--save-dir", str(tmp_path / weight), "--log-dir", str(tmp_path / "l"), "--sparsity-weight", weight]
        assert train([*flags, *where]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("learned thresholds × N")]
        assert len(lines) == 2, "one an epoch"
        (last,) = (tmp_path / weight).glob("*/last.pth")
        out = tmp_path / f"sparsity_{weight}"
        argv = ["--checkpoint", str(last), "--device", "cpu", "--max-images", "40", "--output-dir", str(out)]
        assert sparsity.main(argv) == 0
        said = capsys.readouterr().out
        assert "blocks.0.attn: τ 0.0" in said
        assert "for comparison, 1/N = 0.01538" in said
        table = rows(out / "sparsity.csv")
        moved[weight] = [65 * float(r["threshold"]) for r in table]
        assert len(set(moved[weight])) > 4, "each head its own"
        assert float(lines[-1].split()[-1]) == pytest.approx(max(moved[weight]), rel=1e-3)
        share[weight] = sum(float(r["sparsity"]) for r in table) / len(table)
    assert min(moved["20"]) > 1.02
    assert share["20"] > share["0"] + 0.05


def test_a_sweep_over_one_trained_model(runs, tmp_path):
    _, dense, _ = runs
    argv = ["--checkpoint", str(dense / "best.pth"), "--device", "cpu", "--sparsity-images", "40"]
    assert threshold_sweep.main([*argv, "--output-dir", str(tmp_path), "--thresholds", "0", "0.01", "0.1"]) == 0
    table = rows(tmp_path / "measurements.csv")
    best = torch.load(dense / "best.pth", weights_only=True)["best_acc1"]
    assert float(table[0]["acc1"]) == pytest.approx(best, abs=1e-3), "τ = 0 is the dense model"
    zeros = [float(r["sparsity"]) for r in table]
    assert zeros == sorted(zeros)
    assert zeros[0] == 0 < zeros[2]
    assert "| 0.01 | 0.65 |" in (text := (tmp_path / "table.md").read_text())
    assert text.count("(one seed: no interval)") == 2, "and of the first row no difference"
    assert width(tmp_path / "sweep.png") > 1000


@pytest.mark.slow
def test_a_sweep_of_trainings(tmp_path, capsys):
    argv = ["--seeds", "0", "1", "--thresholds", "0", "0.05", "--output-dir", str(tmp_path), "--sparsity-images", "40"]
    flags = ["--device", "cpu", "--batch-size", "256", "--epochs", "1", "--model-kwargs", "depth=1"]
    assert threshold_sweep.main([*argv, *flags]) == 0
    table = rows(tmp_path / "measurements.csv")
    assert [(r["row"], r["seed"]) for r in table] == [("0", "0"), ("0.05", "0"), ("0", "1"), ("0.05", "1")]
    assert {r["sparsity_images"] for r in table} == {"40"}
    said = capsys.readouterr().out
    assert "top-1 % (seeds 0, 1) | vs. τ = 0, points (95%, paired, Holm)" in said
    accuracy = {(r["row"], r["seed"]): float(r["acc1"]) for r in table}
    mean = sum(accuracy["0.05", seed] - accuracy["0", seed] for seed in "01") / 2
    assert f"| {mean:+.2f} (" in said
    assert threshold_sweep.main([*argv, "--model", "vit_micro"]) == 2
    assert "a sweep trains one selective model" in capsys.readouterr().err
    assert threshold_sweep.main(["--thresholds", "1.5"]) == 2
    for flag in (["--relative-threshold"], ["--resume", "last.pth"]):
        capsys.readouterr()
        assert threshold_sweep.main([*argv, *flag]) == 2
        assert capsys.readouterr().err.startswith(f"error: {flag[0]}")


def test_explain_side_by_side(runs, tmp_path, capsys, monkeypatch):
    _, dense, selective = runs
    rng = np.random.default_rng(0)
    for name in ("one.png", "two.jpg"):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / name)
    drawn = []

    def remembered(image, maps, path, **fields):
        drawn.append(maps)
        return figure_of_maps(image, maps, path, **fields)

    monkeypatch.setattr(explain, "figure_of_maps", remembered)
    both = ["--checkpoint", str(dense / "best.pth"), str(selective / "best.pth"), "--device", "cpu"]
    out = tmp_path / "out"
    assert explain.main([*both, "--image", str(tmp_path), "--captum-raw", "--output-dir", str(out)]) == 0
    assert sorted(f.name for f in out.iterdir()) == ["001_one.png", "002_two.png"]
    assert "dense_vit_micro: " in capsys.readouterr().out
    names = [name for name, _ in drawn[0]]
    assert names[2:4] == ["attention rollout", "raw Captum: 64 channels as 8×8 pixels"]
    assert names[7:] == names[2:4]
    assert {heat.shape for _, heat in drawn[0] if heat is not None} == {(8, 8)}
    assert [heat is None for _, heat in drawn[0]] == [False] * 4 + [True] + [False] * 4
    for wrong, message in (
        (["--image", str(tmp_path / "three.png")], "no such file or folder"),
        (["--image", str(tmp_path / "one.png"), "--target", "cow"], "--target cow: the models' classes are 0, 1"),
    ):
        assert explain.main([*both, *wrong]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(("size", "row", "column"), [((32, 48), 1, 4), ((48, 32), 5, 2)])
def test_all_maps_show_a_planted_patch_where_it_lies(size, row, column):
    """Every query looks for brightness, channel 0 of the tokens, and only the bright patch passes the threshold."""
    vit = VisionTransformer(img_size=size, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=2).eval()
    with torch.no_grad():
        for p in vit.parameters():
            p.zero_()
        vit.norm = torch.nn.Identity()
        vit.patch_embed.proj.weight[0] = 1 / (3 * 8 * 8)
        vit.head.weight[1, 0] = 1
        for block in vit.blocks:
            block.norm1 = torch.nn.Identity()
            block.attn.qkv.bias[:24:8] = 3.0  # q, the first channel of each head
            block.attn.qkv.weight[24:48:8, 0] = 1.0  # k
            block.attn.qkv.weight[48, 0] = 1.0  # v, of head 0
            block.attn.proj.weight[0, 0] = 1.0
    make_selective(vit, threshold=0.05)
    images = torch.zeros(1, 3, *size)
    images[0, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 2.0
    maps = explain.maps_of(vit, images, 1)
    assert list(maps) == ["Grad-CAM", "Captum LayerGradCam, as a grid", "attention rollout"]
    for name, heat in maps.items():
        assert heat.shape == (size[0] // 8, size[1] // 8)
        assert heat.flatten().argmax() == row * (size[1] // 8) + column, name
    tracker = SparsityTracker()
    tracker.update(vit, images)
    assert tracker.layers["blocks.0.attn"].active_tokens.tolist() == [1.0] * 3


def test_judge_compares_with_random_maps(runs, tmp_path, capsys):
    _, dense, selective = runs
    both = ["--checkpoint", str(dense / "best.pth"), str(selective / "best.pth"), "--device", "cpu"]
    assert judge.main([*both, "--max-images", "30", "--steps", "4", "--output-dir", str(tmp_path)]) == 0
    table = rows(tmp_path / "judgment.csv")
    names = [(m, k) for m in ("dense_vit_micro", "selective_vit_micro") for k in ("Grad-CAM", "rollout", "random")]
    assert [(r["model"], r["method"]) for r in table] == names
    assert {r["images"] for r in table} == {"30"}
    assert all(0 < float(r["deletion_area"]) < 100 for r in table)
    epochs = [str(selective / f"{name}.pth") for name in ("epoch_1", "epoch_2", "last")]
    argv = ["--device", "cpu", "--max-images", "4", "--output-dir", str(tmp_path), "--checkpoint"]
    assert judge.main([*argv, *epochs, "--steps", "2"]) == 0
    assert len({r["model"] for r in rows(tmp_path / "judgment.csv")}) == 3
    assert judge.main([*argv, *epochs[:2], "--steps", "2", "--labels", "early", "late"]) == 0
    assert {r["model"] for r in rows(tmp_path / "judgment.csv")} == {"early", "late"}
    for wrong, message in (
        ([*epochs, "--labels", "a"], "1 names for 3 checkpoints"),
        ([*epochs, epochs[0]], "give distinct --labels"),
        ([epochs[0], "--steps", "65"], "steps must lie in"),
    ):
        assert judge.main([*argv, *wrong]) == 2
        assert message in capsys.readouterr().err
    assert width(tmp_path / "curves.png") > 1000


# ── the original's findings ──────────────────────────────────────────────────────────────────────────────────────


# What a training of the notebook begins with anew, at its width of 768, measured on its own modules at commit
# 73eab5592e45: uniform within ±1/√768 = 0.0361, torch's nn.Linear as it comes (timm: normal, 0.02, biases 0).
FRESH = {
    # parameter group     std of 5 draws     largest absolute value
    "attn.qkv.weight": (0.0208, 0.0361),
    "attn.qkv.bias": (0.0208, 0.0361),
    "attn.proj.weight": (0.0208, 0.0361),
    "attn.proj.bias": (0.0208, 0.0361),
    "head.weight": (0.0208, 0.0361),
    "head.bias": (0.0208, 0.0361),
}


def test_initial_values_are_the_notebooks(tmp_path):
    """Of each parameter group that it makes anew; every other one is the pretrained one."""
    torch.manual_seed(0)
    theirs = timm.create_model("vit_base_patch16_224", depth=1).state_dict()
    save_file(theirs, tmp_path / "vit.safetensors")
    drawn = {name: [] for name in FRESH}
    for _ in range(5):
        kwargs = {"depth": 1, "reinit_attention": True}
        model = create_model("selective_vit_base_patch16_224", kwargs, 10, None)
        initialize(model, StartOptions(weights=str(tmp_path / "vit.safetensors")))
        for name, value in model.state_dict().items():
            group = next((g for g in FRESH if name.endswith(g)), None)
            if group is None:
                assert torch.equal(value, theirs[name]), name
            else:
                drawn[group].append(value.flatten())
    for group, (std, bound) in FRESH.items():
        values = torch.cat(drawn[group])
        few = len(values) < 100
        assert float(values.std()) == pytest.approx(std, rel=0.25 if few else 0.03), group
        assert float(values.abs().max()) <= bound
        assert float(values.abs().max()) > (0.85 if few else 0.995) * bound, group
    dense = create_model("vit_base_patch16_224", {"depth": 1}, 10, None)
    initialize(dense, StartOptions(weights=str(tmp_path / "vit.safetensors")))
    assert 0 < float(dense.state_dict()["head.bias"].abs().max()) < 0.0361, "the plain model's head is new as well"


def test_the_original_lost_its_pretrained_attention():
    lost = findings.lost_weights("vit_tiny_patch16_224")
    assert (lost.names, lost.with_ours, lost.all_in_attention) == (12 * 4, 0, True)
    assert lost.parameters == 12 * (192 * 576 + 576 + 192 * 192 + 192)


@pytest.mark.slow
def test_nearly_all_weights_are_removed_at_the_first_step():
    """With random parts all around. The original's others are pretrained: its own figure is not known."""
    torch.manual_seed(0)
    layers = findings.first_step(timm.create_model("vit_base_patch16_224"), [torch.randn(2, 3, 224, 224)]).layers
    assert [layer.keys for layer in layers.values()] == [197] * 12
    for layer in layers.values():
        assert 0.983 < float(layer.sparsity.mean()) < 0.994
        assert 0.08 < float(layer.empty_rows.mean()) < 0.25


def test_findings_at_the_first_step_of_a_trained_model(runs, capsys, monkeypatch):
    """The attention is exchanged and new; what is around it is the checkpoint's."""
    _, dense, _ = runs
    monkeypatch.setattr(findings, "lost_weights", lambda: findings.Lost(1, 2, 3, True, 0))
    seen = []
    monkeypatch.setattr(
        findings, "first_step", lambda vit, batches: seen.append((vit, first_step(vit, batches))) or seen[0][1]
    )
    argv = ["--checkpoint", str(dense / "best.pth"), "--images", "40", "--device", "cpu"]
    assert findings.main(argv) == 0
    said = capsys.readouterr().out
    assert f"from {dense / 'best.pth'}, epoch" in said
    assert "a uniform weight is 1/65" in said
    trained = torch.load(dense / "best.pth", weights_only=True)["model_state_dict"]
    ((vit, tracker),) = seen
    assert {k for k, v in vit.state_dict().items() if not torch.equal(v, trained[k])} == {
        k for k in trained if ".attn." in k
    }
    assert {layer.rows for layer in tracker.layers.values()} == {40 * 65}
    assert findings.main(["--images", "0"]) == 2
    assert "--images must be at least 1, got 0" in capsys.readouterr().err


def test_captums_map_is_over_channels():
    raw, grid, tokens = findings.captum_shapes()
    assert raw == (1, 1, tokens[2])
    assert grid == (1, 4, 4)
    assert tokens == (1, 17, 48)
