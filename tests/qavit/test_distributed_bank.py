"""Two gloo processes keep one bank, the one that a single process with the same global batch has."""

import os
import socket

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from qavit import qavit_micro
from qavit import train as train_script


def model_and_data():
    torch.manual_seed(0)
    model = qavit_micro(num_classes=10, depth=2, drop_path=0.0)
    return model.train(), torch.randn(8, 3, 32, 32), torch.randint(10, (8,))


def train(model, images, targets):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def one_rank(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo")
    model, images, targets = model_and_data()
    share = slice(4 * rank, 4 * rank + 4)
    losses = train(DistributedDataParallel(model), images[share], targets[share])
    dist.all_reduce(losses)
    bank = model.global_bank
    torch.save([losses / 2, bank.global_k.detach(), bank.global_v.detach()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def test_the_ranks_keep_one_bank_and_the_single_process_curve(start_processes, tmp_path):
    port = free_port()
    assert start_processes(one_rank, [(r, port, str(tmp_path)) for r in range(2)]) == [0, 0]
    (losses_0, *banks), others = (torch.load(tmp_path / f"{r}.pt") for r in range(2))
    assert torch.equal(losses_0, others[0])
    assert all(torch.equal(a, b) for a, b in zip(banks, others[1:], strict=True)), "the banks drifted apart"
    model, images, targets = model_and_data()
    losses = train(model, images, targets)
    torch.testing.assert_close(losses_0, losses, rtol=1e-4, atol=1e-5)
    for found, bank in zip(banks, (model.global_bank.global_k, model.global_bank.global_v), strict=True):
        torch.testing.assert_close(found, bank.detach(), rtol=1e-3, atol=1e-4)


def train_process(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    raise SystemExit(
        train_script.main(
            [
                "--save-dir",
                f"{folder}/checkpoints",
                "--log-dir",
                f"{folder}/logs",
                "--epochs",
                "1",
                "--batch-size",
                "64",
                "--grad-accum",
                "2",
                "--model-kwargs",
                "depth=1",
                "patch_size=8",
            ]
        )
    )


def test_the_train_script_in_two_processes_with_accumulation(start_processes, tmp_path):
    port = free_port()
    assert start_processes(train_process, [(r, port, str(tmp_path)) for r in range(2)]) == [0, 0]
    (run,) = (tmp_path / "checkpoints").iterdir()
    saved = torch.load(run / "last.pth", weights_only=True)
    assert saved["progress"]["step"] == 6  # 1,437 digits are eleven global batches of 128, in groups of two
    assert 0.0 < saved["best_acc1"] <= 100.0
    assert saved["model_state_dict"]["global_bank.global_k"].isfinite().all()
