"""Short forms of the studies in reliability/; of those that compare, that a planted fault is found."""

import re
import shutil
import signal
from pathlib import Path

import pytest
from reliability import checkpoint_damage, folder_index, image_damage, kill_study, memory, processes
from reliability.disks import mount, small_disk
from reliability.small_images import small_images

import toy_paper
from vit_core.errors import UserError
from vit_core.training.checkpoint import load_checkpoint, read_safely, save_checkpoint


@pytest.mark.slow
def test_five_kills(tmp_path):
    images = small_images(tmp_path / "images", train=48, val=8)
    victim = kill_study.Victim("zoom_vit.cifar_train", (*kill_study.FLAGS, "--data-path", str(images)))
    outcome = kill_study.study(victim, tmp_path, kills=5, signal_number=signal.SIGKILL, seed=3)
    assert outcome.differences == []
    assert outcome.kills == 5
    assert outcome.starts >= 5

    uninterrupted, planted = tmp_path / "uninterrupted", tmp_path / "planted"
    assert kill_study.differences(uninterrupted, uninterrupted) == []
    shutil.copytree(uninterrupted, planted)
    last = kill_study.checkpoint_of(planted)
    state = load_checkpoint(last)
    first = next(iter(state["optimizer_state_dict"]["state"].values()))
    first["exp_avg"].view(-1)[0] += 1e-9
    save_checkpoint(last, state)
    with last.with_name("metrics.csv").open("a") as f:
        f.write(last.with_name("metrics.csv").read_text().splitlines()[-1] + "\n")
    (last.parent / ".last.pth.17").touch()
    found = kill_study.differences(uninterrupted, planted)
    assert [d.partition(":")[0] for d in found] == ["last.pth", "metrics.csv", "left behind"]
    assert found[0] == "last.pth: optimizer_state_dict"


def test_a_damaged_checkpoint_is_loaded_completely_or_rejected(tmp_path, monkeypatch):
    images = small_images(tmp_path / "images", train=16, val=8)
    whole = checkpoint_damage.trained(tmp_path, images)
    (tmp_path / "a").mkdir()
    counts, wrong = checkpoint_damage.study(whole, images, tmp_path / "a", count=6, seed=0)
    assert wrong == []
    assert counts["malicious pickle: rejected"] == 4
    assert counts["other model: rejected"] == 2
    assert counts["one weight changed: rejected"] == 1
    assert counts["truncated: rejected"] == 6

    # A reader without the checksum is found out.
    monkeypatch.setattr(checkpoint_damage, "load_checkpoint", read_safely)
    monkeypatch.setattr(checkpoint_damage, "attempts", lambda *_: [("resume", lambda: 0)])
    (tmp_path / "b").mkdir()
    _, wrong = checkpoint_damage.study(whole, images, tmp_path / "b", count=6, seed=0)
    assert any("was loaded wrongly" in w for w in wrong)


def test_a_disk_that_fills_up_in_mid_run(tmp_path, capsys):
    flags = ["--epochs", "2"]
    assert toy_paper.train(str(tmp_path / "whole"), *flags) == 0
    (whole,) = (tmp_path / "whole" / "checkpoints").glob("*/last.pth")
    size = whole.stat().st_size
    try:
        with small_disk(tmp_path / "disk", int(1.6 * size)) as disk:
            argv = ["--save-dir", str(disk), "--log-dir", str(tmp_path / "logs"), *toy_paper.SMALL]
            capsys.readouterr()
            assert toy_paper.main([*argv, *flags]) == 2
            said = capsys.readouterr().err
            (last,) = disk.glob("*/last.pth")
            assert re.search(rf"^error: .*last\.pth: the disk is full \([\d.]+ MB free in {disk}/.*\n$", said)
            assert load_checkpoint(last)["epoch"] == 1
            assert sorted(f.name for f in last.parent.iterdir()) == [
                *("best.pth", "config.json", "last.pth", "metrics.csv", "run.lock")
            ]
            mount("-o", "remount,ro", str(disk))
            resume = ["--log-dir", str(tmp_path / "logs"), "--resume", str(last)]
            assert toy_paper.main(resume) == 2
            assert f"cannot write to {last.parent}" in capsys.readouterr().err
            mount("-o", f"remount,rw,size={4 * size}", str(disk))
            assert toy_paper.main(resume) == 0
            assert load_checkpoint(last)["checksum"] == load_checkpoint(whole)["checksum"]
    except UserError as e:
        if "this needs root" not in str(e):
            raise
        pytest.skip(str(e))


def test_growth_is_what_a_line_through_the_later_epochs_says():
    assert memory.growth([900.0] * 20 + [100.0 + 0.02 * i for i in range(80)]) == pytest.approx(2.0)
    assert memory.growth([100.0] * 100) == pytest.approx(0.0)


def test_what_the_study_of_processes_calls_wrong():
    good = {
        "1 processes: top-1, loss": [50.0, 0.7], "2 processes: top-1, loss": [50.0, 0.7],
        "2 processes: largest relative difference of a figure": 1e-4, "2 processes: images evaluated": 97,
        "2 processes: files changed by rank 0": 29, "2 processes: files changed by others": 0,
        "a worker killed: what the other said": ["error: lost the connection … (…)"],
        "--max-restarts 1: torchrun's exit code": 0, "--max-restarts 1: ends as the unbroken job, bit for bit": True,
    }  # fmt: skip
    assert processes.problems(good) == []
    bad = {
        "2 processes: top-1, loss": [51.0, 0.7], "2 processes: images evaluated": 98,
        "2 processes: largest relative difference of a figure": 0.1, "2 processes: files changed by rank 0": 0,
        "2 processes: files changed by others": 1, "a worker killed: what the other said": [],
        "--max-restarts 1: torchrun's exit code": 1, "--max-restarts 1: ends as the unbroken job, bit for bit": False,
    }  # fmt: skip
    for key, value in bad.items():
        assert processes.problems(good | {key: value}) == [key]


def test_the_folder_that_is_indexed(tmp_path):
    folder_index.make_folder(tmp_path, files=203, classes=5)
    assert folder_index.index(tmp_path) == folder_index.walk(tmp_path) == 203


def test_damaged_images(tmp_path, capsys):
    assert image_damage.main(["--files", "200", "--json", str(tmp_path / "a.json")]) == 0


def test_only_one_run_of_a_training_is_resumed(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert kill_study.checkpoint_of(tmp_path) is None
    (tmp_path / "checkpoints" / "a" / "last.pth").touch()
    assert kill_study.checkpoint_of(tmp_path) == Path(tmp_path / "checkpoints" / "a" / "last.pth")
