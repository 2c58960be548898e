"""Two gloo processes train as one process with the same global batch does."""

import csv
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

import toy_paper
from vit_core.distributed import pick_device
from vit_core.errors import UserError


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


def test_sigterm_to_one_rank_stops_all_and_the_run_resumes(tmp_path, start_processes):
    port = free_port()
    folder = str(tmp_path)
    faults = ["SIGTERM", ""]  # the second rank gets no signal
    argv = ["--batch-size", "128"]
    work = [(folder, argv, 7 if what else -1, what, env) for what, env in zip(faults, two_ranks(port), strict=True)]
    assert start_processes(toy_paper.train_process, work) == [143, 143]
    (run,) = (tmp_path / "checkpoints").iterdir()
    saved = torch.load(run / "last.pth", weights_only=True)
    assert saved["progress"]["step"] == 7
    assert len(saved["ranks"]) == 2
    resume = ["--resume", str(run / "last.pth")]
    work = [(folder, resume, -1, "", env) for env in two_ranks(free_port())]
    assert start_processes(toy_paper.train_process, work) == [0, 0]
    assert torch.load(run / "last.pth", weights_only=True)["epoch"] == 3


def test_unknown_and_absent_devices_are_user_errors(monkeypatch):
    with pytest.raises(UserError, match="unknown device 'tpu9x'"):
        pick_device("tpu9x")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cpu"):
        pick_device("cuda")
