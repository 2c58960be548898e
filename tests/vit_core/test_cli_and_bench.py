"""Flags made from dataclasses, the `command` wrapper, and the model benchmark."""

import errno
import json
from dataclasses import dataclass

import pytest

from vit_core.bench import pair as bench
from vit_core.errors import UserError
from vit_core.flags import ArgumentParser, add_flags, build, command, flag


@dataclass(kw_only=True, frozen=True)
class Config:
    batch_size: int = flag(8, "images per step")
    rate: float | None = flag(None, "100% optional")
    mirror: bool = flag(True, "mirror images")
    amp: str = flag("auto", "precision", choices=("auto", "bf16", "off"), bare="auto")

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError("--batch-size must be at least 1")


def parse(*argv):
    parser = ArgumentParser(prog="test")
    add_flags(parser, Config, "flags")
    return vars(parser.parse_args(list(argv)))


def test_only_given_flags_are_in_the_namespace():
    assert parse() == {}
    assert parse("--batch_size", "4", "--rate=0.5", "--no-mirror") == {
        "batch_size": 4,
        "rate": 0.5,
        "mirror": False,
    }


def test_a_flag_with_an_optional_value():
    assert [parse(*a)["amp"] for a in (["--amp"], ["--amp", "bf16"], ["--no-amp"])] == ["auto", "bf16", "off"]


def test_help_shows_defaults_and_percent_signs(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse("--help")
    out = capsys.readouterr().out
    assert "images per step (default: 8)" in out
    assert "100% optional" in out


def test_value_errors_of_a_config_are_user_errors():
    with pytest.raises(UserError, match="at least 1"):
        build(Config, {"batch_size": 0, "unknown": 1})


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
