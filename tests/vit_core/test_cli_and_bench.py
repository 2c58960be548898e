"""Flags made from dataclasses, the `command` wrapper, and the model benchmark."""

import errno
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from vit_core.bench import pair as bench
from vit_core.errors import UserError
from vit_core.flags import REQUIRED, checked, command, flag, given, parse


@dataclass(kw_only=True, frozen=True)
class Config:
    """Count 100% of the images."""

    checkpoint: str = flag(REQUIRED, "what to load", aliases=("model_path",))
    runs: tuple[Path, ...] = flag((), "run folders", positional=True)
    batch_size: int = flag(8, "images per step")
    rate: float | None = flag(None, "100% optional")
    mirror: bool = flag(True, "mirror images")
    amp: str = flag("auto", "precision", choices=("auto", "bf16", "off"), bare="auto")
    seeds: tuple[int, ...] = flag((0, 1), "random seeds")
    maps: tuple[str, ...] = flag((), "maps", choices=("a", "b"))
    paper: tuple[str, ...] = flag((), "papers", repeat=True)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError("--batch-size must be at least 1")


def only_given(*argv):
    return given({"flags": Config}, argv, "test", "")


def parsed(*argv):
    return parse(Config, ["--checkpoint", "x", *argv], "test")


def test_only_given_flags_are_returned():
    assert only_given("--checkpoint", "x") == {"checkpoint": "x"}
    words = ("--model_path=x", "--batch_size", "4", "--rate=0.5", "--no-mirror", "--seeds", "-1", "2")
    assert only_given(*words) == {
        "checkpoint": "x",
        "batch_size": 4,
        "rate": 0.5,
        "mirror": False,
        "seeds": (-1, 2),
    }


def test_flags_that_are_not_given_have_their_defaults():
    assert parsed() == Config(checkpoint="x")
    assert parsed("--mirror", "--maps", "b", "a").maps == ("b", "a")


def test_a_flag_with_an_optional_value():
    words = (["--amp"], ["--amp", "--mirror"], ["--amp", "bf16"], ["--amp=off"], ["--no-amp"], ["--no_amp"])
    assert [parsed(*w).amp for w in words] == ["auto", "auto", "bf16", "off", "off", "off"]


def test_a_repeated_flag_takes_one_value_at_a_time():
    config = parsed("--paper", "a", "--paper=b", "there", "here")
    assert (config.paper, config.runs) == (("a", "b"), (Path("there"), Path("here")))
    with pytest.raises(UserError, match="Missing value for argument '--batch-size'"):
        parsed("--batch-size", "--paper", "a", "3")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--checkpoint is required (see test --help)"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--batch-size", "1.5"], "Error parsing --batch-size: invalid literal for int()"),
        (["--batch", "4"], "Unrecognized options: --batch"),
        (["--batch-size"], "Missing value for argument '--batch-size'"),
        (["--amp", "fp8"], "invalid choice 'fp8' for argument '--amp'"),
        (["--maps", "a", "c"], "--maps"),
        (["--seeds"], "--seeds: expected at least one value"),
        (["--paper"], "Missing value for argument '--paper'"),
        (["--rate", "None"], "Error parsing --rate"),
        (["--mirror=false"], "--mirror takes no value: give --mirror or --no-mirror"),
    ],
)
def test_wrong_flags_are_user_errors_of_one_line(argv, message):
    with pytest.raises(UserError) as error:
        parse(Config, ["--checkpoint", "x", *argv] if argv else [], "test")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_checks_that_a_flag_asks_for(tmp_path, monkeypatch):
    @dataclass(kw_only=True, frozen=True)
    class Checked:
        count: int | None = flag(None, "a number", least=1)
        picture: Path = flag(Path("a.png"), "a file", output=True)

    monkeypatch.chdir(tmp_path)
    assert parse(Checked, [], "test") == Checked()
    assert parse(Checked, ["--count", "1"], "test").count == 1
    with pytest.raises(UserError, match=r"--count must be at least 1, got 0"):
        parse(Checked, ["--count", "0"], "test")
    with pytest.raises(UserError, match=r"nowhere is not a folder"):
        parse(Checked, ["--picture", "nowhere/a.png"], "test")
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UserError, match=r"a.png is a folder, not a file"):
        parse(Checked, [], "test")


def test_the_help_names_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse(Config, ["--help"], "test")
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Count 100% of the images." in out
    for text in (
        "images per step (default: 8)",
        "100% optional",
        "what to load (required)",
        "(default: auto; alone: auto)",
        "random seeds (default: 0 1)",
        "--model-path",
    ):
        assert text in out, text


def test_values_of_a_file_are_checked_as_they_are():
    values = {"batch-size": 4, "rate": 1, "mirror": False, "amp": False, "seeds": None, "model_path": "x"}
    found = checked({"flags": Config}, values)
    assert found == {"batch_size": 4, "rate": 1, "mirror": False, "amp": "off", "checkpoint": "x"}
    for wrong in ({"batch_size": "4"}, {"batch_size": True}, {"mirror": 1}, {"amp": "fp8"}, {"amp": 3}, {"no_flag": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            checked({"flags": Config}, wrong)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("two\nlines"), 2, "error: two lines\n"),
        (OSError(errno.ENOSPC, "x", "a.pth"), 2, "error: a.pth: the disk is full"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_command_turns_errors_into_one_line(capsys, error, code, said):
    @command
    def main(argv=None):
        raise error

    assert main([]) == code
    assert capsys.readouterr().err.startswith(said)


def test_command_hides_no_bug():
    @command
    def main(argv=None):
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        main([])


@pytest.mark.slow
def test_bench_counts_and_times_two_models(tmp_path, capsys):
    report = tmp_path / "bench.json"
    argv = [
        "--model",
        "test_vit",
        "--model-kwargs",
        "img_size=64",
        "--against",
        "test_vit",
        "--against-kwargs",
        "img_size=64",
        "--batch-size",
        "2",
        "--rounds",
        "2",
        "--device",
        "cpu",
        "--json",
        str(report),
    ]
    assert bench.main(argv) == 0
    record = json.loads(report.read_text())
    assert record["ratios"]["gmacs"] == record["ratios"]["parameters"] == 1.0
    assert all(
        f["training_ms"] > 0 and f["inference_ms"] > 0 and f["training_memory_mib"] > 0 for f in record["figures"]
    )
    assert "training, ms/image" in capsys.readouterr().out
    assert bench.main(["--model", "no_such_model"]) == 2


def test_multiply_adds_include_attention():
    import torch

    from vit_core.training.precision import choose_precision

    cpu = torch.device("cpu")
    contestant = bench.Contestant("vit_tiny_patch16_224", {"num_classes": 1000}, 1, cpu, choose_precision("off", cpu))
    tokens, d, layers = 197, 192, 12
    by_hand = 196 * 768 * d + layers * (tokens * d * 12 * d + 2 * tokens * tokens * d) + d * 1000
    assert contestant.gmacs() == pytest.approx(by_hand / 1e9, rel=1e-6)
