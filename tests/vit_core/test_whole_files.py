"""Atomic file writes, and folders that one process at a time writes to."""

import errno
import multiprocessing
import os
import time
from pathlib import Path

import pytest

import toy_paper
from vit_core.errors import UserError
from vit_core.files import lock_folder, locked, remove_leftovers, replacing, second_name, write_whole
from vit_core.training.run_folder import RunFolder


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path):
    file = tmp_path / "a.json"
    write_whole(file, "first\n")

    def is_interrupted() -> None:
        with replacing(file) as temporary:
            temporary.write_text("half of the sec")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        is_interrupted()
    assert file.read_text() == "first\n"
    write_whole(file, "zweite Zeile: ä\r\n")
    assert file.read_bytes() == "zweite Zeile: ä\r\n".encode()
    assert [f.name for f in tmp_path.iterdir()] == ["a.json"]


def test_a_link_is_written_through_and_a_device_is_not_replaced(tmp_path):
    (tmp_path / "b.json").write_text("old")
    (tmp_path / "a.json").symlink_to(tmp_path / "b.json")
    write_whole(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").is_symlink()
    assert (tmp_path / "b.json").read_text() == "new"
    write_whole(Path(os.devnull), "nothing")
    assert not Path(os.devnull).is_file()


def test_the_second_name_works_without_hard_links(tmp_path, monkeypatch):
    def none(source, target):
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", none)
    (tmp_path / "last.pth").write_bytes(b"state")
    (tmp_path / "best.pth").write_bytes(b"an older state")
    second_name(tmp_path / "last.pth", tmp_path / "best.pth")
    assert (tmp_path / "best.pth").read_bytes() == b"state"
    assert len(list(tmp_path.iterdir())) == 2


def test_leftovers_are_what_a_killed_process_leaves_and_nothing_else(tmp_path):
    kept = [".hidden", "last.pth", "run.17", ".config.json", ".notes.2024"]
    for name in (*kept, ".last.pth.4711", ".metrics.csv.12", ".write_test.9"):
        (tmp_path / name).write_text("")
    (tmp_path / ".folder.5").mkdir()
    remove_leftovers(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted([*kept, ".folder.5"])


def test_a_folder_is_one_holders_at_a_time(tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match="in use by another process"):
        lock_folder(tmp_path)
    with locked(tmp_path):
        pass


def sleeps_with_a_lock(folder: str) -> None:
    """Holds the lock; a child that it forked lives on when it is killed, as data workers do."""
    lock = lock_folder(Path(folder).parent)
    if os.fork() == 0:
        (Path(folder) / "child").write_text(str(os.getpid()))
        time.sleep(60)
    assert lock
    (Path(folder) / "ready").touch()
    time.sleep(60)


def test_the_lock_of_a_killed_process_is_free_though_its_workers_live_on(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    process = multiprocessing.get_context("spawn").Process(target=sleeps_with_a_lock, args=(str(folder),))
    process.start()
    while not ((folder / "ready").exists() and (folder / "child").exists()):
        time.sleep(0.01)
        assert process.is_alive()
    with pytest.raises(UserError, match="another process"):
        lock_folder(tmp_path)
    process.kill()
    process.join()
    child = int((folder / "child").read_text())
    os.kill(child, 0)  # it lives
    lock_folder(tmp_path).release()
    os.kill(child, 9)


def test_a_second_run_in_a_runs_folder_is_refused(tmp_path, capsys):
    assert toy_paper.train(str(tmp_path), "--epochs", "1") == 0
    (run,) = (tmp_path / "checkpoints").iterdir()
    before = {f.name: f.read_bytes() for f in run.iterdir() if f.name != "run.lock"}
    capsys.readouterr()
    with locked(run):
        assert toy_paper.train(str(tmp_path), "--resume", str(run / "last.pth"), "--epochs", "2") == 2
    assert f"{run} is in use by another process" in capsys.readouterr().err
    assert {f.name: f.read_bytes() for f in run.iterdir() if f.name != "run.lock"} == before
    assert toy_paper.train(str(tmp_path), "--resume", str(run / "last.pth"), "--epochs", "2") == 0


def test_a_run_holds_its_folder_until_it_ends_however_it_ends(tmp_path, capsys):
    assert toy_paper.train(str(tmp_path), at=8, what="nan") == 2
    (run,) = (tmp_path / "checkpoints").iterdir()
    lock_folder(run).release()
    new = RunFolder.create(tmp_path / "checkpoints", tmp_path / "logs", "another")
    with pytest.raises(UserError, match="another process"):
        lock_folder(new.path)
    new.close()
    lock_folder(new.path).release()


def test_the_run_that_a_restarted_job_goes_on_with(tmp_path):
    for i, (name, job) in enumerate([("a", "ours"), ("b", "theirs"), ("c", "ours"), ("d", "ours"), ("e", "x")]):
        run = tmp_path / name
        run.mkdir()
        (run / "config.json").write_text("[1]" if name == "e" else f'{{"job": "{job}"}}')
        if name != "d":  # killed before its first checkpoint
            (run / "last.pth").touch()
            os.utime(run / "last.pth", (i, i))
    assert RunFolder.latest_of_job(tmp_path, "ours") == tmp_path / "c" / "last.pth"
    assert RunFolder.latest_of_job(tmp_path, "nobody") is None
    assert RunFolder.latest_of_job(tmp_path / "not there", "ours") is None
