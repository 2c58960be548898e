"""Seeds for independent random streams: one hash of all the numbers that name the stream."""

import hashlib

import torch


def derive_seed(stream: str, *numbers: int) -> int:
    """A 32-bit seed for the stream named by `stream` and `numbers`, such as ("augment", seed, epoch, batch).

    Sums such as seed + epoch + batch give neighbouring streams the same numbers; a hash does not. 32 bits,
    because that is all that torch's CPU generator uses of a seed.
    """
    text = "/".join([stream, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


def generator(stream: str, *numbers: int) -> torch.Generator:
    """A CPU generator at the start of the stream named by `stream` and `numbers`."""
    return torch.Generator().manual_seed(derive_seed(stream, *numbers))
