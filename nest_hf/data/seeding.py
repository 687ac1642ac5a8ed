"""Seeds: whatever is random about an example is a function of (seed, epoch, id), on any number of workers."""

import hashlib

import numpy as np


def seed_of(seed: int, epoch: int, example_id: str, purpose: str) -> int:
    """A 64-bit seed for one random decision about one example."""
    key = f"{seed}\x1f{epoch}\x1f{purpose}\x1f{example_id}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def generator_of(seed: int, epoch: int, example_id: str, purpose: str) -> np.random.Generator:
    """numpy's generator with the seed of [`seed_of`]."""
    return np.random.Generator(np.random.PCG64(seed_of(seed, epoch, example_id, purpose)))
