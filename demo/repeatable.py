"""The same numbers every time: one seed and one thread for a block of training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """Seed torch and compute in one thread inside the block; put both back after it.

    One thread, because the order of a sum depends on their number; for a model this small it is
    also the fastest on a machine that is not idle.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
