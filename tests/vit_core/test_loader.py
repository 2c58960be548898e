"""The loader: order, sharding, resume, workers, and errors, bit for bit where that is promised."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from vit_core.data.augment import Augment, AugmentConfig, EvalTransform
from vit_core.data.folder import scan_classes
from vit_core.data.loader import BatchLoader
from vit_core.data.sources import DiskSource, FakeSource, MemorySource
from vit_core.errors import UserError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
STRONG = AugmentConfig(crop="resized", rotation=10, color_jitter=0.4, hue_jitter=0.1, randaugment_ops=2, erasing=0.5)
Batches = list[tuple[torch.Tensor, torch.Tensor]]


def _source(count: int, size: int = 16) -> MemorySource:
    """Image i has label i, so that labels tell which images were seen."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return MemorySource(images, torch.arange(count))


def _train(source: MemorySource | DiskSource, size: int = 24, **kwargs: object) -> BatchLoader:
    return BatchLoader(source, transform=Augment(STRONG, size, MEAN, STD), train=True, seed=7, **kwargs)


def _eval(source: MemorySource | DiskSource, size: int = 24, **kwargs: object) -> BatchLoader:
    return BatchLoader(source, transform=EvalTransform(size, MEAN, STD), train=False, **kwargs)


def _all(batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> Batches:
    return [(x.clone(), y.clone()) for x, y in batches]


def _equal(a: Batches, b: Batches) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 images of unequal size in two classes."""
    generator = torch.Generator().manual_seed(0)
    for i in range(24):
        (tmp_path / f"class{i % 2}").mkdir(exist_ok=True)
        size = (20 + i % 5, 30 - i % 7)
        pixels = torch.randint(256, (*size, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"class{i % 2}" / f"{i:02d}.png")
    return tmp_path


def _disk(folder: Path) -> DiskSource:
    paths, labels, _ = scan_classes(folder)
    return DiskSource(paths, labels)


def test_every_image_once_an_epoch_in_an_order_of_the_epochs_own() -> None:
    loader = _train(_source(40), batch_size=8)
    orders = [torch.cat([y for _, y in loader.epoch(e)]).tolist() for e in (0, 1, 0)]
    assert len(loader) == 5
    assert loader.num_images == 40
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(40))
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]
    assert orders[0] != list(range(40))


def test_batches_are_normalized_float32_and_labels_int64() -> None:
    images, labels = next(_train(_source(40), batch_size=8).epoch())
    assert images.shape == (8, 3, 24, 24)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64


def test_another_epoch_augments_the_same_image_differently() -> None:
    loader = _train(_source(8), batch_size=8)
    (first, a), (second, b) = next(loader.epoch(0)), next(loader.epoch(1))
    assert not torch.equal(first[a.argsort()], second[b.argsort()])


@pytest.mark.parametrize("start", [0, 1, 3, 5])
def test_resume_at_any_batch_is_exact(start: int) -> None:
    whole = _all(_train(_source(40), batch_size=8).epoch(2))
    torch.rand(3)  # the global generator's state plays no part
    assert _equal(_all(_train(_source(40), batch_size=8).epoch(2, start)), whole[start:])


def test_the_global_generator_is_left_alone(folder: Path) -> None:
    state = torch.get_rng_state()
    _all(_train(_source(16), batch_size=8).epoch())
    _all(_train(_disk(folder), batch_size=8).epoch())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("count", [40, 43, 7])
def test_two_ranks_see_what_one_process_with_the_doubled_batch_sees(count: int) -> None:
    alone = _train(_source(count), batch_size=10)
    ranks = [_train(_source(count), batch_size=5, rank=r, world=2) for r in (0, 1)]
    together = [
        (torch.cat([x0, x1]), torch.cat([y0, y1]))
        for (x0, y0), (x1, y1) in zip(_all(ranks[0].epoch(1)), _all(ranks[1].epoch(1)), strict=True)
    ]
    expected = _all(alone.epoch(1))
    if count == 7:  # less than one batch: cut to a multiple of the ranks
        assert [y.tolist() for _, y in together] == [expected[0][1][:6].tolist()]
    else:
        assert _equal(together, expected)


def test_a_set_smaller_than_a_batch_is_one_batch() -> None:
    assert [len(y) for _, y in _train(_source(5), batch_size=8).epoch()] == [5]
    with pytest.raises(UserError, match="1 training images are too few for 2 processes"):
        _train(_source(1), batch_size=8, rank=0, world=2)


@pytest.mark.parametrize(("count", "world"), [(37, 1), (37, 2), (37, 3), (2, 3)])
def test_evaluation_counts_every_image_once_across_ranks(count: int, world: int) -> None:
    seen = []
    for rank in range(world):
        loader = _eval(_source(count), batch_size=4, rank=rank, world=world)
        labels = [y for _, y in loader.epoch()]
        assert len(labels) == len(loader)
        mine = torch.cat([torch.empty(0, dtype=torch.long), *labels]).tolist()
        assert mine == list(range(rank, count, world))
        assert loader.num_images == len(mine)
        seen += mine
    assert sorted(seen) == list(range(count))


def test_workers_change_nothing(folder: Path) -> None:
    source = _disk(folder)
    alone = _train(source, batch_size=4)
    workers = _train(source, batch_size=4, num_workers=2)
    for epoch in (0, 1):
        assert _equal(_all(workers.epoch(epoch)), _all(alone.epoch(epoch)))
    # An epoch that was left half-way does not spill into the next, and resume is exact here too.
    next(workers.epoch(3))
    assert _equal(_all(workers.epoch(4, 2)), _all(alone.epoch(4))[2:])


def test_disk_shards_like_memory(folder: Path) -> None:
    alone = _all(_train(_disk(folder), batch_size=8).epoch())
    ranks = [_all(_train(_disk(folder), batch_size=4, rank=r, world=2).epoch()) for r in (0, 1)]
    assert _equal([(torch.cat([a, c]), torch.cat([b, d])) for (a, b), (c, d) in zip(*ranks, strict=True)], alone)


def test_disk_evaluation_is_pils_resize(folder: Path) -> None:
    source = _disk(folder)
    images, labels = next(_eval(source, size=32, batch_size=6).epoch())
    assert labels.tolist() == source.labels[:6].tolist()
    import torchvision.transforms as T

    transform = T.Compose([T.Resize((32, 32)), T.ToTensor(), T.Normalize(MEAN, STD)])
    for i in range(6):
        with Image.open(source.path(i)) as image:
            torch.testing.assert_close(images[i], transform(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_one_line_with_its_path(folder: Path, workers: int) -> None:
    broken = folder / "class1" / "07.png"
    broken.write_bytes(broken.read_bytes()[:90])
    loader = _train(_disk(folder), batch_size=4, num_workers=workers)
    with pytest.raises(UserError, match=r"class1/07\.png: unreadable image .*replace or remove") as error:
        _all(loader.epoch())
    assert "\n" not in str(error.value)


def test_a_killed_worker_is_one_line_with_advice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    loader = _train(_disk(folder), batch_size=1, num_workers=1)
    batches = loader.epoch()
    next(batches)
    assert loader._decoder is not None
    os.kill(loader._decoder._loader._iterator._workers[0].pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"a data worker was killed.*--num-workers") as error:
        _all(batches)
    assert "\n" not in str(error.value)


def test_workers_end_with_their_loader(folder: Path) -> None:
    loader = _train(_disk(folder), batch_size=4, num_workers=2)
    _all(loader.epoch())
    assert loader._decoder is not None
    workers = loader._decoder._loader._iterator._workers
    started = time.perf_counter()
    del loader
    assert not any(w.is_alive() for w in workers)
    assert time.perf_counter() - started < 4


def test_batches_that_are_kept_keep_their_values() -> None:
    loader = _eval(_source(64), batch_size=4)
    kept = list(loader.epoch())
    copies = _all(loader.epoch())
    assert _equal(kept, copies)


def test_autograd_keeps_the_batch_it_saved() -> None:
    loader = _eval(_source(32), batch_size=4)
    weight = torch.ones((), requires_grad=True)
    losses, sums = [], []
    for images, _ in loader.epoch():
        losses.append((images * weight).sum())
        sums.append(images.double().sum())
        del images
    torch.stack(losses).sum().backward()
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(torch.stack(sums).sum().item(), rel=1e-4)


def test_autocast_and_inference_mode_change_nothing() -> None:
    expected = _all(_train(_source(32), batch_size=16).epoch())
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        got = _all(_train(_source(32), batch_size=16).epoch())
    assert _equal(got, expected)


def test_fake_source_is_deterministic() -> None:
    batches = [
        next(
            BatchLoader(
                FakeSource(100, 24, 10, 0), batch_size=8, transform=EvalTransform(24, MEAN, STD), train=False
            ).epoch()
        )
        for _ in range(2)
    ]
    assert torch.equal(batches[0][0], batches[1][0])
    assert batches[0][1].tolist() == list(range(8))
    assert batches[0][0][0].ne(batches[0][0][1]).any()


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        _train(_source(4), batch_size=0)
    with pytest.raises(ValueError, match="rank in 0"):
        _train(_source(4), batch_size=1, rank=2, world=2)
    with pytest.raises(ValueError, match="evaluation requires an EvalTransform"):
        BatchLoader(_source(4), batch_size=1, transform=Augment(AugmentConfig(), 24, MEAN, STD), train=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["memory", "disk", "fake"])
def test_cuda_batches_equal_the_cpus(kind: str, folder: Path) -> None:
    source = {"memory": _source(40), "disk": _disk(folder)}.get(kind)
    if source is None:
        loader = BatchLoader(
            FakeSource(64, 24, 10, 0),
            batch_size=8,
            transform=EvalTransform(24, MEAN, STD),
            train=False,
            device="cuda",
        )
        assert sum(len(y) for _, y in loader.epoch()) == 64
        return
    for cpu, gpu in zip(
        _all(_eval(source, batch_size=8).epoch()),
        _all(_eval(source, batch_size=8, device="cuda").epoch()),
        strict=True,
    ):
        torch.testing.assert_close(gpu[0].cpu(), cpu[0], rtol=0, atol=1e-5)
        assert torch.equal(gpu[1].cpu(), cpu[1])


def test_a_limit_takes_images_from_all_over_a_sorted_source():
    source = MemorySource(
        torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1).expand(-1, 3, 4, 4), torch.arange(100) // 10
    )
    plain = EvalTransform(4, (0.0,) * 3, (1 / 255,) * 3)
    for world in (1, 2):
        parts = [
            BatchLoader(source, batch_size=7, transform=plain, train=False, limit=25, rank=r, world=world)
            for r in range(world)
        ]
        assert sum(loader.num_images for loader in parts) == 25
        batches = [batch for loader in parts for batch in loader.epoch()]
        labels = torch.cat([y for _, y in batches])
        assert labels.bincount(minlength=10).tolist() == [3, 2] * 5
        assert torch.cat([x[:, 0, 0, 0] for x, _ in batches]).round().long().unique().numel() == 25
    whole = BatchLoader(source, batch_size=7, transform=plain, train=False, limit=1000)
    assert whole.num_images == 100
