"""The loaders: batches of mapped samples, from worker processes or this one."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from d2proj.data.bad_image import BadImage, BadImageError, BadImageLog
from d2proj.data.batch_augmentations import BatchAugmentation
from d2proj.data.detection_data import DetectionData
from d2proj.data.mapper import DetectionMapper
from d2proj.data.samplers import Sample, TrainBatchSampler, repeat_factors
from d2proj.errors import InputError

Record = dict[str, Any]
Mapper = Callable[[Record], Record]
# So many bad images in a row mean a wrong folder or a dead disk, not a few damaged files.
_MAX_REPLACEMENTS = 20


def build_train_loader(
    data: DetectionData,
    *,
    batch_size: int,
    workers: int,
    augmentations: Sequence[Any],
    seed: int,
    batch_augmentations: Sequence[BatchAugmentation] = (),
    start_iter: int = 0,
    aspect_ratio_grouping: bool = True,
    repeat_threshold: float = 0.0,
    filter_empty: bool = True,
    on_bad_image: str = "raise",
    image_format: str = "BGR",
) -> "TrainLoader":
    """An endless loader of training batches for this process.

    What comes is a function of the data, the seed and the arguments alone: not of ``workers``, and
    with ``start_iter=k`` it is what an uninterrupted run gets from its k-th batch on.

    Args:
        data: from ``load_dataset``.
        batch_size: images per iteration, over all processes.
        workers: worker processes of this process; 0 reads in this one.
        augmentations: Detectron2's.
        seed: of the order and of the augmentations; the same on all processes.
        batch_augmentations: what happens to each batch after that, in order.
        start_iter: iterations that are already done.
        aspect_ratio_grouping: make batches of wide or of tall images only (less padding).
        repeat_threshold: class frequency below which images are repeated as in LVIS; 0: never.
        filter_empty: leave out images without boxes to train on.
        on_bad_image: "raise", or "skip": another image takes its place.
        image_format: order of the channels.

    Raises:
        InputError: a batch size that the processes cannot share, no image left to train on, or,
            while iterating, an image that cannot be used.
    """
    world_size = comm.get_world_size()
    if batch_size < 1 or batch_size % world_size:
        raise InputError(
            f"data.batch_size must be a positive multiple of the number of processes "
            f"({world_size}), not {batch_size}."
        )
    _check_workers(workers)
    indices: np.ndarray = np.arange(len(data))
    if filter_empty:
        indices = np.flatnonzero(data.dicts.boxes_per_image(crowd=False))
    if not len(indices):
        raise InputError(f"{data.name}: none of its {len(data)} images has a box to train on.")
    tall = data.dicts.heights[indices] >= data.dicts.widths[indices]
    sampler = TrainBatchSampler(
        indices,
        batch_size=batch_size // world_size,
        seed=seed,
        start=start_iter,
        tall=tall if aspect_ratio_grouping else None,
        factors=repeat_factors(data.dicts, indices, repeat_threshold) if repeat_threshold else None,
    )
    mapper = DetectionMapper(augmentations, image_format=image_format, training=True)
    samples = SeededSamples(data.dicts, mapper, seed=seed, replacements=indices)
    dataset = SeededBatches(samples, batch_augmentations, seed=seed)
    numbered = _Numbered(sampler, start_iter)
    return TrainLoader(dataset, numbered, workers, BadImageLog(on_bad_image))


def build_val_loader(
    data: DetectionData,
    *,
    batch_size: int = 1,
    workers: int,
    augmentations: Sequence[Any],
    on_bad_image: str = "raise",
    image_format: str = "BGR",
) -> "ValLoader":
    """A loader that gives each image once, in order; each process gets a contiguous share.

    Args:
        data: from ``load_dataset``.
        batch_size: images per batch of one process.
        workers: worker processes of this process; 0 reads in this one.
        augmentations: Detectron2's; without anything random for a validation.
        on_bad_image: "raise", or "skip": the image is left out.
        image_format: order of the channels.
    """
    _check_workers(workers)
    if batch_size < 1:
        raise InputError(f"eval.batch_size must be positive, not {batch_size}.")
    mapper = DetectionMapper(augmentations, image_format=image_format, training=False)
    dataset = SeededSamples(data.dicts, mapper, seed=0, replacements=None)
    return ValLoader(dataset, batch_size, workers, BadImageLog(on_bad_image))


class SeededSamples(Dataset[Record | BadImage]):
    """Maps sample (position, index), with every random generator seeded from (seed, position).

    A multi-image augmentation finds here all it needs: the records, the mapper's ``read``, and
    generators to choose partners with.

    Args:
        records: dataset dicts.
        mapper: called with a dict, raises BadImageError.
        seed: see above.
        replacements: indices to draw from in place of a bad image; None: do not replace.
    """

    def __init__(
        self,
        records: Sequence[Record],
        mapper: Mapper,
        *,
        seed: int,
        replacements: np.ndarray | None,
    ) -> None:
        self._records = records
        self._mapper = mapper
        self._seed = seed
        self._replacements = replacements

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, sample: Sample) -> Record:
        """The mapped sample; ``bad_images`` in it lists what it took the place of.

        A sample for which there is nothing (a bad image and no replacement) is {} but for that.
        """
        position, index = sample
        bad: list[BadImage] = []
        with seeded_generators(self._seed, position):
            for _ in range(_MAX_REPLACEMENTS):
                try:
                    return {**self._mapper(self._records[index]), "bad_images": bad}
                except BadImageError as error:
                    bad.append(BadImage(error.path, error.reason))
                if self._replacements is None:
                    return {"bad_images": bad}
                index = int(self._replacements[random.randrange(len(self._replacements))])
        return {"bad_images": bad}


class SeededBatches(Dataset[list[Record]]):
    """Batch (iteration, samples): the mapped samples, after the batch augmentations.

    Args:
        samples: maps each sample.
        augmentations: of the whole batch, in order.
        seed: given to them, and of the generators that they find.
    """

    def __init__(
        self, samples: SeededSamples, augmentations: Sequence[BatchAugmentation], *, seed: int
    ) -> None:
        self._samples = samples
        self._augmentations = list(augmentations)
        self._seed = seed

    def __getitem__(self, batch: tuple[int, list[Sample]]) -> list[Record]:
        """The batch of an iteration; left alone where an image found no replacement."""
        iteration, samples = batch
        records = [self._samples[sample] for sample in samples]
        if not all("image" in record for record in records):
            return records
        # The position of the first sample: no other process, and no other iteration, has it. The
        # further word tells this stream from that sample's own.
        with seeded_generators(self._seed, samples[0][0], 1):
            for augmentation in self._augmentations:
                records = augmentation(records, iteration=iteration, seed=self._seed)
        return records


class _Numbered:
    """Batches of samples, each with its iteration."""

    def __init__(self, batches: Iterable[list[Sample]], start: int) -> None:
        self._batches = batches
        self._start = start

    def __iter__(self) -> Iterator[tuple[int, list[Sample]]]:
        return enumerate(self._batches, self._start)


class seeded_generators:
    """Seeds Python's, numpy's and torch's (CPU) generators, and restores them afterwards.

    It must be numpy's global one, which NPY002 objects to: Detectron2's augmentations draw from it.
    Of torch's only the CPU's: ``torch.manual_seed`` would reseed the GPU of a process that loads
    without workers.
    """

    def __init__(self, *entropy: int) -> None:
        # Three independent words for three generators.
        self._words = np.random.SeedSequence(entropy).generate_state(3).tolist()

    def __enter__(self) -> None:
        self._saved = (
            random.getstate(),
            np.random.get_state(),  # noqa: NPY002
            torch.default_generator.get_state(),
        )
        random.seed(self._words[0])
        np.random.seed(self._words[1])  # noqa: NPY002
        torch.default_generator.manual_seed(self._words[2])

    def __exit__(self, *exception: object) -> None:
        python, numpy, torch_state = self._saved
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.default_generator.set_state(torch_state)


class TrainLoader:
    """An endless iterable of batches, lists of dicts in Detectron2's format.

    Its workers live as long as the iterator.

    Attributes:
        bad_images: path -> how many times it was met, in this process.
    """

    def __init__(
        self,
        dataset: SeededBatches,
        batches: Iterable[tuple[int, list[Sample]]],
        workers: int,
        log: BadImageLog,
    ) -> None:
        self._loader = _data_loader(dataset, workers, sampler=batches, batch_size=None)
        self._log = log
        self.bad_images = log.counts

    def __iter__(self) -> Iterator[list[Record]]:
        for batch in _until_dropped(self._loader):
            for sample in batch:
                bad = sample.pop("bad_images")
                for entry in bad:
                    self._log.add(entry)
                if "image" not in sample:
                    raise InputError(
                        f"{len(bad)} images in a row cannot be used, the last {bad[-1].path}: "
                        f"{bad[-1].reason}."
                    )
            yield batch


class ValLoader:
    """A sized iterable of batches, lists of dicts in Detectron2's format, each image once.

    Attributes:
        bad_images: path -> how many times it was met, in this process.
    """

    def __init__(
        self, dataset: SeededSamples, batch_size: int, workers: int, log: BadImageLog
    ) -> None:
        # Positions do not matter here, but __getitem__ takes a pair.
        indices = list(InferenceSampler(len(dataset)))
        starts = range(0, len(indices), batch_size)
        batches = [[(i, i) for i in indices[start : start + batch_size]] for start in starts]
        self._loader = _data_loader(dataset, workers, batch_sampler=batches)
        self._log = log
        self.bad_images = log.counts
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[Record]]:
        for batch in _until_dropped(self._loader):
            for sample in batch:
                for entry in sample.pop("bad_images"):
                    self._log.add(entry)
            if good := [sample for sample in batch if "image" in sample]:
                yield good


def _data_loader(dataset: Dataset[Any], workers: int, **batches: Any) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        **batches,
        num_workers=workers,
        collate_fn=_as_list,
        # Iterating draws a seed for the workers, which must not come from the model's generator.
        generator=torch.Generator().manual_seed(0),
    )


def _until_dropped(loader: DataLoader[Any]) -> Iterator[list[Record]]:
    """The loader's batches; the workers end when the caller drops this or raises.

    Left to the garbage collector, the workers of an iterator that an exception's traceback still
    holds are joined late and only after a timeout of seconds.
    """
    batches = iter(loader)
    try:
        while (batch := next(batches, None)) is not None:
            yield batch
    finally:
        del batches


def _as_list(batch: list[Record]) -> list[Record]:
    return batch


def _check_workers(workers: int) -> None:
    if workers < 0:
        raise InputError(f"data.workers must not be negative, not {workers}.")
