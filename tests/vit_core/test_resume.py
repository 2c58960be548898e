"""A run that was stopped, in whichever way, and resumed ends as one that never was."""

import csv
import signal
from pathlib import Path

import pytest
import torch

import toy_paper
from vit_core.commands import train as train_command
from vit_core.training.checkpoint import save_checkpoint

# 1,437 digits in batches of 256: five batches an epoch, fifteen in three epochs.


def only_run(folder: Path) -> Path:
    (run,) = (folder / "checkpoints").iterdir()
    return run


def final(run: Path) -> dict:
    return torch.load(run / "last.pth", weights_only=True)


def assert_same_state(a: object, b: object, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for k in a:
            assert_same_state(a[k], b[k], f"{where}.{k}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_state(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def metrics(run: Path) -> list[dict]:
    with (run / "metrics.csv").open() as f:
        rows = list(csv.DictReader(f))
    return [{k: v for k, v in row.items() if k not in ("images_per_second", "seconds")} for row in rows]


RECIPES = {
    "plain": (),
    "everything": (
        "--ema-decay",
        "0.9",
        "--mixup",
        "0.8",
        "--cutmix",
        "1.0",
        "--grad-accum",
        "2",
        "--schedule",
        "plateau",
        "--plateau-patience",
        "0",
        "--color-jitter",
        "0.3",
        "--erasing",
        "0.5",
        "--layer-decay",
        "0.8",
    ),
}


@pytest.fixture(scope="module", params=RECIPES)
def unbroken(request, tmp_path_factory) -> tuple[tuple[str, ...], Path]:
    folder = tmp_path_factory.mktemp("unbroken")
    assert toy_paper.train(str(folder), *RECIPES[request.param]) == 0
    return RECIPES[request.param], only_run(folder)


@pytest.mark.parametrize(
    ("at", "epoch", "batch"),
    [pytest.param(8, 1, 4, id="in-an-epoch"), pytest.param(10, 1, 5, id="at-its-last-batch")],
)
def test_sigterm_then_resume_is_exact(unbroken, tmp_path, capsys, at, epoch, batch):
    flags, reference = unbroken
    if not flags and at == 8:
        batch = 3  # without accumulation the step that the signal met is batch 8 itself
    assert toy_paper.train(str(tmp_path), *flags, at=at, what="SIGTERM") == 128 + signal.SIGTERM
    said = capsys.readouterr().out
    run = only_run(tmp_path)
    assert f"toy-train --resume {run / 'last.pth'}" in said
    stopped = final(run)
    assert (stopped["epoch"], stopped["progress"]["batch"]) == (epoch, batch)
    assert toy_paper.train(str(tmp_path), "--resume", str(run / "last.pth")) == 0
    assert only_run(tmp_path) == run, "a resumed run must go on in its folder"
    ours, theirs = final(run), final(reference)
    ours["config"] = theirs["config"] = None
    assert_same_state(ours, theirs)
    assert metrics(run) == metrics(reference)


def test_kill_9_in_an_epoch_then_resume_is_exact(tmp_path, start_processes):
    steps = ["--save-steps", "2"]
    assert start_processes(toy_paper.train_process, [(str(tmp_path / "a"), steps, -1, "", {})]) == [0]
    killed = start_processes(toy_paper.train_process, [(str(tmp_path / "b"), steps, 9, "SIGKILL", {})])
    assert killed == [-signal.SIGKILL]
    run = only_run(tmp_path / "b")
    stopped = final(run)
    assert (stopped["epoch"], stopped["progress"]["batch"]) == (1, 3), "the last save was at step 8"
    resume = ["--resume", str(run / "last.pth")]
    assert start_processes(toy_paper.train_process, [(str(tmp_path / "b"), resume, -1, "", {})]) == [0]
    ours, theirs = final(run), final(only_run(tmp_path / "a"))
    assert_same_state(ours["model_state_dict"], theirs["model_state_dict"])
    assert_same_state(ours["optimizer_state_dict"], theirs["optimizer_state_dict"])
    assert metrics(run) == metrics(only_run(tmp_path / "a"))


def test_an_earlier_checkpoint_branches_off_and_overwrites_nothing(tmp_path, capsys):
    assert toy_paper.train(str(tmp_path), "--save-freq", "1") == 0
    run = only_run(tmp_path)
    before = {f.name: f.read_bytes() for f in run.iterdir()}
    assert toy_paper.train(str(tmp_path), "--resume", str(run / "epoch_2.pth")) == 0
    assert {f.name: f.read_bytes() for f in run.iterdir()} == before
    (branch,) = [r for r in (tmp_path / "checkpoints").iterdir() if r != run]
    assert [row["epoch"] for row in metrics(branch)] == ["1", "2", "3"]
    assert_same_state(final(branch)["model_state_dict"], final(run)["model_state_dict"])
    assert "is not the latest checkpoint in" in capsys.readouterr().out


def test_a_branch_has_the_best_weights_of_its_past(tmp_path):
    assert toy_paper.train(str(tmp_path), "--save-freq", "1") == 0
    run = only_run(tmp_path)
    (run / "last.pth").write_bytes(b"damaged")
    assert toy_paper.train(str(tmp_path), "--resume", str(run / "epoch_2.pth"), "--lr", "0", "--min-lr", "0") == 0
    (branch,) = [r for r in (tmp_path / "checkpoints").iterdir() if r != run]
    best, second = (torch.load(f, weights_only=True) for f in (branch / "best.pth", run / "epoch_2.pth"))
    assert best["best_acc1"] == final(branch)["best_acc1"] == second["best_acc1"]
    assert_same_state(best["model_state_dict"], second["model_state_dict"])


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    assert toy_paper.train(str(tmp_path), "--epochs", "1") == 0
    run = only_run(tmp_path)
    (run / f".last.pth.{2**22}").write_bytes(b"half")
    assert toy_paper.train(str(tmp_path), "--resume", str(run / "last.pth"), "--epochs", "2") == 0
    assert not [f for f in run.iterdir() if f.name.startswith(".")]


def test_resume_with_another_batch_size_begins_the_epoch_anew(tmp_path, capsys):
    assert toy_paper.train(str(tmp_path), at=8, what="SIGTERM") == 143
    run = only_run(tmp_path)
    capsys.readouterr()
    assert toy_paper.train(str(tmp_path), "--resume", str(run / "last.pth"), "--batch-size", "128") == 0
    said = capsys.readouterr().out
    assert "note: images 256 -> 128, batches 5 -> 11 changed, so epoch 2 restarts from its first batch" in said
    # 11 steps an epoch by now; the schedule is where an unbroken run of that batch size would be.
    assert final(run)["progress"]["step"] == 33
    rows = metrics(run)
    assert [row["step"] for row in rows] == ["5", "22", "33"]


def test_an_older_checkpoint_is_older_whatever_its_batches_were(tmp_path, capsys):
    """Steps of other batch sizes do not compare: 22 of the older state are fewer epochs than 20 of the later."""
    assert toy_paper.train(str(tmp_path), "--batch-size", "128", "--epochs", "2", "--save-freq", "1") == 0
    run = only_run(tmp_path)
    assert (
        toy_paper.train(str(tmp_path), "--resume", str(run / "last.pth"), "--batch-size", "256", "--epochs", "4") == 0
    )
    assert final(run)["progress"]["step"] == 20
    before = {f.name: f.read_bytes() for f in run.iterdir()}
    assert toy_paper.train(str(tmp_path), "--resume", str(run / "epoch_2.pth"), "--epochs", "3") == 0
    assert {f.name: f.read_bytes() for f in run.iterdir()} == before
    assert "epoch_2.pth is not the latest checkpoint" in capsys.readouterr().out


def test_kill_9_between_the_two_names_of_a_checkpoint(tmp_path, start_processes):
    """best.pth is the next epoch's, last.pth is not yet: the resumed run ends as one that was never killed."""
    flags = ["--epochs", "2"]
    assert start_processes(toy_paper.train_process, [(str(tmp_path / "a"), flags, -1, "", {})]) == [0]
    killed = start_processes(toy_paper.train_process, [(str(tmp_path / "b"), flags, 2, "kill at last.pth", {})])
    assert killed == [-signal.SIGKILL]
    run, unbroken = only_run(tmp_path / "b"), only_run(tmp_path / "a")
    assert final(run)["epoch"] == 1
    assert torch.load(run / "best.pth", weights_only=True)["epoch"] == 2
    assert toy_paper.train(str(tmp_path / "b"), "--resume", str(run / "last.pth")) == 0
    ours, theirs = final(run), final(unbroken)
    assert_same_state(ours["model_state_dict"], theirs["model_state_dict"])
    assert_same_state(ours["progress"], theirs["progress"])
    assert not [f for f in run.iterdir() if f.name.startswith(".")]


def test_best_is_never_of_an_epoch_that_was_done_otherwise(tmp_path, start_processes):
    """Killed between the names, and then not repeated as it was: the best.pth of the lost epoch is not kept."""
    flags = ["--epochs", "2"]
    killed = start_processes(toy_paper.train_process, [(str(tmp_path), flags, 2, "kill at last.pth", {})])
    assert killed == [-signal.SIGKILL]
    run = only_run(tmp_path)
    assert torch.load(run / "best.pth", weights_only=True)["epoch"] == 2
    assert toy_paper.train(str(tmp_path), "--resume", str(run / "last.pth"), "--lr", "0", "--min-lr", "0") == 0
    ended, best = final(run), torch.load(run / "best.pth", weights_only=True)
    assert best["epoch"] == ended["progress"]["best_epoch"] == 2
    assert best["best_acc1"] == ended["best_acc1"]
    assert_same_state(best["model_state_dict"], ended["model_state_dict"])


def test_a_run_that_went_on_meanwhile_is_not_overwritten(tmp_path, capsys, monkeypatch):
    """Another run resumes the folder, and ends, while this one loads its images."""
    assert toy_paper.train(str(tmp_path), "--epochs", "1") == 0
    last = only_run(tmp_path) / "last.pth"
    real = train_command.load_images

    def slowly(*arguments):
        monkeypatch.setattr(train_command, "load_images", real)
        assert toy_paper.train(str(tmp_path), "--resume", str(last), "--epochs", "3") == 0
        return real(*arguments)

    monkeypatch.setattr(train_command, "load_images", slowly)
    assert toy_paper.train(str(tmp_path), "--resume", str(last), "--epochs", "2") == 2
    assert f"{last.parent}: another process has resumed this run in the meantime" in capsys.readouterr().err
    assert final(last.parent)["epoch"] == 3
    assert [row["epoch"] for row in metrics(last.parent)] == ["1", "2", "3"]


@pytest.mark.parametrize(
    "content",
    [b"epoch,step\n\xff\xfe,1\n", b"no,header\n1,2\n", b"a" * 200_000 + b",b\n1,2\n"],
    ids=["bytes", "", "long"],
)
def test_metrics_that_are_none(tmp_path, capsys, content):
    assert toy_paper.train(str(tmp_path), "--epochs", "1") == 0
    run = only_run(tmp_path)
    (run / "metrics.csv").write_bytes(content)
    capsys.readouterr()
    code = toy_paper.train(str(tmp_path), "--resume", str(run / "last.pth"), "--epochs", "2")
    if code:
        assert (code, "metrics.csv is damaged" in capsys.readouterr().err) == (2, True)
        (run / "metrics.csv").unlink()
        assert toy_paper.train(str(tmp_path), "--resume", str(run / "last.pth"), "--epochs", "2") == 0
    assert metrics(run)[-1]["epoch"] == "2"


def test_optimizer_flags_given_anew_hold_for_the_resumed_run(tmp_path):
    assert toy_paper.train(str(tmp_path), "--epochs", "1", "--weight-decay", "0.05") == 0
    run = only_run(tmp_path)
    argv = ["--resume", str(run / "last.pth"), "--epochs", "2", "--weight-decay", "0.2", "--beta2", "0.95"]
    assert toy_paper.train(str(tmp_path), *argv) == 0
    groups = final(run)["optimizer_state_dict"]["param_groups"]
    assert {g["weight_decay"] for g in groups} == {0.0, 0.2}
    assert {tuple(g["betas"]) for g in groups} == {(0.9, 0.95)}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("progress", {"epoch": 1, "pages": 3}),
        ("ranks", [{"rng": 3, "sums": []}]),
        ("schedule_state_dict", []),
        ("optimizer_state_dict", {}),
        ("optimizer_state_dict", 3),
        ("progress", None),
    ],
)
def test_a_checkpoint_with_foreign_values_is_named(tmp_path, capsys, key, value):
    assert toy_paper.train(str(tmp_path), "--epochs", "1") == 0
    path = only_run(tmp_path) / "last.pth"
    save_checkpoint(path, final(path.parent) | {key: value})
    capsys.readouterr()
    assert toy_paper.train(str(tmp_path), "--resume", str(path), "--epochs", "2") == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert error.count("\n") == 1
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1, "no folder is made for a run that cannot begin"


def test_resume_takes_flags_from_the_checkpoint_unless_given(tmp_path):
    assert toy_paper.train(str(tmp_path), "--epochs", "1", "--lr", "0.002") == 0
    run = only_run(tmp_path)
    assert toy_paper.train(str(tmp_path), "--resume", str(run / "last.pth"), "--epochs", "2") == 0
    config = final(run)["config"]["train"]
    assert (config["lr"], config["epochs"]) == (0.002, 2)


def test_a_finished_run_says_that_there_is_nothing_to_resume(tmp_path, capsys):
    assert toy_paper.train(str(tmp_path), "--epochs", "1") == 0
    assert toy_paper.train(str(tmp_path), "--resume", str(only_run(tmp_path) / "last.pth")) == 2
    assert "has already completed all 1 epochs" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert toy_paper.train(str(tmp_path / name), "--epochs", "1", "--seed", seed) == 0
    a, b, c = (final(only_run(tmp_path / name))["model_state_dict"] for name in "abc")
    assert_same_state(a, b)
    assert any(not torch.equal(a[k], c[k]) for k in a)
