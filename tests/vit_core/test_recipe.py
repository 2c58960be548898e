"""Where a run's values come from: flags, a YAML file, presets."""

import dataclasses

import pytest

import toy_paper
from vit_core.errors import UserError
from vit_core.recipe import settle

RECIPE = toy_paper.RECIPE


def settled(*argv):
    return settle(RECIPE, RECIPE.parse(argv), None)


def test_a_config_file_lies_between_the_preset_and_the_command_line(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "epochs: 7\nlr: 2e-5\nbatch-size: 64\namp: false\nchannels_last: true\noutput_dir: there\n"
        "model_kwargs: {depth: 2, patch_size: 8}\ngrad_clip: null\n"
    )
    given = RECIPE.parse(["--config", str(file), "--epochs", "9"])
    run = settle(RECIPE, given, None)
    t = run.train
    assert (t.epochs, t.lr, t.batch_size, t.amp, t.channels_last) == (9, 2e-5, 64, "off", True)
    assert (t.warmup_epochs, t.grad_clip) == (1, 1.0), "the preset and the default hold where the file says nothing"
    assert run.model_kwargs == {"depth": 2, "patch_size": 8}
    assert given["save_dir"] == "there"


def test_configs_of_the_package_go_by_name(tmp_path):
    (tmp_path / "short.yaml").write_text("epochs: 2\n")
    recipe = dataclasses.replace(RECIPE, configs=tmp_path)
    assert recipe.parse(["--config", "short"])["epochs"] == 2
    with pytest.raises(UserError, match=r"--config long: no such file, nor a shipped one of that name \(short\)"):
        recipe.parse(["--config", "long"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3\n", "epoch is no flag of toy-train"),
        ("- epochs\n", "needs lines of the form 'flag: value'"),
        ("epochs: [3\n", "not YAML"),
        ("!!python/object/apply:os.system ['true']\n", "not YAML"),
    ],
)
def test_config_files_that_are_none(tmp_path, text, message):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        RECIPE.parse(["--config", str(file)])


def test_original_names_of_flags():
    assert RECIPE.parse(["--output_dir", "there"])["save_dir"] == "there"
    assert settled("--model", "other").model == "test_vit2"
