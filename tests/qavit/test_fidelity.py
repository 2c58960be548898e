"""What converted weights cannot show: initial values, the config and its names, recipes, the original's real files.

Recorded from the original's QAViT.py and train.py at commit f8ee6fa (the parent of 61e9659 has the same model).
"""

import dataclasses
import re

import pytest
import timm
import torch

from qavit.config import SIZES, QAViTConfig
from qavit.convert import model_from_original
from qavit.convert_checkpoint import main as convert
from qavit.evaluate import main as evaluate
from qavit.model import QAViT
from qavit.recipe import RECIPE
from qavit.registry import qavit_micro, qavit_small, qavit_tiny
from vit_core.commands.settings import parse, settle

# (parameters of QAViT-Tiny, standard deviation, largest absolute value): the original's qavit_tiny(num_classes=100).
# A bound of None: normal, so only the deviation says something.
INITIAL = [
    (r"pos_embed|global_bank\.global_[kv]", 0.02, None),
    (r"patch_embed\.proj\.(weight|bias)", 0.0208, 0.0361),  # torch's default: uniform, 1 / sqrt(3 * 16 * 16)
    (r"blocks\.\d+\.swa\.linformer\.E_[kv]", 0.133, 0.2305),  # Xavier-uniform, (49, 64)
    (r"blocks\.\d+\.msda\.linformer\.E_[kv]", 0.102, 0.1769),  # Xavier-uniform, (128, 64)
    (r"blocks\.\d+\.ccf_ffn\.dwconv\.(weight|bias)", 0.192, 0.3334),  # torch's default: uniform, 1/3
    (r".*\.fusion_weights|.*norm\w*\.weight", 0.0, 1.0),
    (r".*\.bias", 0.0, 0.0),
    (r".*\.weight", 0.02, None),  # every other Linear
]


def test_each_group_of_parameters_starts_as_in_the_original():
    torch.manual_seed(0)
    groups = [[] for _ in INITIAL]
    for name, parameter in qavit_tiny(num_classes=100).named_parameters():
        place = next(i for i, (pattern, *_) in enumerate(INITIAL) if re.fullmatch(pattern, name))
        groups[place].append(parameter.detach().flatten())
    for (pattern, std, bound), parameters in zip(INITIAL, groups, strict=True):
        values = torch.cat(parameters)
        assert float(values.std()) == pytest.approx(std, rel=0.03, abs=1e-6), pattern
        largest = float(values.abs().max())
        assert largest <= (0.2 if bound is None else bound) + 1e-6, (pattern, largest)


def test_the_branches_start_with_the_originals_strength():
    """Standard deviation of the first block's branches, new model, normal images: SWA 7.7 times, MSDA 6.4 times what a
    deviation of 0.02 in E gives.
    """
    outputs = {}
    for std in (None, 0.02):
        torch.manual_seed(0)
        model = qavit_tiny(depth=1).eval()
        if std is not None:
            for name, parameter in model.named_parameters():
                if ".linformer." in name:
                    torch.nn.init.trunc_normal_(parameter, std=std)
        for branch in ("swa", "msda"):
            model.blocks[0].get_submodule(branch).register_forward_hook(
                lambda module, args, output, key=(branch, std): outputs.update({key: float(output.std())})
            )
        with torch.no_grad():
            model(torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    assert outputs["swa", None] / outputs["swa", 0.02] > 4
    assert outputs["msda", None] / outputs["msda", 0.02] > 4


OTHER = {
    "img_size": 448, "patch_size": 32, "in_channels": 1, "num_classes": 7, "embed_dim": 512, "depth": 1, "num_heads": 2,
    "compress_ratio": 2, "bottleneck_ratio": 4, "mlp_ratio": 1.0, "global_bank_size": 3, "dropout": 0.3,
    "attn_drop": 0.2, "drop_path": 0.4, "window_size": 2, "dilation_factors": (1, 2), "landmark_pooling_stride": 3,
    "num_channel_groups": 4, "linformer_k": 8, "bank_update": "frozen", "init_std": 0.03, "msda_truncate": True,
}  # fmt: skip
NAMES = {
    "in_chans": "in_channels",
    "drop_rate": "dropout",
    "attn_drop_rate": "attn_drop",
    "drop_path_rate": "drop_path",
}


@pytest.mark.parametrize("create", [qavit_tiny, lambda **fields: timm.create_model("qavit_tiny", **fields)])
@pytest.mark.parametrize("name", [*OTHER, *NAMES])
def test_every_field_is_honored(create, name):
    field = NAMES.get(name, name)
    fields = {"depth": 1} | ({"embed_dim": 512} if name == "num_heads" else {}) | {name: OTHER[field]}
    config = create(**fields).config
    assert getattr(config, field) == OTHER[field]
    others = {f.name: f.default for f in dataclasses.fields(QAViTConfig)} | {"depth": 1} | fields
    assert {n: getattr(config, n) for n in others if n not in (field, *NAMES)} == {
        n: v for n, v in others.items() if n not in (field, *NAMES)
    }
    assert config.num_classes == others["num_classes"]


def test_one_channel_is_one_channel():
    model = timm.create_model("qavit_micro", in_channels=1).eval()
    assert model.patch_embed.proj.in_channels == 1
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 100)


def test_what_is_said_twice_or_unknown_is_refused():
    with pytest.raises(ValueError, match="in_channels is given twice, as 1 and as 2"):
        qavit_micro(in_chans=1, in_channels=2)
    assert qavit_micro(in_chans=1, in_channels=1).config.in_channels == 1
    with pytest.raises(TypeError, match="bogus"):
        qavit_micro(bogus=1)


def test_the_defaults_are_the_originals():
    assert QAViTConfig().num_classes == 1000
    assert qavit_tiny(depth=1).num_classes == qavit_small(depth=1).num_classes == 1000


def original_state(model, dwconv=True):
    """Our weights under the original's names: the shared bank under each branch too, the convolution one level down."""
    state = {}
    for name, value in model.state_dict().items():
        state[name.replace(".dwconv.", ".dwconv.dwconv.") if dwconv else name] = value.clone()
        if name.startswith("global_bank."):
            for branch in ("swa", "msda", "cga", "cross_attn"):
                for block in range(len(model.blocks)):
                    state[f"blocks.{block}.{branch}.{name}"] = value.clone()
    return state


# What train.py's checkpoints hold under `config`: its arguments.
ARGUMENTS = {
    "model": "tiny",
    "dataset": "cifar100",
    "data_path": "./data",
    "epochs": 300,
    "batch_size": 128,
    "lr": 5e-4,
    "min_lr": 1e-6,
    "weight_decay": 0.05,
    "warmup_epochs": 10,
    "optimizer": "adamw",
    "amp": True,
    "grad_clip": 1.0,
    "resume": "",
    "save_dir": "./checkpoints",
    "device": "cuda",
}


@pytest.fixture
def small_tiny(monkeypatch):
    """The original's tiny with one block, so that tests are quick."""
    monkeypatch.setitem(SIZES, "tiny", {"depth": 1})
    torch.manual_seed(0)
    return QAViT(QAViTConfig(depth=1, num_classes=100, msda_truncate=True)).eval()


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize(
    "config", [ARGUMENTS, {"depth": 1, "num_classes": 100, "num_windows": None}], ids=["train.py", "QAViTConfig"]
)
def test_the_originals_configs_and_keys_are_taken(small_tiny, config, prefix):
    state = {prefix + k: v for k, v in original_state(small_tiny).items()}
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(model_from_original(state, config)(images), small_tiny(images))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model": "large"}, "model must be tiny or small, as in the original, got 'large'"),
        ({"depth": 1, "width": 3}, "width"),
        ({"depth": 2, "num_classes": 100}, "missing blocks.1"),
    ],
)
def test_configs_that_are_not_the_originals_are_refused(small_tiny, config, says):
    with pytest.raises(ValueError, match=says):
        model_from_original(original_state(small_tiny), config)


def test_a_checkpoint_of_the_original_is_converted_and_evaluated(small_tiny, tmp_path, capsys, monkeypatch):
    theirs, ours = tmp_path / "best.pth", tmp_path / "qavit.pth"
    torch.save(
        {
            "epoch": 3,
            "model_state_dict": original_state(small_tiny),
            "optimizer_state_dict": {"state": {}},
            "scaler_state_dict": {},
            "best_acc1": 12.5,
            "config": ARGUMENTS,
        },
        theirs,
    )
    assert convert(["--checkpoint", str(theirs), "--output", str(ours)]) == 0
    assert "QAViT, tiny, " in capsys.readouterr().out
    written = torch.load(ours, weights_only=True)
    assert written["config"]["num_classes"] == 100
    assert all(torch.equal(v, small_tiny.state_dict()[k]) for k, v in written["model_state_dict"].items())
    bare = tmp_path / "bare.pth"
    torch.save(original_state(small_tiny), bare)
    assert convert(["--checkpoint", str(bare), "--output", str(ours)]) == 2
    assert "give --model tiny or --model small" in capsys.readouterr().err
    assert convert(["--checkpoint", str(bare), "--model", "small", "--output", str(ours)]) == 2
    assert "not a checkpoint of this QAViT" in capsys.readouterr().err
    monkeypatch.undo()
    assert evaluate(["--checkpoint", str(ours), "--data-path", str(tmp_path / "nowhere")]) == 2, "its data is asked for"


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "list", "hostile"])
def test_files_that_are_no_checkpoint_are_one_line(content, tmp_path, capsys):
    file = tmp_path / "x.pth"
    if content == "list":
        torch.save([1, 2], file)
    elif content == "hostile":
        torch.save(qavit_micro, file)
    else:
        file.write_bytes(content)
    assert convert(["--checkpoint", str(file), "--output", str(tmp_path / "y.pth")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "y.pth").exists()


@pytest.mark.parametrize("name", ["qavit_micro", "qavit_tiny", "qavit_small"])
def test_features_only(name):
    model = timm.create_model(name, features_only=True, out_indices=(0, 2), depth=3)
    size = 32 if name == "qavit_micro" else 224
    features = model(torch.randn(1, 3, size, size))
    assert model.feature_info.channels() == [f.shape[1] for f in features]
    assert [size // r for r in model.feature_info.reduction()] == [f.shape[-1] for f in features]


@pytest.mark.slow
def test_one_exported_program_takes_every_batch_size():
    model = timm.create_model("qavit_micro", num_classes=10).eval()
    batch = torch.export.Dim("batch", min=1, max=512)
    program = torch.export.export(model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: batch},)).module()
    for count in (1, 2, 7):
        images = torch.randn(count, 3, 32, 32)
        torch.testing.assert_close(program(images), model(images), rtol=1e-4, atol=1e-5)


# (flags) -> what the README's table or train.py says of the run.
RECIPES = [
    (("--model", "tiny", "--dataset", "cifar100"), (256, 1e-3, 20)),
    (("--model", "small", "--dataset", "cifar100"), (128, 8e-4, 20)),
    (("--model", "tiny", "--dataset", "imagenet"), (512, 1e-3, 30)),
    (("--model", "small", "--dataset", "imagenet"), (256, 8e-4, 30)),
    (("--model", "tiny", "--dataset", "cifar100", "--preset", "stable"), (256, 5e-4, 10)),
]


@pytest.mark.parametrize(("flags", "values"), RECIPES)
def test_the_recipe_is_the_originals(flags, values):
    run = settle(RECIPE, parse(RECIPE, flags), None)
    train, augment = run.train, run.augment
    assert (train.batch_size, train.lr, train.warmup_epochs) == values
    assert (train.epochs, train.weight_decay, train.decay_all, train.min_lr) == (300, 0.05, True, 1e-6)
    assert (train.optimizer, train.beta1, train.beta2, train.label_smoothing) == ("adamw", 0.9, 0.999, 0.1)
    assert (train.grad_clip, train.save_freq, train.amp) == (1.0, 10, "auto")
    border = 4 if "imagenet" in flags else 28
    assert (augment.crop, augment.crop_pad * 224, augment.hflip) == ("pad", pytest.approx(border), 0.5)
    assert augment.color_jitter == (0.1 if "imagenet" in flags else 0.0)
    assert augment.eval_crop_pct == 1.0
