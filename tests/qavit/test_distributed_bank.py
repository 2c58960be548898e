"""Two gloo processes keep one bank, the one that a single process with the same global batch has."""

import multiprocessing
import os
import socket

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from qavit import qavit_micro


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


def one_rank(rank, port, queue):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo")
    model, images, targets = model_and_data()
    share = slice(4 * rank, 4 * rank + 4)
    losses = train(DistributedDataParallel(model), images[share], targets[share])
    dist.all_reduce(losses)
    bank = model.global_bank
    queue.put((rank, losses.div(2).tolist(), bank.global_k.detach().tolist(), bank.global_v.detach().tolist()))
    dist.destroy_process_group()


def test_the_ranks_keep_one_bank_and_the_single_process_curve():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=one_rank, args=(r, port, queue)) for r in range(2)]
    for p in processes:
        p.start()
    results = {r[0]: r[1:] for r in (queue.get(timeout=120) for _ in processes)}
    for p in processes:
        p.join(30)
        assert p.exitcode == 0
    assert results[0] == results[1], "losses and banks must be equal to the last bit"
    model, images, targets = model_and_data()
    losses = train(model, images, targets)
    torch.testing.assert_close(torch.tensor(results[0][0]), losses, rtol=1e-4, atol=1e-5)
    for found, bank in zip(results[0][1:], (model.global_bank.global_k, model.global_bank.global_v), strict=True):
        torch.testing.assert_close(torch.tensor(found), bank.detach(), rtol=1e-3, atol=1e-4)
