"""Where a run's values come from: flags, a YAML file, presets."""

import dataclasses

import pytest

import toy_paper
from vit_core.commands.settings import parse, settle
from vit_core.errors import UserError
from vit_core.flags import flag

RECIPE = toy_paper.RECIPE


def settled(*argv):
    return settle(RECIPE, parse(RECIPE, argv), None)


def test_a_config_file_lies_between_the_preset_and_the_command_line(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "epochs: 7\nlr: 2e-5\nbatch-size: 64\namp: false\nchannels_last: true\noutput_dir: there\n"
        "model_kwargs: {depth: 2, patch_size: 8}\ngrad_clip: null\n"
    )
    given = parse(RECIPE, ["--config", str(file), "--epochs", "9"])
    run = settle(RECIPE, given, None)
    t = run.train
    assert (t.epochs, t.lr, t.batch_size, t.amp, t.channels_last) == (9, 2e-5, 64, "off", True)
    assert (t.warmup_epochs, t.grad_clip) == (1, 1.0), "the preset and the default hold where the file says nothing"
    assert run.model_kwargs == {"depth": 2, "patch_size": 8}
    assert given["save_dir"] == "there"


def test_model_arguments_of_the_file_and_of_the_command_line_are_joined(tmp_path):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Options:
        drop_rate: float | None = flag(None, "dropout")

    recipe = dataclasses.replace(RECIPE, options=Options)
    file = tmp_path / "run.yaml"
    file.write_text("drop_rate: 0.1\nmodel_kwargs: {depth: 2, patch_size: 8, eps: 1.0e-7, name: '1', none: null}\n")

    def kwargs(*argv):
        return settle(recipe, parse(recipe, ["--config", str(file), *argv]), None).model_kwargs

    filed = {"depth": 2, "patch_size": 8, "eps": 1e-7, "name": "1", "none": None}
    assert kwargs() == {**filed, "drop_rate": 0.1}
    assert kwargs("--model-kwargs", "depth=3", "eps=1e-6") == {**filed, "depth": 3, "eps": 1e-6, "drop_rate": 0.1}
    assert kwargs("--drop-rate", "0.2") == {**filed, "drop_rate": 0.2}
    assert kwargs("--model-kwargs", "drop_rate=0.3") == {**filed, "drop_rate": 0.3}


def test_a_preset_may_set_arguments_of_the_model():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Options:
        drop_rate: float | None = flag(None, "dropout")

    presets = lambda given: {**toy_paper.presets(given), "drop_rate": 0.1}  # noqa: E731
    recipe = dataclasses.replace(RECIPE, options=Options, presets=presets)

    def rate(*argv):
        return settle(recipe, parse(recipe, argv), None).model_kwargs["drop_rate"]

    assert rate() == 0.1
    assert rate("--drop-rate", "0.2") == 0.2
    assert rate("--model-kwargs", "drop_rate=0.3") == 0.3


def test_configs_of_the_package_go_by_name(tmp_path):
    (tmp_path / "short.yaml").write_text("epochs: 2\n")
    recipe = dataclasses.replace(RECIPE, configs=tmp_path)
    assert parse(recipe, ["--config", "short"])["epochs"] == 2
    with pytest.raises(UserError, match=r"--config long: no such file; the built-in configs are: short"):
        parse(recipe, ["--config", "long"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3\n", "epoch is not a flag"),
        ("epochs: 7.5\n", "--config .*run.yaml: epochs: Input should be a valid integer, got 7.5"),
        ("early_stopping: false\n", "--config .*run.yaml: early_stopping: Input should be a valid integer, got False"),
        (
            "crop: square\n",
            "crop: Input should be 'none', 'random', 'pad' or 'resized', got 'square'",
        ),
        ("model_kwargs: {checkpoint_path: evil.pth}\n", "model-kwargs checkpoint_path is not allowed"),
        ("data_path: 2020-13-45\n", "not valid YAML"),
        ("- epochs\n", "expected lines of the form 'flag: value'"),
        ("epochs: [3\n", "not valid YAML"),
        ("!!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_config_files_that_are_none(tmp_path, text, message):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        parse(RECIPE, ["--config", str(file)])


def test_original_names_of_flags():
    names = {
        "output_dir": "save_dir",
        "num_epochs": "epochs",
        "use_amp": "amp",
        "crop_mode": "crop",
        "nhwc": "channels_last",
    }
    recipe = dataclasses.replace(RECIPE, aliases=names)
    argv = ["--output_dir", "there", "--num-epochs", "5", "--use-amp", "--crop-mode", "pad", "--nhwc"]
    given = {"save_dir": "there", "epochs": 5, "amp": "auto", "crop": "pad", "channels_last": True}
    assert parse(recipe, argv) == given
    with pytest.raises(UserError, match="invalid choice 'square'"):
        parse(recipe, ["--crop-mode", "square"])
    assert settled("--model", "other").model == "test_vit2"


def test_the_help_shows_the_defaults_that_follow_from_other_flags(capsys):
    def presets(given):
        return {**toy_paper.presets(given), "lr": 0.5 if given.get("model") == "other" else 0.25}

    def help_of(*argv):
        with pytest.raises(SystemExit, match="0"):
            parse(dataclasses.replace(RECIPE, presets=presets), ["--help", *argv])
        return capsys.readouterr().out

    assert "peak learning rate (default: 0.25)" in help_of()
    assert "peak learning rate (default: 0.5)" in help_of("--model", "other")
