"""Which samples make which batch: a function of (seed, position) alone.

A *position* numbers the samples of the whole run, over all processes. What is drawn at random for
a sample depends on the seed and its position and on nothing else, so that the number of workers
does not matter and a run can be taken up at any iteration.
"""

from collections.abc import Iterator
from itertools import count, islice

import numpy as np
import numpy.typing as npt
import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import Sampler

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


class MixingSampler(Sampler[int]):
    """An endless stream of two groups of images, the second with a fixed share of each batch.

    Batch k of all processes has round((k + 1) B s) - round(k B s) images of the second group, at
    places drawn by the seed; each group comes in an order of its own, that of the first as if it
    were alone. Each process takes every world-size-th of the stream.

    Args:
        first, second: int64, the elements of the groups.
        share: s, of the second group, 0 to 1.
        batch_size: B, of all processes.
        seed: of the stream; the same on all processes.
        factors: repeat factors of the first group; None for a uniform stream.
    """

    def __init__(
        self,
        first: npt.NDArray[np.int64],
        second: npt.NDArray[np.int64],
        *,
        share: float,
        batch_size: int,
        seed: int,
        factors: torch.Tensor | None = None,
    ) -> None:
        places, order = np.random.SeedSequence(seed).generate_state(2).tolist()
        self._groups = (first.tolist(), second.tolist())
        self._orders = (_shuffled(len(first), factors, seed), _shuffled(len(second), None, order))
        self._share = share
        self._batch_size = batch_size
        self._seed = places
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        return islice(self._stream(), self._rank, None, self._world_size)

    def _stream(self) -> Iterator[int]:
        # Whole streams: it is the mixture that the processes share.
        orders = [order._infinite_indices() for order in self._orders]
        generator = torch.Generator().manual_seed(self._seed)
        for batch in count():
            before, after = (round(self._batch_size * self._share * (batch + k)) for k in (0, 1))
            for place in torch.randperm(self._batch_size, generator=generator).tolist():
                group = place < after - before
                yield self._groups[group][next(orders[group])]


def _shuffled(
    size: int, factors: torch.Tensor | None, seed: int
) -> TrainingSampler | RepeatFactorTrainingSampler:
    if factors is None:
        return TrainingSampler(size, shuffle=True, seed=seed)
    return RepeatFactorTrainingSampler(factors, shuffle=True, seed=seed)


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
        factors: float [k], the repeat factors; None for a uniform stream. Of a mixture, those of
            the images that are not labelled.
        labelled: bool [k], the images that have labels without boxes, some and not all of them:
            :class:`MixingSampler` mixes them with the others. None: one stream of all images.
        share: of labelled images, 0 to 1.
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
        labelled: npt.NDArray[np.bool_] | None = None,
        share: float = 0.0,
    ) -> None:
        self._sampler: Sampler[int]
        self._indices = indices
        self._batch_size = batch_size
        self._start = start
        self._tall = tall
        # The samplers read the rank and the number of processes when they are made.
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()
        if labelled is None:
            self._sampler = _shuffled(len(indices), factors, seed)
            return
        self._sampler = MixingSampler(
            np.flatnonzero(~labelled),
            np.flatnonzero(labelled),
            share=share,
            batch_size=batch_size * self._world_size,
            seed=seed,
            factors=factors,
        )

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
