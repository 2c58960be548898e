"""Two gloo processes train as one process with the same global batch does."""

import csv
import errno
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toy_paper
from vit_core.data import BatchLoader, EvalTransform
from vit_core.data.sources import MemorySource
from vit_core.errors import UserError
from vit_core.training import distributed
from vit_core.training.checkpoint import digest, load_checkpoint
from vit_core.training.distributed import pick_device
from vit_core.training.evaluation import evaluate
from vit_core.training.precision import choose_precision
from vit_core.training.run_folder import RunFolder


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def two_ranks(port: str) -> list[dict[str, str]]:
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**common, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(2)]


def rows(folder: Path) -> list[dict[str, str]]:
    (run,) = (folder / "checkpoints").iterdir()
    with (run / "metrics.csv").open() as f:
        return list(csv.DictReader(f))


def test_two_processes_equal_one_with_the_same_global_batch(tmp_path, start_processes):
    # No dropout: its masks differ between ranks, as they must.
    flags = ["--model-kwargs", "patch_size=8", "--epochs", "2", "--color-jitter", "0.2"]
    one = (str(tmp_path / "one"), [*flags, "--batch-size", "128"], -1, "", {})
    assert start_processes(toy_paper.train_process, [one]) == [0]
    port = free_port()
    two = [(str(tmp_path / "two"), [*flags, "--batch-size", "64"], -1, "", env) for env in two_ranks(port)]
    assert start_processes(toy_paper.train_process, two) == [0, 0]
    for ours, theirs in zip(rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True):
        for key in ("epoch", "step", "lr", "train_loss", "val_loss", "val_acc1", "grad_norm"):
            np.testing.assert_allclose(float(ours[key]), float(theirs[key]), rtol=2e-3, err_msg=key)


def test_sigterm_to_one_rank_stops_all_and_the_run_resumes_exactly(tmp_path, start_processes):
    argv = ["--batch-size", "128", "--epochs", "2"]
    work = [(str(tmp_path / "unbroken"), argv, -1, "", env) for env in two_ranks(free_port())]
    assert start_processes(toy_paper.train_process, work) == [0, 0]
    folder = str(tmp_path / "broken")
    faults = zip(["SIGTERM", ""], two_ranks(free_port()), strict=True)  # the second rank gets no signal
    work = [(folder, argv, 7 if what else -1, what, env) for what, env in faults]
    assert start_processes(toy_paper.train_process, work) == [143, 143]
    saved = last(tmp_path / "broken")
    assert saved["progress"]["step"] == 7
    assert len(saved["ranks"]) == 2
    (run,) = (tmp_path / "broken" / "checkpoints").iterdir()
    resume = ["--resume", str(run / "last.pth")]
    work = [(folder, resume, -1, "", env) for env in two_ranks(free_port())]
    assert start_processes(toy_paper.train_process, work) == [0, 0]
    ours, theirs = (last(tmp_path / name)["model_state_dict"] for name in ("broken", "unbroken"))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def says_into(file: str, *arguments: Any) -> None:
    """As `toy_paper.train_process`, with standard error in a file."""
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    toy_paper.train_process(*arguments)


def test_a_killed_process_ends_the_others_with_a_line(tmp_path, start_processes):
    argv, log = ["--batch-size", "128", "--epochs", "2"], tmp_path / "log.txt"
    faults = zip(["", "SIGKILL"], two_ranks(free_port()), strict=True)
    work = [
        (str(log), str(tmp_path), argv, 7 if what else -1, what, env)  # in the second epoch
        for what, env in faults
    ]
    assert start_processes(says_into, work) == [2, -9]
    (run,) = (tmp_path / "checkpoints").iterdir()
    said = log.read_text()
    assert "lost the connection to another process of this run (it was killed" in said
    assert f"resume with: the same torchrun command with --resume {run / 'last.pth'}" in said
    assert "Traceback" not in said


def test_processes_that_read_different_checkpoints_are_told(tmp_path, start_processes):
    """--resume on machines that share no disk."""
    paths = []
    for name, epochs in (("a", "1"), ("b", "2")):
        assert toy_paper.train(str(tmp_path / name), "--epochs", epochs) == 0
        paths += (tmp_path / name / "checkpoints").glob("*/last.pth")
    work = [
        (str(tmp_path / "log.txt"), str(tmp_path / "c"), ["--resume", str(path), "--epochs", "3"], -1, "", env)
        for path, env in zip(paths, two_ranks(free_port()), strict=True)
    ]
    assert start_processes(says_into, work) == [2, 2]
    assert (tmp_path / "log.txt").read_text().count("put the checkpoint on a disk that all machines share") == 2


def test_what_torchrun_starts_again_goes_on_from_its_last_checkpoint(tmp_path, monkeypatch, capsys):
    flags = ["--epochs", "2", "--save-steps", "1"]
    assert toy_paper.train(str(tmp_path / "unbroken"), *flags) == 0
    folder = str(tmp_path / "broken")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert toy_paper.train(folder, *flags, "--epochs", "1") == 0  # of the same agent, so it would be taken up
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another job")
    assert toy_paper.train(folder, *flags, at=3, what="SIGTERM") == 143
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "this job")
    assert toy_paper.train(folder, *flags, at=7, what="SIGTERM") == 143
    before = set((tmp_path / "broken" / "checkpoints").iterdir())
    assert len(before) == 3
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    capsys.readouterr()
    assert toy_paper.train(folder, *flags) == 0
    said = capsys.readouterr().out
    assert "after 1 epochs and 2 batches" in said
    assert set((tmp_path / "broken" / "checkpoints").iterdir()) == before
    (ours,) = [run for run in before if f"{run.name}\n" in said]
    a, b = (load_checkpoint(f) for f in (ours / "last.pth", next((tmp_path / "unbroken").glob("*/*/last.pth"))))
    assert digest(a["model_state_dict"]) == digest(b["model_state_dict"])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another job")  # which began with --resume, and is further on by now
    first = next(run for run in before if load_checkpoint(run / "last.pth")["progress"]["step"] == 5)
    assert toy_paper.train(folder, "--resume", str(first / "last.pth"), "--epochs", "2") == 0
    assert "after 0 epochs and 3 batches" in capsys.readouterr().out
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a job that was killed before its first checkpoint")
    assert toy_paper.train(folder, *flags) == 0
    assert "restarted by torchrun, but this job has no checkpoint yet" in capsys.readouterr().out


def last(folder: Path) -> dict:
    (run,) = (folder / "checkpoints").iterdir()
    return torch.load(run / "last.pth", weights_only=True)


def one_rank_fails(folder: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    world = distributed.start("cpu")
    with distributed.together():
        pass  # nobody fails: all go on
    with distributed.together():
        if world.rank == 1:
            raise UserError("the second rank's disk is full")
    raise SystemExit(0)


def evaluates_one_image(folder: str, environment: dict[str, str]) -> None:
    """The second rank has nothing to evaluate."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    world = distributed.start("cpu")
    source = MemorySource(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.tensor([2]))
    plain = EvalTransform(8, (0.5,) * 3, (0.5,) * 3)
    loader = BatchLoader(source, batch_size=4, transform=plain, train=False, rank=world.rank, world=world.size)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 7))
    torch.nn.init.zeros_(model[1].weight)
    model[1].bias.data.copy_(torch.arange(7.0))
    result = evaluate(model, loader, choose_precision("off", world.device))
    assert (result.num_images, result.acc1, result.acc5) == (1, 0.0, 100.0), result
    assert abs(result.loss - (torch.arange(7.0).logsumexp(0) - 2.0)) < 1e-5, result
    distributed.stop()


def test_what_fails_on_one_rank_ends_all(tmp_path, start_processes):
    codes = start_processes(one_rank_fails, [(str(tmp_path), env) for env in two_ranks(free_port())])
    assert codes == [2, 1]  # 1: the UserError, which no @command turned into a line here


def its_disk_is_full(folder: str, argv: list[str], environment: dict[str, str]) -> None:
    """The main process cannot write metrics.csv."""
    if environment["RANK"] == "0":

        def full(self, row):
            raise OSError(errno.ENOSPC, "No space left on device", "metrics.csv")

        RunFolder.log = full
    toy_paper.train_process(folder, argv, -1, "", environment)


def test_a_full_disk_of_the_main_process_ends_the_others(tmp_path, start_processes):
    argv = ["--batch-size", "128", "--epochs", "1"]
    work = [(str(tmp_path), argv, env) for env in two_ranks(free_port())]
    assert start_processes(its_disk_is_full, work) == [2, 2]


def test_a_rank_without_images_evaluates_with_the_others(tmp_path, start_processes):
    work = [(str(tmp_path), env) for env in two_ranks(free_port())]
    assert start_processes(evaluates_one_image, work) == [0, 0]


def test_unknown_and_absent_devices_are_user_errors(monkeypatch):
    with pytest.raises(UserError, match="unknown device 'tpu9x'"):
        pick_device("tpu9x")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cpu"):
        pick_device("cuda")
