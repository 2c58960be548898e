"""Checkpoint files: whole or absent, and nothing in them is run."""

import errno
import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from torch import nn

from vit_core.errors import UserError
from vit_core.training.checkpoint import FORMAT, KEYS, digest, load_checkpoint, load_weights, save_checkpoint


def checkpoint(**extra):
    return {**dict.fromkeys(KEYS, 0), "model_state_dict": {"w": torch.arange(4.0)}, **extra}


class Bomb:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_round_trip(tmp_path):
    save_checkpoint(tmp_path / "a.pth", checkpoint())
    assert torch.equal(load_checkpoint(tmp_path / "a.pth")["model_state_dict"]["w"], torch.arange(4.0))
    assert [f.name for f in tmp_path.iterdir()] == ["a.pth"]


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path):
    trap = tmp_path / "ran"
    torch.save(checkpoint(bomb=Bomb(trap)), tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(checkpoint(bomb=Bomb(trap))))
    for name in ("zip.pth", "plain.pth"):
        with pytest.raises(UserError, match=rf"{name} was not loaded: it contains objects other than tensors"):
            load_checkpoint(tmp_path / name)
    assert not trap.exists()
    torch.load(tmp_path / "zip.pth", weights_only=False)  # the trap works: only the safe reader held it back
    assert trap.exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, share):
    path = tmp_path / "cut.pth"
    save_checkpoint(path, checkpoint(big=torch.randn(10_000)))
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(UserError, match=r"cut\.pth (is truncated|is not a PyTorch checkpoint)"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello, this is no checkpoint", "text.pth is not a PyTorch checkpoint|text.pth is truncated"),
        ({"state_dict": {}}, "is not a checkpoint of this project: expected epoch, .* found state_dict"),
        ([1, 2], "is not a checkpoint of this project"),
    ],
)
def test_foreign_files_are_named(tmp_path, content, message):
    path = tmp_path / "text.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UserError, match=message):
        load_checkpoint(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_checkpoint(tmp_path / "no.pth")
    with pytest.raises(UserError, match=r"is a folder: .*last\.pth"):
        load_checkpoint(tmp_path)


def test_a_write_that_fails_keeps_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pth"
    save_checkpoint(path, checkpoint(epoch=1))

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"last\.pth: the disk is full \(.* MB free in "):
        save_checkpoint(path, checkpoint(epoch=2))
    assert load_checkpoint(path)["epoch"] == 1
    assert [f.name for f in tmp_path.iterdir()] == ["last.pth"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_disk_that_fills_up_while_torch_writes(tmp_path):
    (tmp_path / f".last.pth.{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(UserError, match="the disk is full"):
        save_checkpoint(tmp_path / "last.pth", checkpoint(big=torch.randn(100_000)))


def test_the_other_names_are_in_place_before_the_first(tmp_path, monkeypatch):
    """A run killed while it saves: whoever finds the new last.pth finds its best.pth."""
    last, best = tmp_path / "last.pth", tmp_path / "best.pth"
    save_checkpoint(last, checkpoint(epoch=1), [best])
    assert last.samefile(best)
    replace = Path.replace
    seen = []

    def record(self, target):
        seen.append(Path(target).name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", record)
    save_checkpoint(last, checkpoint(epoch=2), [best])
    assert seen == ["best.pth", "last.pth"]
    assert load_checkpoint(last)["epoch"] == load_checkpoint(best)["epoch"] == 2


def test_files_take_their_rights_from_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        save_checkpoint(tmp_path / "a.pth", checkpoint())
    finally:
        os.umask(before)
    assert (tmp_path / "a.pth").stat().st_mode & 0o777 == 0o640


def test_a_damaged_file_is_a_user_error_whatever_the_damage(tmp_path):
    path = tmp_path / "a.pth"
    written = checkpoint(config={"model": "m", "rates": [1e-3, 2]}, format=FORMAT)
    save_checkpoint(path, written)
    whole = path.read_bytes()
    rng = random.Random(0)
    refused = read = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 4, 64))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged[: rng.choice((len(damaged), rng.randrange(len(damaged))))])
        try:
            found = load_checkpoint(path)
        except UserError as e:
            refused += "a.pth" in str(e)
        else:  # the damage met a byte that nobody reads
            assert digest(found) == digest(written)
            read += 1
    assert refused + read == 150
    assert refused > 75


def test_every_bit_of_a_tensor_is_watched(tmp_path):
    """torch reads a changed weight without a word: the checksum does not."""
    path, weights = tmp_path / "a.pth", torch.arange(1000, dtype=torch.float32)
    save_checkpoint(path, checkpoint(model_state_dict={"w": weights}))
    whole = path.read_bytes()
    place = whole.index(weights.numpy().tobytes())
    for byte, bit in ((0, 0), (1999, 3), (3999, 7)):
        damaged = bytearray(whole)
        damaged[place + byte] ^= 1 << bit
        path.write_bytes(damaged)
        assert not torch.equal(torch.load(path, weights_only=True)["model_state_dict"]["w"], weights)
        with pytest.raises(UserError, match=r"a\.pth is damaged: its contents do not match its checksum"):
            load_checkpoint(path)


def test_the_digest_knows_types_shapes_and_order():
    base = {"a": torch.zeros(2, 3), "b": [1, 2], "c": 1}
    others = [
        base | {"a": torch.zeros(3, 2)},
        base | {"a": torch.zeros(2, 3, dtype=torch.int32)},
        base | {"b": (1, 2)},
        base | {"b": [1, [2]]},
        base | {"c": 1.0},
        base | {"c": True},
        {"b": [1, 2], "a": torch.zeros(2, 3), "c": 1},
        base | {"d": None},
    ]
    assert len({digest(c) for c in (base, *others)}) == 1 + len(others)
    same = base | {"a": torch.zeros(3, 2).t(), "checksum": "of itself"}  # the strides are no content
    assert digest(same) == digest(base)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"format": FORMAT + 1},
        {"format": None},
        {"format": 1e9},
        {"format": []},
        {"format": torch.ones(3)},
        {"format": True},
    ],
)
def test_a_checkpoint_of_another_version(tmp_path, change):
    torch.save(checkpoint() | change, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth was written by another version of this project, or is damaged"):
        load_checkpoint(tmp_path / "a.pth")


def test_what_no_digest_can_be_made_of(tmp_path):
    in_itself: list = []
    in_itself.append(in_itself)
    for odd in (in_itself, 10**5000, torch.zeros(3).to_sparse()):
        torch.save(checkpoint(odd=odd) | {"format": FORMAT, "checksum": "0"}, tmp_path / "a.pth")
        with pytest.raises(UserError, match=r"a\.pth (is damaged|was not loaded)"):
            load_checkpoint(tmp_path / "a.pth")


def test_weights_of_another_model_are_listed():
    model = nn.Linear(2, 3)
    with pytest.raises(
        UserError,
        match=r"x\.pth is a checkpoint of another model: missing bias; unexpected b; weight has shape \(4,\)",
    ):
        load_weights(model, {"weight": torch.zeros(4), "b": torch.zeros(1)}, "x.pth")
    with pytest.raises(UserError, match="weight is of type str, expected a tensor"):
        load_weights(model, {"weight": "w", "bias": torch.zeros(3)}, "x.pth")
    with pytest.raises(UserError, match="its weights are not a state dict"):
        load_weights(model, 3, "x.pth")
