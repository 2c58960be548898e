"""The loader benchmark runs from its command line and writes what it measured."""

import json
from pathlib import Path

import pytest

from vit_core.bench.loader import main, make_folder


def test_measures_three_loaders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "data", count=64, classes=2)
    arguments = ["--data_path", str(tmp_path / "data"), "--img-size", "64", "--batch_size", "8"]
    arguments += ["--rounds", "1", "--seconds", "0.1", "--json", str(tmp_path / "result.json")]
    assert main(arguments) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    speeds = result["images_per_second"]
    assert set(speeds) == {"ours_eval", "ours_train", "baseline"}
    assert result["ratio_eval"] == pytest.approx(speeds["ours_eval"] / speeds["baseline"])
    assert "baseline" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--seconds", "0"], "seconds must be greater than 0"), (["--data-path", "gone"], "gone: no such folder")],
)
def test_bad_arguments_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
