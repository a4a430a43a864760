"""Batches of indices that belong to one group."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import BatchSampler, Sampler


class GroupedBatchSampler(BatchSampler):
    """Batches in which all samples belong to the same group, in the order of another sampler.

    A batch is given out as soon as its group fills it; a group's incomplete batch stays for the
    next pass.

    Args:
        sampler: The order of the indices.
        group_ids: The group of each index, non-negative integers.
        batch_size: Indices per batch.
    """

    def __init__(self, sampler: Sampler, group_ids: Sequence[int], batch_size: int) -> None:
        if not isinstance(sampler, Sampler):
            raise ValueError(f"sampler must be a torch.utils.data.Sampler, got {sampler}")
        self.sampler = sampler
        self.group_ids = np.asarray(group_ids)
        assert self.group_ids.ndim == 1, self.group_ids.shape
        self.batch_size = batch_size
        self._waiting: dict[int, list[int]] = {int(g): [] for g in np.unique(self.group_ids)}

    def __iter__(self) -> Iterator[list[int]]:
        for index in self.sampler:
            waiting = self._waiting[int(self.group_ids[index])]
            waiting.append(index)
            if len(waiting) == self.batch_size:
                batch = waiting[:]
                waiting.clear()
                yield batch

    def __len__(self) -> int:
        raise TypeError("the number of batches of a GroupedBatchSampler is not known beforehand")
