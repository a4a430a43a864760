"""Which samples a process sees, and in what order: in training without end, in evaluation once."""

import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from detectron2.utils import comm

_logger = logging.getLogger(__name__)


class _EndlessSampler(Sampler[int]):
    """One endless stream of indices, the same in all processes, of which each takes its share."""

    def __init__(self, shuffle: bool, seed: int | None) -> None:
        self._shuffle = shuffle
        # Without a seed the processes must agree on one: this is a synchronisation point.
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            yield from self._epoch(generator).tolist()

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        """One pass over the data set: int64[M] indices."""
        raise AssertionError(f"{type(self).__name__} does not define its epochs")

    def _order(self, count: int, generator: torch.Generator) -> torch.Tensor:
        if self._shuffle:
            return torch.randperm(count, generator=generator)
        return torch.arange(count)


class TrainingSampler(_EndlessSampler):
    """``shuffle(range(size))`` for ever, dealt out in turn to the processes.

    Args:
        size: Number of samples in the data set.
        shuffle: Shuffle every pass anew; otherwise run through in order.
        seed: Seed of the shuffling, the same in all processes; None lets them draw one together.
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None) -> None:
        if not isinstance(size, int):
            raise TypeError(f"TrainingSampler(size=) expects an int. Got type {type(size)}.")
        if size <= 0:
            raise ValueError(f"TrainingSampler(size=) expects a positive int. Got {size}.")
        self._size = size
        super().__init__(shuffle, seed)

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        return self._order(self._size, generator)


class RandomSubsetTrainingSampler(TrainingSampler):
    """A :class:`TrainingSampler` over a random part of the data set, fixed for all of training.

    Args:
        size: Number of samples in the data set.
        subset_ratio: The part of them to keep, in (0, 1].
        shuffle: As in :class:`TrainingSampler`.
        seed_shuffle: Seed of the shuffling.
        seed_subset: Seed of the choice of the part.
    """

    def __init__(
        self,
        size: int,
        subset_ratio: float,
        shuffle: bool = True,
        seed_shuffle: int | None = None,
        seed_subset: int | None = None,
    ) -> None:
        super().__init__(size, shuffle, seed_shuffle)
        assert 0.0 < subset_ratio <= 1.0, subset_ratio
        if seed_subset is None:
            seed_subset = comm.shared_random_seed()
        generator = torch.Generator()
        generator.manual_seed(int(seed_subset))
        kept = int(size * subset_ratio)
        self._subset = torch.randperm(size, generator=generator)[:kept]
        _logger.info(f"Using RandomSubsetTrainingSampler: {kept} of {size} samples")

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        return self._subset[self._order(len(self._subset), generator)]


class RepeatFactorTrainingSampler(_EndlessSampler):
    """Like :class:`TrainingSampler`, but some samples come up more often than others.

    A factor's whole part is a number of repeats; its fraction is the probability of one more, drawn
    anew in every pass.

    Args:
        repeat_factors: float[N], one factor per sample.
        shuffle: As in :class:`TrainingSampler`.
        seed: As in :class:`TrainingSampler`.
    """

    def __init__(
        self, repeat_factors: torch.Tensor, *, shuffle: bool = True, seed: int | None = None
    ) -> None:
        super().__init__(shuffle, seed)
        self._whole = torch.trunc(repeat_factors)
        self._fraction = repeat_factors - self._whole

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: Sequence[dict], repeat_thresh: float, sqrt: bool = True
    ) -> torch.Tensor:
        """Repeat factors that show the images of rare classes more often (LVIS, appendix B.2).

        With ``f(c)`` the part of the images that contain class c, an image's factor is the largest
        ``max(1, sqrt(repeat_thresh / f(c)))`` of its classes; 1 if it has none.

        Args:
            dataset_dicts: Annotated dataset dicts.
            repeat_thresh: Classes in more than this part of the images are not repeated.
            sqrt: Whether to take the square root.

        Returns:
            float32[len(dataset_dicts)].
        """
        classes_of = [{a["category_id"] for a in d["annotations"]} for d in dataset_dicts]
        images_with = Counter(c for classes in classes_of for c in classes)
        factor_of = {}
        for category, images in images_with.items():
            ratio = repeat_thresh / (images / len(dataset_dicts))
            factor_of[category] = max(1.0, math.sqrt(ratio) if sqrt else ratio)
        factors = [max((factor_of[c] for c in cs), default=1.0) for cs in classes_of]
        return torch.tensor(factors, dtype=torch.float32)

    def _get_epoch_indices(self, generator: torch.Generator) -> torch.Tensor:
        draws = torch.rand(len(self._fraction), generator=generator)
        repeats = self._whole + (draws < self._fraction).float()
        return torch.repeat_interleave(torch.arange(len(repeats)), repeats.long())

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        indices = self._get_epoch_indices(generator)
        return indices[self._order(len(indices), generator)]


class InferenceSampler(Sampler[int]):
    """Every sample exactly once over all processes, in contiguous shares of nearly equal size.

    Args:
        size: Number of samples in the data set.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        assert size > 0, size
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()
        self._local_indices = self._get_local_indices(size, self._world_size, self._rank)

    @staticmethod
    def _get_local_indices(total_size: int, world_size: int, rank: int) -> range:
        share, left_over = divmod(total_size, world_size)
        # The first `left_over` processes take one more each.
        start = rank * share + min(rank, left_over)
        return range(start, start + share + (rank < left_over))

    def __iter__(self) -> Iterator[int]:
        yield from self._local_indices

    def __len__(self) -> int:
        return len(self._local_indices)
