"""The scripts: training by variant, the comparison, the analysis of what was learned."""

import csv
import itertools
import math
import re

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.testing import assert_close

from clear_vit import VARIANTS, analyze
from clear_vit.compare import CLAIMED, draw, pairs_in_order, ranked, table
from clear_vit.compare import main as compare
from clear_vit.evaluate import main as evaluate
from clear_vit.plot_logs import main as plot_logs
from clear_vit.recipe import RECIPE
from clear_vit.train import main as train
from vit_core.commands.settings import parse, settle

TINY = ("--device", "cpu", "--batch-size", "256", "--epochs", "1", "--model-kwargs", "depth=2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """variant -> run folder of a short training on the digits."""
    folder = tmp_path_factory.mktemp("runs")

    def run(variant, *flags):
        place = folder / variant
        if not place.exists():
            argv = ["--variant", f"micro_{variant}", "--save-dir", str(place), "--log-dir", str(folder / "l")]
            assert train([*argv, *TINY, *flags]) == 0
        (found,) = place.iterdir()
        return found

    return run


def rows(file):
    with file.open() as f:
        return list(csv.DictReader(f))


def width(picture):
    with Image.open(picture) as image:
        return image.size[0]


# ── training ─────────────────────────────────────────────────────────────────────────────────────────────────────


def settled(*flags):
    return settle(RECIPE, parse(RECIPE, flags), None)


def test_the_imagenet100_preset_is_the_originals_recipe():
    run = settled("--variant", "suppression")
    assert (run.model, run.data.dataset) == ("clear_vit_tiny_suppression", "imagenet100")
    t, a = run.train, run.augment
    assert (t.epochs, t.batch_size, t.optimizer, t.lr, t.weight_decay, t.warmup_steps, t.schedule, t.grad_clip) == (
        90,
        256,
        "adamw",
        1e-4,
        0.05,
        5000,
        "cosine",
        1.0,
    )
    assert (t.mixup, t.cutmix, t.mix_prob, t.mix_switch_prob, t.mix_mode, t.label_smoothing) == (
        0.8,
        1.0,
        1.0,
        0.5,
        "batch",
        0.1,
    )
    assert (a.crop, a.crop_scale_min, a.crop_scale_max, a.hflip, a.erasing) == ("resized", 0.08, 1.0, 0.5, 0.25)
    assert (a.randaugment_ops, a.randaugment_magnitude, len(a.randaugment_names)) == (3, 0.3, 16)
    assert t.eval_freq * 495 == pytest.approx(2500, rel=0.02)
    assert settled("--preset", "imagenet100").model == "clear_vit_tiny_rope_mixed_ape"
    assert settled("--preset", "imagenet100").data.dataset == "imagenet100"
    micro = settled("--variant", "micro_rope", "--preset", "imagenet100", "--dataset", "cifar10")
    assert (micro.train.mixup, micro.data.dataset) == (0.8, "cifar10")


def test_without_arguments_it_is_the_best_variant_on_the_digits():
    run = settled()
    assert (run.model, run.data.dataset, run.augment.hflip) == ("clear_vit_micro_rope_mixed_ape", "digits", 0.0)
    assert settled("--dataset", "imagenet100").model == "clear_vit_tiny_rope_mixed_ape"
    assert settled("--model", "micro_rope").model == settled("--variant", "micro_rope").model


def test_flags_of_the_variants_reach_the_model(trained, capsys):
    run = trained("diff_entropy", "--entropy-source", "pixels")
    settings = torch.load(run / "best.pth", weights_only=True)["config"]
    assert settings["model_kwargs"] == {"depth": 2, "entropy_source": "pixels"}
    assert evaluate(["--checkpoint", str(run / "best.pth"), "--device", "cpu"]) == 0
    assert train(["--variant", "micro_pos_dropout", "--pos-dropout", "1", *TINY]) == 2
    assert "pos_dropout must lie in [0, 1)" in capsys.readouterr().err
    assert train(["--variant", "tiny", *TINY]) == 2
    assert "invalid choice 'tiny'" in capsys.readouterr().err


def test_tiny_trains_under_the_published_recipe(tmp_path):
    """Mixup or cutmix, RandAugment, erasing and RandomResizedCrop together, on images of two classes."""
    for split, name in itertools.product(("train", "val"), ("a", "b")):
        place = tmp_path / "data" / split / name
        place.mkdir(parents=True)
        for i in range(4):
            noise = torch.randint(0, 256, (48, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
            Image.fromarray(noise.numpy()).save(place / f"{i}.png")
    argv = ["--variant", "rope_mixed_ape", "--dataset", "imagefolder", "--data-path", str(tmp_path / "data")]
    argv += ["--img-size", "64", "--model-kwargs", "depth=1", "--epochs", "1", "--batch-size", "4", "--device", "cpu"]
    assert train([*argv, "--save-dir", str(tmp_path / "c"), "--log-dir", str(tmp_path / "l")]) == 0
    (run,) = (tmp_path / "c").iterdir()
    assert math.isfinite(float(rows(run / "metrics.csv")[0]["train_loss"]))


def test_plot_logs(trained, tmp_path, capsys):
    output = ["--output", str(tmp_path / "c.png")]
    assert plot_logs([str(trained("suppression")), *output]) == 0
    assert width(tmp_path / "c.png") > 1000
    for content, message in (
        (b"epoch,val_acc1\nx,1\n", "is damaged"),
        (b"epoch,val_acc1\n1,\xff\n", "is damaged"),
        (b"epoch,lr\n1,2\n", "no epoch has an accuracy"),
    ):
        (tmp_path / "metrics.csv").write_bytes(content)
        assert plot_logs([str(tmp_path), *output]) == 2
        assert message in capsys.readouterr().err


# ── comparison ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_compare_all_seven_and_resume(tmp_path, capsys):
    argv = ["--seeds", "0", "--output-dir", str(tmp_path), "--time-rounds", "1", *TINY[:-1], "depth=1"]
    assert compare([*argv, "--variants", "baseline", "rope"]) == 0
    capsys.readouterr()
    assert compare(argv) == 0
    out = capsys.readouterr().out
    assert "baseline, seed 0" not in out, "it was done"
    assert "suppression, seed 0" in out
    measured = rows(tmp_path / "measurements.csv")
    assert {r["row"] for r in measured} == set(CLAIMED)
    assert all(0 <= float(r["acc1"]) <= float(r["acc5"]) <= 100 for r in measured)
    by = {r["row"]: r for r in measured}
    assert by["diff_entropy"]["gmacs"] == by["baseline"]["gmacs"], "two maps of half the width, one product with V"
    taps = 9 * 4 * 65**2 / 1e9  # a convolution of 4 heads' scores
    assert float(by["suppression"]["gmacs"]) == pytest.approx(float(by["baseline"]["gmacs"]) + taps, rel=1e-4)
    assert int(by["suppression"]["parameters"]) == int(by["baseline"]["parameters"]) + 4 * 9
    assert all(float(r["step_ms"]) > 0 for r in measured)
    assert 0.2 < float(by["baseline"]["step_to_baseline"]) < 5
    assert "Of 21 pairs of variants" in (tmp_path / "table.md").read_text()
    assert width(tmp_path / "comparison.png") > 1500


def test_what_a_comparison_refuses(tmp_path, capsys):
    for argv, message in (
        (["--model", "rope"], "use --variants and --size"),
        (["--time-rounds", "0"], "--time-rounds must be at least 1"),
        (["--seed", "3"], "use --seeds and --output-dir"),
        (["--pos-embed-std", "-1", *TINY], "pos_embed_std must be 0 or more"),
    ):
        assert compare([*argv, "--output-dir", str(tmp_path / "c")]) == 2
        assert message in capsys.readouterr().err


def test_a_damaged_folder_of_a_comparison(tmp_path, capsys):
    for name, content in (
        ("study.json", "[1]"),
        ("study.json", "{"),
        ("study.json", '{"rope": 3}'),
        ("measurements.csv", "a,b\n1,2\n"),
        ("measurements.csv", "row,seed,acc1,acc5\nrope,x,1,2\n"),
        ("measurements.csv", "row,seed,acc1,acc5\nrope,0\n"),
    ):
        place = tmp_path / str(hash(content))
        place.mkdir()
        (place / name).write_text(content)
        assert compare(["--variants", "rope", "--seeds", "0", "--output-dir", str(place), *TINY]) == 2
        assert f"{name} is damaged" in capsys.readouterr().err


def made_up(**accuracies):
    return [
        {
            "row": v,
            "seed": s,
            "acc1": a,
            "acc5": a + 20,
            "parameters": 100,
            "gmacs": 0.1,
            "step_ms": 5,
            "step_to_baseline": 1.0,
        }
        for v, values in accuracies.items()
        for s, a in enumerate(values)
    ]


def test_the_claimed_order_is_counted_by_pairs_that_can_be_told_apart(tmp_path):
    measured = made_up(
        baseline=(50, 52, 54),
        rope=(60, 62.1, 63.9),
        suppression=(51, 52, 54.5),
        pos_dropout=(70, 72, 74.1),
        rope_axial=(1, 2, 3),
    )
    assert ranked(measured) == ["pos_dropout", "rope", "suppression", "baseline", "rope_axial"]
    # Rope is above baseline and suppression as claimed; pos_dropout should be below all three; baseline and suppression
    # differ by less than their interval.
    assert pairs_in_order(measured) == (2, 3, 6)
    assert pairs_in_order([m for m in measured if m["seed"] == 0]) == (0, 0, 6), "one seed has no interval"
    text = table(
        [m | {"seed": str(m["seed"])} if m["row"] == "baseline" else m for m in measured]
    )  # some read, some new
    assert re.search(r"\| rope \| 62\.00 ± 1\.95 \| 82\.00 ± 1\.95 \| \+10\.00 \(\+9\.\d\d … \+10\.\d\d\) \|", text)
    assert "2 differ in the claimed direction and 3 in the opposite direction; 1 do not differ significantly" in text
    draw(measured, tmp_path / "c.png", "title")
    assert width(tmp_path / "c.png") > 1500


def test_the_claims_are_the_seeds():
    assert sorted(CLAIMED, key=lambda v: CLAIMED[v][0]) == list(VARIANTS)[:7]
    assert CLAIMED["rope_mixed_ape"] == (56.805, 83.326)


# ── analysis ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("variant", ["suppression", "rope_mixed_ape", "rope_axial", "diff_entropy"])
def test_analyze(trained, variant, tmp_path, capsys):
    run = trained(variant, *(("--entropy-source", "pixels") if variant == "diff_entropy" else ()))
    argv = ["--checkpoint", str(run / "last.pth"), "--max-images", "20", "--pictures", "1", "--device", "cpu"]
    assert analyze.main([*argv, "--output-dir", str(tmp_path)]) == 0
    maps = (1, 2) if variant == "diff_entropy" else (1,)
    attention = rows(tmp_path / "attention.csv")
    assert [(int(r["block"]), int(r["map"]), int(r["head"])) for r in attention] == [
        (b, m, h) for b in range(2) for m in maps for h in range(4)
    ]
    assert all(0 < float(r["distance_px"]) < 45 and 0 <= float(r["entropy"]) <= 1 for r in attention)
    entropy = rows(tmp_path / "patch_entropy.csv")
    assert [r["source"] for r in entropy] == ["pixels", "tokens, block 0", "tokens, block 1"]
    assert float(entropy[0]["mean"]) == 0, "a digit's pixel is a flat patch"
    assert 0.5 < float(entropy[1]["mean"]) < 1
    for picture in ("attention_distance.png", "attention_entropy.png", "patch_entropy_1.png"):
        assert width(tmp_path / picture) > 300
    kernels, freqs = (tmp_path / f"{name}.csv" for name in ("suppression_kernels", "rope_frequencies"))
    assert kernels.exists() == (variant == "suppression")
    assert freqs.exists() == variant.startswith("rope")
    state = torch.load(run / "last.pth", weights_only=True)["model_state_dict"]
    if kernels.exists():
        assert len(rows(kernels)) == 2 * 4 * 9
        weights = torch.tensor([float(r["weight"]) for r in rows(kernels)]).view(2, 4, 3, 3)
        assert_close(weights[1], state["blocks.1.attn.kernel"], atol=1e-5, rtol=0)
        assert "‖conv(S)‖ is" in capsys.readouterr().out
        assert width(tmp_path / "suppression_kernels.png") > 600
    if variant == "rope_mixed_ape":
        found = torch.tensor([[float(r["frequency_x"]), float(r["frequency_y"])] for r in rows(freqs)])
        assert_close(found.T.view(2, 2, 4, 8), state["rope.freqs"], atol=1e-5, rtol=0)
    if freqs.exists():
        assert width(tmp_path / "rope_frequencies.png") > 500


def test_analyze_images_of_a_folder_and_what_it_refuses(trained, tmp_path, capsys):
    run = trained("suppression")
    noise = torch.randint(0, 256, (20, 30, 3), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(tmp_path / "noise.png")
    argv = ["--checkpoint", str(run / "last.pth"), "--device", "cpu", "--output-dir", str(tmp_path / "a")]
    assert analyze.main([*argv, "--image", str(tmp_path / "noise.png")]) == 0
    assert float(rows(tmp_path / "a" / "patch_entropy.csv")[0]["mean"]) > 0.3
    assert analyze.main([*argv, "--image", str(tmp_path / "nothing")]) == 2
    assert analyze.main([*argv, "--max-images", "0"]) == 2
    assert "must be at least 1" in capsys.readouterr().err


def test_the_part_of_the_convolution_that_joins_no_neighbors():
    """By hand on a grid of 2 × 3: the sequence is class, then two rows of three."""
    S = torch.randn(1, 2, 7, 7)
    kernel = torch.randn(2, 3, 3)
    whole, wrapped = analyze.convolutions(S, kernel, (2, 3))
    assert_close(whole, F.conv2d(S, kernel[:, None], padding=1, groups=2))
    row_of = [None, 0, 0, 0, 1, 1, 1]
    expected = torch.zeros_like(S)
    for i, j, a, b in itertools.product(range(7), range(7), (-1, 0, 1), (-1, 0, 1)):
        if not (0 <= i + a < 7 and 0 <= j + b < 7):
            continue
        neighbors = all(o == 0 or row_of[t] == row_of[t + o] is not None for t, o in ((i, a), (j, b)))
        if not neighbors:
            expected[0, :, i, j] += kernel[:, 1 + a, 1 + b] * S[0, :, i + a, j + b]
    assert_close(wrapped, expected)
