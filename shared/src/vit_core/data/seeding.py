"""Seeds for independent random streams: one hash of all the numbers that name the stream."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(stream: str, *numbers: int) -> int:
    """A 32-bit seed for the stream named by `stream` and `numbers`, such as ("augment", seed, epoch, batch).

    Sums such as seed + epoch + batch give neighbouring streams the same numbers; a hash does not. 32 bits,
    because that is all that torch's CPU generator uses of a seed.
    """
    text = "/".join([stream, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


def generator(stream: str, *numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` at the start of the stream named by `stream` and `numbers`."""
    return torch.Generator(device).manual_seed(derive_seed(stream, *numbers))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's global generator of the CPU begins at `seed`, and is afterwards as it was."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
