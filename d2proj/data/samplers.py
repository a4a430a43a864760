"""Which samples make which batch: a function of (seed, position) alone.

A *position* numbers the samples of the whole run, over all processes. What is drawn at random for
a sample depends on the seed and its position and on nothing else, so that the number of workers
does not matter and a run can be taken up at any iteration.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm

from d2proj.data.records import DetectionRecords

Sample = tuple[int, int]  # position in the global stream, index in the data set


def repeat_factors(
    records: DetectionRecords, indices: npt.NDArray[np.int64], threshold: float
) -> torch.Tensor:
    """LVIS's repeat factor of each image (arXiv:1908.03195 v2, appendix B.2).

    An image is repeated max over its classes c of max(1, sqrt(threshold / f(c))) times, where f(c)
    is the fraction of the images that contain c.

    Args:
        records: the data set.
        indices: the images that are trained on, k of them, increasing.
        threshold: the frequency below which classes are repeated.

    Returns:
        float32 tensor [k].
    """
    image, classes = records.image_of_box(), records.classes.astype(np.int64)
    used = np.isin(image, indices) & ~records.crowd
    num_classes = int(classes.max(initial=0)) + 1
    pairs = np.unique(image[used] * num_classes + classes[used])
    pair_image, pair_class = np.divmod(pairs, num_classes)
    frequency = np.bincount(pair_class, minlength=num_classes) / len(indices)
    with np.errstate(divide="ignore"):
        of_class = np.maximum(1.0, np.sqrt(threshold / frequency))
    factors = np.ones(len(records))
    np.maximum.at(factors, pair_image, of_class[pair_class])
    return torch.from_numpy(factors[indices]).float()


class TrainBatchSampler:
    """An endless iterable of the batches of this process, each a list of (position, index).

    The stream of indices is Detectron2's (TrainingSampler, or RepeatFactorTrainingSampler), each
    process taking every world-size-th element. Batches are then filled in order, separately for
    wide and for tall images if they are to be grouped: this happens on indices, before anything
    is read, so that skipping ahead costs next to nothing.

    Args:
        indices: int64 [k], the images of the data set that are trained on.
        batch_size: images per batch of this process.
        seed: of the stream; the same on all processes.
        start: number of batches to leave out at the beginning.
        tall: bool [k], the group of each image; None for no grouping.
        factors: float [k], the repeat factors; None for a uniform stream.
    """

    def __init__(
        self,
        indices: npt.NDArray[np.int64],
        *,
        batch_size: int,
        seed: int,
        start: int = 0,
        tall: npt.NDArray[np.bool_] | None = None,
        factors: torch.Tensor | None = None,
    ) -> None:
        self._indices = indices
        self._batch_size = batch_size
        self._start = start
        self._tall = tall
        # The samplers read the rank and the number of processes when they are made.
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()
        if factors is None:
            self._sampler = TrainingSampler(len(indices), shuffle=True, seed=seed)
        else:
            self._sampler = RepeatFactorTrainingSampler(factors, shuffle=True, seed=seed)

    def __iter__(self) -> Iterator[list[Sample]]:
        return islice(self._batches(), self._start, None)

    def _batches(self) -> Iterator[list[Sample]]:
        tall = np.zeros(len(self._indices), dtype=np.bool_) if self._tall is None else self._tall
        group_of, indices = tall.tolist(), self._indices.tolist()
        groups: tuple[list[Sample], list[Sample]] = ([], [])
        position = self._rank
        for chosen in self._sampler:
            group = groups[group_of[chosen]]
            group.append((position, indices[chosen]))
            position += self._world_size
            if len(group) == self._batch_size:
                yield group.copy()
                group.clear()
