"""`reproduce` with a toy paper: resume, failures, exit codes, flags. The real papers are in tests/workspace."""

import csv
import dataclasses
import io
import json
import os
import re
import signal

import pytest
from matplotlib.figure import Figure
from PIL import Image

import toy_paper
from vit_core.bench.pair import Figures as BenchFigures
from vit_core.files import locked
from vit_core.ledger.claims import Claim, Outcome, Setting
from vit_core.ledger.verdicts import judge
from vit_core.models.create import parse_model_kwargs
from vit_core.papers import Analysis, Benchmark, Paper, Picture, Table, Training, load_papers
from vit_core.papers import Figure as PaperFigure
from vit_core.reproduce import bench, command, comparison, plan, run, steps
from vit_core.reproduce.progress import Display, Part, clock
from vit_core.reproduce.steps import Options, studies
from vit_core.training.trainer import Stopped

CLAIMS = """
settings: {far: {what: many epochs, counts: the recipe}}
groups:
- source: Table 1
  kind: size
  cost: instant
  parity: tests/toy.py
  entries:
  - {id: toy-one, statement: One is one., claimed: 1, check: one}
  - {id: toy-two, statement: Two is one., claimed: 1, check: two}
- source: Table 2
  kind: result
  setting: far
  entries:
  - {id: toy-far, statement: Much., claimed: 99.0, cost: gpu-hours, check: train it, command: toy-train}
"""


def analyze(subjects, measurements, folder):
    figure = Figure(figsize=(1, 1))
    figure.savefig(folder / "p.png")
    accuracy = max(float(m["acc1"]) for m in measurements)
    return Analysis(
        findings=[f"{', '.join(subjects)} reached {accuracy:.1f}%"],
        pictures=[Picture("p.png", "a picture", "of what")],
        tables=[Table("a table", "of numbers", ["name", "value"], [["x", 1.5], ["y", float("nan")]])],
    )


def small(model="toy"):
    return {"model": model, "model_kwargs": parse_model_kwargs(toy_paper.SMALL[1:]), "epochs": 1}


@pytest.fixture
def papers(tmp_path, monkeypatch):
    """Two papers that are found as installed ones are."""
    file = tmp_path / "claims.yaml"
    file.write_text(CLAIMS)
    monkeypatch.setattr(Paper, "claims_file", file)
    rows = {"first": small(), "second": small()}
    toy = Paper(
        package="toy",
        title="Toy: a paper",
        idea="It is small.",
        source="here",
        citation="@misc{toy}",
        model="test_vit",
        micro=[Training(name="digits", recipe=toy_paper.RECIPE, rows=rows, compared=["first"], seconds=1)],
        published=[
            Training(
                name="CIFAR-10",
                recipe=toy_paper.RECIPE,
                rows={"first": small() | {"dataset": "cifar10"}},
                images=100,
                download_gb=0.17,
                disk_gb=0.3,
            )
        ],
        analyze=analyze,
        checks={"one": lambda: 1, "two": lambda: 2},
    )
    installed = Installed({"toy": toy, "zoo": dataclasses.replace(toy, title="Zoo: another")})
    monkeypatch.setattr(comparison, "ROUNDS", 1)
    monkeypatch.setattr(comparison, "IMAGES", 8)
    monkeypatch.setattr(command, "load_papers", lambda: (dict(installed.found), dict(installed.broken)))
    monkeypatch.chdir(tmp_path)
    return installed


class Installed:
    """What `load_papers` gives: papers by name, and what kept others from loading."""

    def __init__(self, found):
        self.found, self.broken = found, {}

    def replace(self, name, **changes):
        self.found[name] = dataclasses.replace(self.found[name], **changes)


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def only_run(tmp_path):
    (folder,) = (tmp_path / "runs" / "reproduce").iterdir()
    return folder


def states(results):
    return {p["name"]: {s["name"]: s["state"] for s in p["steps"]} for p in results["papers"]}


def test_everything_is_done_and_written(papers, tmp_path, capsys):
    assert command.main([]) == 0
    folder = only_run(tmp_path)
    results = results_of(folder)
    assert states(results) == {
        name: dict.fromkeys(("train", "evaluate", "analyze", "claims"), "done") for name in ("toy", "zoo")
    }
    assert results["finished"]
    toy = results["papers"][0]
    (training,) = toy["trainings"]
    assert [r["label"] for r in training["rows"]] == ["first", "second"]
    seed = training["rows"][0]["seeds"][0]
    assert seed["epochs"] == 1
    assert 0 < seed["acc1"] == pytest.approx(seed["curve"][-1]["val_acc1"], abs=1e-3)
    assert training["rows"][0]["command"].startswith("uv run toy-train --model toy --model-kwargs patch_size=8")
    assert toy["analysis"]["findings"] == [f"first, second reached {max(_accuracies(training)):.1f}%"]
    assert toy["analysis"]["pictures"][0]["file"] == "toy/pictures/p.png"
    assert toy["analysis"]["tables"][0]["rows"] == [["x", 1.5], ["y", None]], "JSON has no NaN"
    assert [(c["id"], c["verdict"]) for c in toy["claims"]] == [
        ("toy-one", "holds"),
        ("toy-two", "fails"),
        ("toy-far", "not run"),
    ]
    assert len(results["comparison"]["rows"]) == 2
    with (folder / "claims.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert [(r["paper"], r["id"], r["claimed"], r["measured"], r["verdict"]) for r in rows[:2]] == [
        ("toy", "toy-one", "1", "1", "holds"),
        ("toy", "toy-two", "1", "2", "fails"),
    ]
    page = (folder / "index.html").read_text()
    assert "Toy: a paper" in page
    assert "data:image/png;base64," in page
    out, err = capsys.readouterr()
    assert re.search(r"\[1/9\] Toy: training, \d+ s\..*\[\d\d:\d\d left\]", err), err
    assert err.count("\n") == 9, "a line a step where there is no terminal"
    assert f"report: {folder.relative_to(tmp_path)}/index.html" in out
    assert "epoch 1/1" in (folder / "log.txt").read_text(), "what the steps print goes to the log"
    assert not list(folder.rglob(".*")), "no temporary file is left"


def _accuracies(training):
    return [row["seeds"][0]["acc1"] for row in training["rows"]]


def test_one_paper_that_fails_does_not_stop_the_others(papers, tmp_path, capsys):
    def fail(*_):
        raise ValueError("nothing to see")

    papers.replace("toy", analyze=fail)
    papers.broken["odd"] = ImportError("no module")
    assert command.main([]) == 1
    results = results_of(only_run(tmp_path))
    assert states(results)["toy"] == {"train": "done", "evaluate": "done", "analyze": "failed", "claims": "done"}
    assert set(states(results)["zoo"].values()) == {"done"}
    assert results["papers"][0]["steps"][2]["error"] == "ValueError: nothing to see"
    assert results["broken"] == {"odd": "ImportError: no module"}
    assert "nothing to see" in (only_run(tmp_path) / "log.txt").read_text(), "the traceback is in the log"
    assert "odd could not be loaded" in capsys.readouterr().err

    assert command.main(["--resume"]) == 1, "nothing is mended yet"
    assert "odd" in results_of(only_run(tmp_path))["broken"]
    capsys.readouterr()
    papers.replace("toy", analyze=analyze)  # mended: --resume does what failed, and that alone
    papers.found["odd"] = papers.found["zoo"]
    papers.broken.clear()
    assert command.main(["--resume"]) == 0
    results = results_of(only_run(tmp_path))
    assert all(set(steps.values()) == {"done"} for steps in states(results).values())
    assert [row[1] for row in results["comparison"]["rows"]] == ["first"] * 3, "the comparison is made anew"
    assert capsys.readouterr().err.count("\n") == 1 + 4 + 1, "the analysis, four steps of the paper, the comparison"


def test_a_failed_training_is_said_and_the_claims_are_judged_all_the_same(papers, tmp_path):
    papers.replace(
        "toy",
        micro=[
            dataclasses.replace(
                papers.found["toy"].micro[0],
                rows={"first": small() | {"dataset": "imagefolder", "data_path": "nowhere"}},
            )
        ],
    )
    assert command.main(["--paper", "toy"]) == 1
    steps = {s["name"]: s for s in results_of(only_run(tmp_path))["papers"][0]["steps"]}
    assert "nowhere" in steps["train"]["error"]
    assert "contains no run" in steps["evaluate"]["error"]
    assert steps["claims"]["state"] == "done"


def test_a_training_without_its_images_does_not_stop_the_papers_others(papers, tmp_path, monkeypatch):
    (tmp_path / "claims.yaml").write_text(
        CLAIMS.replace(
            "command: toy-train", "command: toy-train, outcomes: [{training: far, row: first, column: acc1}]"
        )
    )
    good = papers.found["toy"].micro[0]
    images = tmp_path / "images"
    far = dataclasses.replace(
        good, name="far", rows={"first": small() | {"dataset": "imagefolder", "data_path": str(images)}}
    )
    papers.replace("toy", published=[far, good])
    monkeypatch.setattr(plan, "time_step", lambda *_: (0.5, 1))
    assert command.main(["--preset", "paper", "--paper", "toy", "--seeds", "0"]) == 1
    (paper,) = results_of(only_run(tmp_path))["papers"]
    assert [t["name"] for t in paper["trainings"]] == ["digits"], "what could be trained is evaluated"
    assert states(results_of(only_run(tmp_path)))["toy"]["train"] == "failed"
    assert paper["claims"][2]["verdict"] == "not run"
    for split in ("train", "val"):
        for label in ("a", "b"):
            (images / split / label).mkdir(parents=True)
            for i in range(300 if split == "train" else 4):
                Image.new("RGB", (32, 32), (i % 200, 0, 0)).save(images / split / label / f"{i}.png")
    assert command.main(["--resume"]) == 0, (only_run(tmp_path) / "log.txt").read_text()[-2000:]
    (paper,) = results_of(only_run(tmp_path))["papers"]
    assert [t["name"] for t in paper["trainings"]] == ["far", "digits"]
    claim = paper["claims"][2]
    assert claim["verdict"] == "undecided", "the claim about it is judged anew; of one seed there is no interval"
    config = json.loads(next((only_run(tmp_path) / "toy" / "far").glob("runs/*/*/config.json")).read_text())
    assert claim["measured"]["commit"] == config["environment"]["git_commit"], "of the training, not of the claims step"


def test_damaged_steps_and_checkpoints_are_done_again(papers, tmp_path):
    assert command.main(["--paper", "toy"]) == 0
    folder = only_run(tmp_path)
    (folder / "toy" / "claims.json").write_text("")
    (folder / "toy" / "analyze.json").write_text("{}")
    next(folder.glob("toy/digits/runs/first_seed42/*/last.pth")).write_bytes(b"PK")
    assert command.main(["--resume"]) == 1, "the analysis meets the damaged checkpoint"
    damaged = next(folder.glob("toy/digits/runs/first_seed42/*/last.pth"))
    damaged.unlink()
    assert command.main(["--resume"]) == 0
    assert set(states(results_of(folder))["toy"].values()) == {"done"}


def test_a_step_that_exits_is_a_failure_and_no_interruption(papers, tmp_path):
    def leave(*_):
        raise SystemExit("usage")

    papers.replace("toy", analyze=leave)
    assert command.main([]) == 1
    results = results_of(only_run(tmp_path))
    assert states(results)["toy"]["analyze"] == "failed"
    assert set(states(results)["zoo"].values()) == {"done"}


def test_sigterm_outside_a_training_ends_in_a_line_that_says_how_to_go_on(papers, tmp_path, capsys):
    papers.replace("toy", analyze=lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert command.main(["--paper", "toy"]) == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert "resume with: reproduce --resume" in capsys.readouterr().out
    assert results_of(only_run(tmp_path))["state"] == "interrupted"
    papers.replace("toy", analyze=analyze)
    assert command.main(["--resume", "--device", "cpu"]) == 0
    assert results_of(only_run(tmp_path))["state"] == "finished"


def test_two_processes_in_one_folder_are_refused(papers, tmp_path, capsys):
    assert command.main(["train", "--paper", "toy"]) == 0
    with locked(only_run(tmp_path)):
        assert command.main(["--resume"]) == 2
    assert "in use by another process" in capsys.readouterr().err


def test_interrupted_it_goes_on_where_it_was(papers, tmp_path, monkeypatch, capsys):
    whole = tmp_path / "whole"
    assert command.main(["--paper", "toy", "--output-dir", str(whole)]) == 0
    trained = []
    real = run.steps.Study.train  # of the first row only: then Ctrl-C

    def interrupted(study):
        if not trained:
            trained.append(study)
            with study._begin():
                study._train("first", 42)
                raise SystemExit(130)
        real(study)

    monkeypatch.setattr(run.steps.Study, "train", interrupted)
    assert command.main(["--paper", "toy"]) == 130
    folder = only_run(tmp_path)
    assert f"resume with: reproduce --resume {folder.relative_to(tmp_path)}" in capsys.readouterr().out
    results = results_of(folder)
    assert set(states(results)["toy"].values()) == {"pending"}
    assert results["finished"] is None
    assert (folder / "index.html").is_file(), "the page shows what there is"
    first = next(folder.glob("toy/digits/runs/first_seed42/*/last.pth"))
    before = first.stat().st_mtime_ns
    assert command.main(["--resume", str(folder)]) == 0
    assert first.stat().st_mtime_ns == before, "what was trained is not trained again"
    (other,) = whole.iterdir()
    assert _accuracies(results_of(folder)["papers"][0]["trainings"][0]) == _accuracies(
        results_of(other)["papers"][0]["trainings"][0]
    )
    assert results_of(folder)["seconds"] > results["seconds"] > 0, "the time of both"


def test_stopped_by_a_signal_in_the_training(papers, tmp_path, monkeypatch):
    monkeypatch.setattr(toy_paper.Faults, "calls", 0)
    monkeypatch.setattr(toy_paper.Faults, "at", 3)
    monkeypatch.setattr(toy_paper.Faults, "what", "SIGTERM")
    assert command.main(["--paper", "toy"]) == 128 + 15
    monkeypatch.setattr(toy_paper.Faults, "at", -1)
    assert command.main(["--resume"]) == 0
    assert Stopped.__name__ not in (only_run(tmp_path) / "log.txt").read_text()


def test_parts(papers, tmp_path, capsys):
    assert command.main(["train", "--paper", "toy", "--seeds", "0", "1"]) == 0
    folder = only_run(tmp_path)
    assert states(results_of(folder)) == {"toy": {"train": "done"}}
    assert command.main(["evaluate"]) == 0
    row = results_of(folder)["papers"][0]["trainings"][0]["rows"][0]
    assert [s["seed"] for s in row["seeds"]] == [0, 1]
    capsys.readouterr()
    assert command.main(["evaluate", "--paper", "toy", "--dataset", "digits", "--device", "cpu"]) == 0
    elsewhere = json.loads((folder / "evaluation_digits.json").read_text())["rows"]
    assert sorted((r["row"], r["seed"], r["num_images"]) for r in elsewhere) == [
        ("first", 0, 360), ("first", 1, 360), ("second", 0, 360), ("second", 1, 360)
    ]  # fmt: skip
    assert elsewhere[0]["acc1"] == pytest.approx(row["seeds"][0]["acc1"], abs=1e-3)
    assert "first, seed 0: top-1" in capsys.readouterr().out
    assert command.main(["evaluate", "--dataset", "fake"]) == 2
    assert "was trained with 10 classes; the dataset fake has 100" in capsys.readouterr().err
    assert command.main(["report", str(folder)]) == 0
    assert set(states(results_of(folder))["toy"].values()) == {"done"}
    capsys.readouterr()
    assert command.main(["list"]) == 0
    out = capsys.readouterr().out
    assert "toy\n    Toy: a paper\n    models: test_vit, test_vit2" in out
    assert "3 claims: 2 instant, 0 cpu-minutes, 0 gpu-minutes, 1 gpu-hours, 0 impossible" in out


def test_claims_are_printed_and_written(papers, tmp_path, capsys):
    assert command.main(["claims", "--paper", "zoo", "--json", "c.json"]) == 0
    out = capsys.readouterr().out
    assert "3 claims: 1 holds, 1 fails, 1 not run" in out
    assert re.search(r"fails +Two is one\. \[1\]; measured: 2", out)
    assert len(json.loads((tmp_path / "c.json").read_text())["papers"]["zoo"]) == 3
    assert command.main(["claims", "--verdict", "fails"]) == 0
    out = capsys.readouterr().out
    assert "Two is one" in out
    assert "One is one" not in out
    papers.replace("zoo", checks={"one": lambda: 1})  # a check that is gone
    assert command.main(["claims"]) == 1


def test_bench_judges_the_targets_on_a_cpu_and_nowhere_else(papers, tmp_path, capsys, monkeypatch):
    def compare(pair, batch_size, device, amp, rounds):
        figures = [BenchFigures(name, 100, 1.0, 2.0, 4.0, 50.0) for name, _ in pair]
        return figures, {"inference_ms": 1.04, "training_ms": 1.3, "gmacs": 1.0, "parameters": 1.0,
                         "training_memory_mib": float("nan")}  # fmt: skip

    monkeypatch.setattr(bench, "compare", compare)
    papers.replace(
        "toy",
        benchmarks=[Benchmark(model="test_vit", against="test_vit2", inference=1.05, training=1.25)],
        further_benchmarks=lambda device, rounds: [
            PaperFigure("share", 0.96, 0.95, at_least=True),
            PaperFigure("layer", 1.2, 1.15),
        ],
    )
    assert command.main(["bench", "--paper", "toy", "--rounds", "2", "--device", "cpu", "--json", "b.json"]) == 0
    out = capsys.readouterr().out
    assert "1.040× (≤ 1.05: met)" in out
    assert "1.300× (≤ 1.25: missed)" in out
    assert "share: 0.960 (≥ 0.95: met)" in out
    assert "layer: 1.200 (≤ 1.15: missed)" in out
    assert "2 of 4 targets met" in out
    record = json.loads((tmp_path / "b.json").read_text())
    assert record["rows"][0]["targets"]["training_ms"] == {"target": 1.25, "met": False}
    assert record["rows"][0]["ratios"]["training_memory_mib"] is None
    assert record["environment"]["git_commit"]
    assert command.main(["bench", "--paper", "toy", "--device", "cpu", "--amp", "bf16"]) == 0
    assert "targets met" not in capsys.readouterr().out, "targets are for a CPU without AMP"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--paper", "no"], "the installed papers are toy, zoo"),
        (["everything"], "choose from list, train, evaluate, claims, bench, report"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--seeds", "1", "1"], "--seeds must be different"),
        (["--seeds", "-1"], "different integers from 0 to"),
        (["--dataset", "nosuch"], "nosuch"),
        (["--data-path", "x"], "--data-path requires --dataset"),
        (["--dataset", "imagefolder", "--data-path", "nowhere"], "nowhere"),
        (["--device", "tpu"], "tpu"),
        (["--resume"], "there are no runs in runs/reproduce yet"),
        (["--resume", "nowhere"], "nowhere is not a run folder"),
        (["--resume", "--epochs", "3"], "--epochs cannot be combined with --resume"),
        (["--seeds", "99999999999999999999"], "--seeds must be"),
        (["evaluate", "--download"], "require --dataset"),
        (["report", "nowhere"], "nowhere is not a run folder"),
        (["claims", "--verdict", "good"], "choose from holds, holds if, undecided, fails, contradicted"),
        (["claims", "--json", "nowhere/c.json"], "is not a folder"),
        (["bench", "--rounds", "0"], "--rounds must be at least 1"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(papers, tmp_path, capsys, words, says):
    assert command.main(words) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1, err
    assert not (tmp_path / "runs").exists(), "nothing was begun"


def test_no_paper_installed(papers, capsys):
    papers.found.clear()
    assert command.main(["list"]) == 2
    assert "no papers are installed" in capsys.readouterr().err


def test_a_damaged_or_foreign_run_is_named(papers, tmp_path, capsys):
    assert command.main(["train", "--paper", "toy"]) == 0
    file = only_run(tmp_path) / "run.json"
    text = file.read_text()
    for wrong, says in (
        ("{", "is damaged"),
        ("{}", "this version"),
        (text.replace('"train"', '"analyse"'), "this version"),
        (text.replace("toy", "gone"), "not installed"),
    ):
        file.write_text(wrong)
        assert command.main(["--resume"]) == 2
        assert says in capsys.readouterr().err


def test_the_papers_own_recipes_say_first_what_they_need(papers, tmp_path, capsys, monkeypatch):
    began = []
    monkeypatch.setattr(command, "_carry_out", lambda reproduction: began.append(reproduction) or 0)
    assert command.main(["--preset", "paper", "--paper", "toy", "--epochs", "2"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"Toy, CIFAR-10 +1 run of 2 epochs +\S+ +0\.\d GB disk  images: 0.17 GB to download", out), out
    assert "early stopping is off" in out
    assert began[0].options.download, "its images are downloaded"
    assert command.main(["--preset", "paper", "--paper", "toy", "--plan"]) == 0
    assert len(began) == 1, "--plan does nothing"
    monkeypatch.setattr("sys.stdin", _Terminal("n\n"))
    monkeypatch.setattr("sys.stdout", _Terminal())
    assert command.main(["--preset", "paper", "--paper", "toy", "--epochs", "2"]) == 0
    assert len(began) == 1, "on a terminal it asks, and no is no"
    assert command.main(["--preset", "paper", "--paper", "toy", "--epochs", "2", "--yes"]) == 0
    assert len(began) == 2


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_run_of_the_papers_recipe_judges_the_claims_about_its_accuracies(papers, tmp_path, monkeypatch):
    far = CLAIMS.replace(
        "command: toy-train", "command: toy-train, outcomes: [{training: own, row: first, column: acc1}]"
    )
    (tmp_path / "claims.yaml").write_text(far.replace("99.0", "10.0").replace("Much", "A guess"))
    published = dataclasses.replace(papers.found["toy"].micro[0], name="own")
    papers.replace("toy", published=[published])
    monkeypatch.setattr(plan, "time_step", lambda *_: (0.5, 1))
    words = ["--preset", "paper", "--paper", "toy", "--seeds", "0", "1"]
    assert command.main(words) == 0
    (paper,) = results_of(only_run(tmp_path))["papers"]
    claim = paper["claims"][2]
    values = [s["acc1"] for s in paper["trainings"][0]["rows"][0]["seeds"]]
    assert claim["measured"]["value"] == values
    assert (claim["measured"]["seed"], claim["measured"]["results"]) == ([0, 1], "trained by this run")
    low, high = claim["measured"]["interval"]
    assert low < sum(values) / 2 < high
    assert claim["verdict"] == ("fails" if low > 10.05 or high < 9.95 else "undecided")
    assert command.main([*words, "--epochs", "1", "--output-dir", str(tmp_path / "other")]) == 0
    (other,) = (tmp_path / "other").iterdir()
    assert results_of(other)["papers"][0]["claims"][2]["verdict"] == "not run", "with other epochs it is no such run"


def test_a_table_is_judged_by_the_seeds_that_reached_all_of_its_cells():
    def trained(label, *seeds):
        where = {"commit": "abc", "date": "2026-11-26", "machine": "m"}
        rows = [
            {"seed": s, "acc1": acc1, "curve": [{"epoch": e, "val_acc1": v} for e, v in curve.items()], "where": where}
            for s, acc1, curve in seeds
        ]
        return {"label": label, "seeds": rows}

    outcomes = [
        Outcome(training="c", row=label, column="acc1", epoch=epoch, cell=(f"epoch {epoch}", label))
        for epoch in (1, 2)
        for label in ("dense", "sparse")
    ]
    dense = trained("dense", (0, 80, {1: 70, 2: 80}), (1, 81, {1: 71, 2: 81}), (2, 72, {1: 72}))  # 2 stopped early
    sparse = trained("sparse", (0, 80, {1: 70.5, 2: 90}), (1, 81, {1: 71.5, 2: 91}), (2, 82, {1: 72, 2: 92}))
    claimed = {"epoch 1": {"dense": 70.5, "sparse": 71.0}, "epoch 2": {"dense": 80.5, "sparse": 80.5}}
    measured = steps.reached([{"name": "c", "rows": [dense, sparse]}], outcomes)
    assert measured.seed == [0, 1]
    assert measured.value["epoch 2"] == {"dense": [80, 81], "sparse": [90, 91]}
    claim = Claim(
        id="table",
        source="s",
        statement="s",
        claimed=claimed,
        kind="result",
        cost="gpu-hours",
        check="c",
        command="x",
        setting=Setting(name="s", what="w", counts="c"),
        tolerance=7.0,
        outcomes=outcomes,
    )
    (verdict,) = judge([claim], {}, trained=lambda outcomes: measured)
    assert {(c.row, c.column): c.verdict for c in verdict.cells} == {
        ("epoch 1", "dense"): "holds",
        ("epoch 1", "sparse"): "holds",
        ("epoch 2", "dense"): "holds",
        ("epoch 2", "sparse"): "undecided",
    }
    assert verdict.verdict == "undecided"
    assert steps.reached([{"name": "c", "rows": [dense]}], outcomes) is None, "a row was not trained"


def test_the_estimate_counts_rows_seeds_epochs_and_images(papers, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "time_step", lambda *_: (0.5, 1_000_000))
    options = Options(preset="paper", epochs=3, seeds=(0, 1))
    (need,) = plan.needs({"toy": papers.found["toy"]}, options, tmp_path / "run", io.StringIO())
    assert need.seconds == 2 * 0.5 * 100 * 3
    assert need.runs == 2
    assert need.disk_gb == pytest.approx(2 * 2 * 12e-3 + 0.3)
    assert not (tmp_path / "run").exists()


def test_flags_of_the_command_line_go_before_a_trainings_own():
    given = {"model": "toy", "dataset": "a", "data_path": "there", "epochs": 9}
    assert Options().over(given) == {**given, "device": "auto"}
    at_root = Options(preset="paper", data_path="/root")  # in place of data/
    assert at_root.over({"model": "toy"})["data_path"] == "/root"
    assert at_root.over({"model": "toy", "data_path": "data/intel"})["data_path"] == "/root/intel"
    changed = Options(dataset="b", epochs=1, device="cpu", download=True).over(given)
    assert changed == {"model": "toy", "dataset": "b", "epochs": 1, "device": "cpu", "download": True}


def test_the_share_of_a_training_is_told(papers, tmp_path):
    told = []
    study = studies(papers.found["toy"], Options(), tmp_path, lambda share, what: told.append((share, what)))["digits"]
    study.train()
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.2
    assert shares[-1] == 1
    assert {what for _, what in told} == {"first", "second"}


def test_the_display_tells_paper_step_share_and_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    parts = [Part("A", "training", 100), Part("A", "claims", 10), Part("B", "training", 90)]
    with Display(parts, io.StringIO()) as display:
        display.start(parts[0])
        display.at(0.0)
        display.at(0.25, "row 1")
        now[0] += 50
        assert str(display.bar).startswith("[1/3] A: training, row 1, 25% |#")
        assert str(display.bar).endswith("| 05:50 left"), "25 of 200 expected seconds took 50"
        now[0] += 150
        display.end("fine")
        assert display.stream.getvalue() == "[1/3] A: training, 200 s. fine  [03:20 left]\n"
        display.start(parts[2])
        display.at(0.5)  # resumed: so much was done before
        assert str(display.bar).endswith(", 50% |#######2  | 01:50 left"), "45 and 10, at the pace of the first"
        display.at(1.0)
        now[0] += 90
        display.end("")
    assert display.stream.getvalue().splitlines()[1:] == ["[3/3] B: training, 90 s.  [00:20 left]"]


def test_on_a_terminal_the_display_is_one_bar_and_lines_that_stay():
    part = Part("A", "training", 100)
    with Display([part], stream := _Terminal()) as display:
        display.start(part)
        display.end("fine")
    assert "\r[1/1] A: training |" in stream.getvalue()
    shown = [line.rpartition("\r")[2] for line in stream.getvalue().splitlines()]
    assert "[1/1] A: training, 0 s. fine  [00:00 left]" in shown


def test_a_duration_is_told_in_the_unit_that_fits():
    assert [clock(s) for s in (0, 65, 3720, 200_000)] == ["0:00", "1:05", "1 h 02 min", "2 days"]


def test_papers_are_found_by_their_entry_point():
    papers, broken = load_papers()
    assert not broken, broken
    assert all(isinstance(p, Paper) for p in papers.values())
