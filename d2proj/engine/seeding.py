"""Randomness without state: what an iteration draws depends on (seed, rank, iteration) alone."""

import random

import numpy as np
import torch
from detectron2.utils import comm


def seed_iteration(seed: int, rank: int, iteration: int) -> None:
    """Seed Python, NumPy and torch (all devices) for one iteration of one process.

    An interrupted run that continues at iteration i so draws what the uninterrupted one drew.
    """
    words = np.random.SeedSequence((seed, rank, iteration)).generate_state(2)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words[0])  # noqa: NPY002 - the generator that Detectron2 draws from
    random.seed(int(words[1]))


def choose_seed(seed: int) -> int:
    """``seed``, or for -1 a number drawn by the main process and known to all."""
    if seed >= 0:
        return seed
    drawn = int.from_bytes(random.SystemRandom().randbytes(4), "little") >> 1
    return int(comm.all_gather(drawn)[0])
