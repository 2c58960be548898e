"""Freed memory stays with the process: blocks as large as activations cost their page faults once."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from vit_core.training import host_memory

COUNT = """
import resource, sys, torch
from vit_core.training.host_memory import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "kept":
    keep_freed_memory()
def work():
    for _ in range(20):
        torch.ones(2**24)  # 64 MiB, over any threshold that glibc moves to by itself
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_page_faults_are_not_repeated():
    faults = {
        how: int(subprocess.run([sys.executable, "-c", COUNT, how], check=True, capture_output=True, text=True).stdout)
        for how in ("kept", "given back")
    }
    assert faults["kept"] < 100 < faults["given back"]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        (2**30, [(-3, 2**30), (-1, 2**30)]),
        (2**25, [(-3, 2**30), (-3, 2**25), (-1, 2**30)]),
        (0, [(-3, 2**30), (-3, 2**25)]),
    ],
)
def test_an_older_glibc_is_asked_for_less(monkeypatch, largest, expected):
    """To raise the threshold of trimming alone would make it worse."""
    asked = []

    def mallopt(parameter, value):
        asked.append((parameter, value))
        return int(parameter == -1 or value <= largest)

    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    host_memory.keep_freed_memory()
    assert asked == expected
