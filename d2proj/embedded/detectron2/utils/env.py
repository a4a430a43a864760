"""Seeding of the random number generators."""

import logging
import os
import random

import numpy as np
import torch

__all__ = ["TORCH_VERSION", "seed_all_rng"]

TORCH_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])


def seed_all_rng(seed: int | None = None) -> None:
    """Seed Python's, numpy's and torch's global generators.

    Args:
        seed: default: one drawn from the system's entropy; logged.
    """
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "big")  # numpy takes 32 bits
        logging.getLogger(__name__).info("Using a generated random seed %d", seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    random.seed(seed)
    # Read only by Python processes started from here on, for their str hashes.
    os.environ["PYTHONHASHSEED"] = str(seed)
