"""From registered data sets to loaders of batches."""

import itertools
import logging
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import data as torchdata

from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import log_first_n

from .catalog import DatasetCatalog, MetadataCatalog
from .common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from .detection_utils import check_metadata_consistency
from .samplers import InferenceSampler, TrainingSampler

__all__ = [
    "build_batch_data_loader",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "get_detection_dataset_dicts",
    "print_instances_class_histogram",
]

_SEED_RANGE = 2**31
_NAME_WIDTH = 13  # of a class name in the histogram
_HISTOGRAM_COLUMNS = 6  # three pairs of class and count


def filter_images_with_only_crowd_annotations(dataset_dicts: Sequence[dict]) -> list[dict]:
    """Keep the images that have at least one annotation which is not a crowd."""
    kept = [d for d in dataset_dicts if any(a.get("iscrowd", 0) == 0 for a in d["annotations"])]
    logging.getLogger(__name__).info(
        f"Removed {len(dataset_dicts) - len(kept)} images with no usable annotations. "
        f"{len(kept)} images left."
    )
    return kept


def print_instances_class_histogram(
    dataset_dicts: Sequence[dict], class_names: Sequence[str]
) -> None:
    """Log how many instances (crowds left out) each class has.

    Raises:
        AssertionError: an annotation's ``category_id`` is outside ``class_names``.
    """
    from tabulate import tabulate

    num_classes = len(class_names)
    counts = np.zeros(num_classes, dtype=np.int64)
    for entry in dataset_dicts:
        ids = np.asarray(
            [a["category_id"] for a in entry["annotations"] if not a.get("iscrowd", 0)],
            dtype=np.int64,
        )
        if len(ids):
            assert ids.min() >= 0, f"Got an invalid category_id={ids.min()}"
            assert ids.max() < num_classes, (
                f"Got an invalid category_id={ids.max()} for a dataset of {num_classes} classes"
            )
        counts += np.bincount(ids, minlength=num_classes)

    cells: list[Any] = []
    for name, count in zip(class_names, counts, strict=True):
        cells += [name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 2] + "..", int(count)]
    columns = min(_HISTOGRAM_COLUMNS, len(cells))
    cells += [None] * (-len(cells) % columns)
    total = counts.sum()
    if num_classes > 1:
        cells += ["total", int(total)]
    cells += [None] * (-len(cells) % columns)
    table = tabulate(
        [cells[i : i + columns] for i in range(0, len(cells), columns)],
        headers=["category", "#instances"] * (columns // 2),
        tablefmt="pipe",
        numalign="left",
        stralign="center",
    )
    log_first_n(
        logging.INFO,
        f"Distribution of instances among all {num_classes} categories:\n{table}",
        key="message",
    )


def get_detection_dataset_dicts(
    names: str | Sequence[str], filter_empty: bool = True, *, check_consistency: bool = True
) -> Any:
    """Load registered data sets and join them.

    Args:
        names: One name or several.
        filter_empty: Leave out images without an annotation that is not a crowd.
        check_consistency: Insist that all name the same classes.

    Returns:
        The joined list of dataset dicts; where the registered functions give torch data sets, their
        concatenation.
    """
    names = [names] if isinstance(names, str) else list(names)
    assert len(names), names
    loaded = [DatasetCatalog.get(name) for name in names]
    if isinstance(loaded[0], torchdata.Dataset):
        return torchdata.ConcatDataset(loaded) if len(loaded) > 1 else loaded[0]
    for name, dicts in zip(names, loaded, strict=True):
        assert len(dicts), f"Dataset '{name}' is empty!"

    joined = list(itertools.chain.from_iterable(loaded))
    has_instances = "annotations" in joined[0]
    if filter_empty and has_instances:
        joined = filter_images_with_only_crowd_annotations(joined)
    if check_consistency and has_instances:
        metadata = MetadataCatalog.get(names[0])
        class_names = metadata.get("thing_classes")
        if class_names is not None:
            check_metadata_consistency("thing_classes", names)
            print_instances_class_histogram(joined, class_names)
    assert len(joined), "No valid data found in {}.".format(",".join(names))
    return joined


def build_batch_data_loader(
    dataset: Any,
    sampler: torchdata.Sampler | None,
    total_batch_size: int | None,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    drop_last: bool = True,
    single_gpu_batch_size: int | None = None,
    prefetch_factor: int | None = 2,
    persistent_workers: bool = False,
    pin_memory: bool = False,
    seed: int | None = None,
    **kwargs: Any,
) -> Iterable[list]:
    """Batch a data set into lists of samples.

    Args:
        dataset: Map-style data set, or an iterable one.
        sampler: Order of the indices; None exactly if ``dataset`` is iterable.
        total_batch_size: Samples per iteration over all processes.
        aspect_ratio_grouping: See :class:`~detectron2.data.common.AspectRatioGroupedDataset`.
        num_workers: Loading processes.
        collate_fn: What to make of a list of samples; None leaves the list.
        drop_last: Leave out a last, incomplete batch.
        single_gpu_batch_size: Samples per iteration and process, instead of ``total_batch_size``.
        prefetch_factor: Batches each worker prepares ahead; only with workers.
        persistent_workers: Keep the workers between passes.
        pin_memory: See ``torch.utils.data.DataLoader``.
        seed: Seed from which the workers' seeds are drawn.
        **kwargs: For ``torch.utils.data.DataLoader``.
    """
    batch_size = _per_process_batch_size(total_batch_size, single_gpu_batch_size)
    if isinstance(dataset, torchdata.IterableDataset):
        assert sampler is None, "sampler must be None if dataset is IterableDataset"
    else:
        assert sampler is not None, "a map-style dataset needs a sampler"
        # A worker takes whole batches of indices, so that batches keep the sampler's order.
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=batch_size)
    if seed is not None:
        kwargs["generator"] = torch.Generator().manual_seed(seed)
    if num_workers > 0:
        kwargs["prefetch_factor"] = prefetch_factor
    kwargs.update(
        num_workers=num_workers,
        persistent_workers=persistent_workers,
        pin_memory=pin_memory,
        worker_init_fn=worker_init_reset_seed,
    )
    if not aspect_ratio_grouping:
        collate_fn = trivial_batch_collator if collate_fn is None else collate_fn
        return torchdata.DataLoader(
            dataset, batch_size=batch_size, drop_last=drop_last, collate_fn=collate_fn, **kwargs
        )
    assert drop_last, "Aspect ratio grouping will drop incomplete batches."
    loader = torchdata.DataLoader(dataset, collate_fn=operator.itemgetter(0), **kwargs)
    batches: Any = AspectRatioGroupedDataset(loader, batch_size)
    if collate_fn is not None:
        batches = MapDataset(batches, collate_fn)
    return batches


def _per_process_batch_size(total: int | None, single: int | None) -> int:
    if single:
        if total:
            raise ValueError(
                "total_batch_size and single_gpu_batch_size are mutually incompatible. "
                "Please specify only one."
            )
        return single
    world_size = comm.get_world_size()
    divisible = total is not None and total > 0 and total % world_size == 0
    assert divisible, (
        f"Total batch size ({total}) must be divisible by the number of gpus ({world_size})."
    )
    return total // world_size


def build_detection_train_loader(
    dataset: Any,
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: torchdata.Sampler | None = None,
    total_batch_size: int | None,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    **kwargs: Any,
) -> Iterable[list]:
    """Loader of training batches, without end.

    Args:
        dataset: List of dataset dicts, or a torch data set.
        mapper: Makes of a dataset dict what the model takes; None leaves it.
        sampler: Order of the indices, :class:`TrainingSampler` by default.
        total_batch_size: Samples per iteration over all processes.
        aspect_ratio_grouping: Batch wide images with wide ones, high with high.
        num_workers: Loading processes.
        collate_fn: See :func:`build_batch_data_loader`.
        **kwargs: For :func:`build_batch_data_loader`.
    """
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper)
    if isinstance(dataset, torchdata.IterableDataset):
        assert sampler is None, "sampler must be None if dataset is IterableDataset"
    elif sampler is None:
        sampler = TrainingSampler(len(dataset))
    return build_batch_data_loader(
        dataset,
        sampler,
        total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        **kwargs,
    )


def build_detection_test_loader(
    dataset: Any,
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: torchdata.Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
) -> torchdata.DataLoader:
    """Loader that gives every sample once over all processes.

    Args:
        dataset: List of dataset dicts, or a torch data set.
        mapper: Makes of a dataset dict what the model takes.
        sampler: Order of the indices, :class:`InferenceSampler` by default.
        batch_size: Samples per batch of this process; the last batch may be smaller.
        num_workers: Loading processes.
        collate_fn: What to make of a list of samples; None leaves the list.
    """
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper)
    if isinstance(dataset, torchdata.IterableDataset):
        assert sampler is None, "sampler must be None if dataset is IterableDataset"
    elif sampler is None:
        sampler = InferenceSampler(len(dataset))
    return torchdata.DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=False,
        num_workers=num_workers,
        collate_fn=trivial_batch_collator if collate_fn is None else collate_fn,
    )


def trivial_batch_collator(batch: list) -> list:
    """Leave a batch the list that it is."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seed python's, numpy's and torch's generators of a worker, each worker differently."""
    seed_all_rng(torch.initial_seed() % _SEED_RANGE + worker_id)
