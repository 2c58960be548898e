"""Seeds for independent random streams, derived by hashing the numbers that identify the stream."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(stream: str, *numbers: int) -> int:
    """A 32-bit seed for the stream identified by `stream` and `numbers`, such as ("augment", seed, epoch, batch).

    Unlike sums such as seed + epoch + batch, a hash gives different streams different seeds. 32 bits, because
    torch's CPU generator uses no more of a seed.
    """
    text = "/".join([stream, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


def generator(stream: str, *numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device`, seeded for the stream identified by `stream` and `numbers`."""
    return torch.Generator(device).manual_seed(derive_seed(stream, *numbers))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator inside the context, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which also seeds the GPUs
        yield
