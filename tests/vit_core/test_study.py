"""Studies: every row with every seed, once; interrupted ones go on; a folder holds one study."""

import csv
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

import toy_paper
from vit_core.commands import train as train_command
from vit_core.commands.settings import parse
from vit_core.commands.study import Study, StudyFlags, bars, column, markdown_table, mean_and_spread
from vit_core.errors import UserError
from vit_core.training.trainer import Stopped

FLAGS = ["--device", "cpu", *toy_paper.SMALL, "drop_path_rate=0"]


def study(folder: Path, *, seeds=(0,), epochs="1", rows=("plain", "flipped"), **fields) -> Study:
    shared = parse(toy_paper.RECIPE, ["--epochs", epochs, *FLAGS])
    every = {"plain": shared, "flipped": {**shared, "hflip": 0.5}}
    return Study(recipe=toy_paper.RECIPE, rows={r: every[r] for r in rows}, seeds=seeds, folder=folder, **fields)


def measurements(folder):
    with (folder / "measurements.csv").open() as f:
        return list(csv.DictReader(f))


def test_rows_and_seeds_are_trained_once(tmp_path, monkeypatch):
    trained, train = [], train_command.train
    monkeypatch.setattr(
        train_command, "train", lambda recipe, given, on_step: trained.append(given) or train(recipe, given)
    )
    first = study(tmp_path, rows=("plain",)).run()
    assert [m["row"] for m in first] == ["plain"]
    assert trained[0]["seed"] == 0

    both = study(tmp_path, seeds=(0, 1)).run()
    assert [(m["row"], int(m["seed"])) for m in both] == [("plain", 0), ("flipped", 0), ("plain", 1), ("flipped", 1)]
    assert len(trained) == 4, "what was measured is not trained again"
    assert float(both[0]["acc1"]) == pytest.approx(first[0]["acc1"], rel=1e-5)

    (tmp_path / "measurements.csv").unlink()  # measured again from the checkpoints
    study(tmp_path, seeds=(0, 1)).run()
    assert len(trained) == 4, "nor is a run that was finished"
    again = measurements(tmp_path)
    assert [float(m["acc1"]) for m in again] == pytest.approx([float(m["acc1"]) for m in both], rel=1e-5)
    assert len({m["acc1"] for m in again}) > 1, "rows and seeds differ"


def test_measured_is_the_last_epoch_with_what_the_paper_adds(tmp_path):
    seen = []

    def measure(subject):
        seen.append(subject)
        images = sum(len(targets) for _, targets in subject.loader(limit=40).epoch())
        return {"images": images, "none_here": None}

    (row,) = study(tmp_path, rows=("plain",), epochs="2", measure=measure, measured_by={"limit": 40}).run()
    assert row["images"] == 40
    last = torch.load(study(tmp_path).checkpoint("plain", 0), weights_only=True)
    assert last["epoch"] == 2
    for name, p in seen[0].trained.model.state_dict().items():
        torch.testing.assert_close(p, last["model_state_dict"][name], rtol=0, atol=0)
    with pytest.raises(UserError, match="row plain differs in limit"):
        study(tmp_path, rows=("plain",), epochs="2", measure=measure, measured_by={"limit": 41}).run()


def test_another_study_in_its_folder_is_refused(tmp_path):
    study(tmp_path, rows=("plain",)).run()
    with pytest.raises(UserError, match="contains another study: row plain differs in train"):
        study(tmp_path, rows=("plain",), epochs="2").run()


def test_an_interrupted_study_goes_on(tmp_path, capsys):
    toy_paper.Faults.calls, toy_paper.Faults.at, toy_paper.Faults.what = 0, 8, "SIGTERM"  # in epoch 2
    with pytest.raises(SystemExit, match="143"):
        study(tmp_path, rows=("plain",), epochs="3").run()
    assert "resume with: the same command" in capsys.readouterr().out
    assert not (tmp_path / "measurements.csv").exists()
    toy_paper.Faults.at = -1
    (row,) = study(tmp_path, rows=("plain",), epochs="3").run()
    undisturbed = tmp_path / "undisturbed"
    (other,) = study(undisturbed, rows=("plain",), epochs="3").run()
    assert row["acc1"] == other["acc1"]


def test_a_study_under_torchrun_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start the command without torchrun"):
        study(tmp_path).run()


def test_train_raises_stopped_and_run_says_how_to_go_on(tmp_path):
    toy_paper.Faults.calls, toy_paper.Faults.at, toy_paper.Faults.what = 0, 2, "SIGTERM"
    given = parse(toy_paper.RECIPE, ["--save-dir", str(tmp_path), "--log-dir", str(tmp_path / "l"), *FLAGS])
    with pytest.raises(Stopped) as stopped:
        train_command.train(toy_paper.RECIPE, given)
    assert stopped.value.checkpoint.is_file()


def test_tables_and_bars_show_what_was_measured():
    rows = [{"row": "a", "seed": 0, "acc1": "50"}, {"row": "a", "seed": 1, "acc1": 54.0}, {"row": "b", "seed": 0}]
    assert mean_and_spread(column(rows, "a", "acc1")) == "52.0 ± 2.8"
    assert mean_and_spread(column(rows, "b", "acc1")) == "—"
    assert mean_and_spread([1.25], 2) == "1.25"
    assert markdown_table(["x", "y"], [["1", "2"]]) == "| x | y |\n| --- | --- |\n| 1 | 2 |\n"
    ax = Figure().subplots()
    bars(ax, rows, ["a", "b"], "acc1", "accuracy")
    assert [p.get_width() for p in ax.patches] == [52.0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    assert ax.yaxis_inverted(), "the first row is on top"


@pytest.mark.parametrize("seeds", [(1, 1), (-1,), (2**32,)])
def test_seeds_of_a_study_are_different_random_seeds(seeds):
    with pytest.raises(ValueError, match="--seeds must be different integers"):
        StudyFlags(seeds=seeds)
