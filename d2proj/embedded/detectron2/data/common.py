"""Data sets that wrap others: a list shared between processes, a mapping, a grouping."""

import contextlib
import copy
import itertools
import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils import data as torchdata

from detectron2.utils.serialize import PicklableWrapper

__all__ = ["AspectRatioGroupedDataset", "DatasetFromList", "MapDataset", "ToIterableDataset"]

_WARN_AFTER_RETRIES = 3


def _shard_by_worker(iterable: Iterable, chunk_size: int) -> Iterator:
    """Give each DataLoader worker every ``num_workers``-th chunk of ``chunk_size`` items."""
    worker = torchdata.get_worker_info()
    if worker is None or worker.num_workers == 1:
        yield from iterable
        return
    for position, item in enumerate(iterable):
        if position // chunk_size % worker.num_workers == worker.id:
            yield item


class _MappedIterable(torchdata.IterableDataset):
    """The iterable form of :class:`MapDataset`: items mapped to None are left out."""

    def __init__(self, dataset: Iterable, map_func: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]  # not every iterable has a length

    def __iter__(self) -> Iterator:
        for item in self._dataset:
            mapped = self._map_func(item)
            if mapped is not None:
                yield mapped


class MapDataset(torchdata.Dataset):
    """A data set whose items pass through ``map_func``.

    ``map_func`` may return None for an item that cannot be used. A map-style data set then tries
    other items, drawn at random, until one works; an iterable one goes on to the next.
    """

    def __new__(cls, dataset: Any, map_func: Callable[[Any], Any]) -> Any:
        if isinstance(dataset, torchdata.IterableDataset):
            return _MappedIterable(dataset, map_func)
        return super().__new__(cls)

    def __init__(self, dataset: Any, map_func: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        # Lambdas are common here, and plain pickle refuses them.
        self._map_func = PicklableWrapper(map_func)
        self._rng = random.Random(42)
        self._candidates = set(range(len(dataset)))

    def __getnewargs__(self) -> tuple[Any, Callable[[Any], Any]]:
        # __new__ has arguments, which pickle must be told.
        return self._dataset, self._map_func

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        index = int(idx)
        for attempt in itertools.count(1):
            item = self._map_func(self._dataset[index])
            if item is not None:
                self._candidates.add(index)
                return item
            self._candidates.discard(index)
            if attempt >= _WARN_AFTER_RETRIES:
                logging.getLogger(__name__).warning(
                    f"Failed to apply `_map_func` for idx: {idx}, retry count: {attempt}"
                )
            index = self._rng.sample(sorted(self._candidates), k=1)[0]
        raise AssertionError("unreachable: the loop above does not end")


class _TorchSerializedList:
    """A list whose items lie pickled, one after the other, in one uint8 tensor.

    Thousands of small Python objects are copied page by page into every forked worker as their
    reference counts change; one tensor is not, and goes to a spawned worker by shared memory.
    """

    def __init__(self, lst: Sequence) -> None:
        buffer = bytearray()
        ends = torch.empty(len(lst), dtype=torch.int64)
        for position, item in enumerate(lst):
            buffer += pickle.dumps(item, protocol=-1)
            ends[position] = len(buffer)
        self._ends = ends
        # frombuffer shares the bytearray's memory and refuses an empty one.
        self._bytes = (
            torch.frombuffer(buffer, dtype=torch.uint8) if buffer else torch.empty(0).byte()
        )

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, idx: int) -> Any:
        start = 0 if idx == 0 else self._ends[idx - 1].item()
        return pickle.loads(self._bytes[start : self._ends[idx].item()].numpy().data)


_default_serialize: Callable[[list], Any] = _TorchSerializedList


@contextlib.contextmanager
def set_default_dataset_from_list_serialize_method(new: Callable[[list], Any]) -> Iterator[None]:
    """Within the context, ``DatasetFromList(..., serialize=True)`` stores its list as ``new``."""
    global _default_serialize
    old, _default_serialize = _default_serialize, new
    try:
        yield
    finally:
        _default_serialize = old


class DatasetFromList(torchdata.Dataset):
    """A list as a data set.

    Args:
        lst: The items.
        copy: Hand out deep copies, so that a caller may change what it gets. Serialised items are
            fresh objects in any case.
        serialize: Store the items in a form that worker processes share; a callable that turns the
            list into such a store, or True for the usual one.
    """

    def __init__(
        self, lst: list, copy: bool = True, serialize: bool | Callable[[list], Any] = True
    ) -> None:
        if not isinstance(serialize, bool) and not callable(serialize):
            raise TypeError(f"serialize must be a bool or a callable, got {serialize!r}")
        self._serialized = bool(serialize)
        self._copy = copy and not self._serialized
        method = serialize if callable(serialize) else _default_serialize
        self._list = method(lst) if self._serialized else lst

    def __len__(self) -> int:
        return len(self._list)

    def __getitem__(self, idx: int) -> Any:
        return copy.deepcopy(self._list[idx]) if self._copy else self._list[idx]


class ToIterableDataset(torchdata.IterableDataset):
    """A map-style data set, walked in the order of a sampler.

    Args:
        dataset: Map-style data set.
        sampler: Iterable of indices; each worker runs through all of it, so it must be cheap.
        shard_sampler: Let each DataLoader worker take its share; False if the sampler shards.
        shard_chunk_size: How many successive indices a worker takes at a time.
    """

    def __init__(
        self,
        dataset: torchdata.Dataset,
        sampler: torchdata.Sampler,
        shard_sampler: bool = True,
        shard_chunk_size: int = 1,
    ) -> None:
        assert not isinstance(dataset, torchdata.IterableDataset), dataset
        assert isinstance(sampler, torchdata.Sampler), sampler
        self.dataset = dataset
        self.sampler = sampler
        self.shard_sampler = shard_sampler
        self.shard_chunk_size = shard_chunk_size

    def __iter__(self) -> Iterator:
        indices: Iterable[int] = self.sampler
        if self.shard_sampler:
            indices = _shard_by_worker(self.sampler, self.shard_chunk_size)
        for index in indices:
            yield self.dataset[index]

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]  # finite samplers have a length


class AspectRatioGroupedDataset(torchdata.IterableDataset):
    """Batches of dicts that are all wider than high, or all not, to save padding.

    Args:
        dataset: Iterable of dicts with keys ``width`` and ``height``.
        batch_size: Dicts per batch; what does not fill a batch waits for the next round.
    """

    def __init__(self, dataset: Iterable[dict], batch_size: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self._buckets: list[list[dict]] = [[], []]

    def __iter__(self) -> Iterator[list[dict]]:
        for sample in self.dataset:
            bucket = self._buckets[0 if sample["width"] > sample["height"] else 1]
            bucket.append(sample)
            if len(bucket) == self.batch_size:
                batch = bucket[:]
                # Emptied before the yield: the caller may never come back.
                bucket.clear()
                yield batch
