"""The loaders: independent of the workers, resumable, shared out, honest about damage."""

import random
from collections.abc import Callable, Iterable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.utils import comm

from d2proj.data import DetectionData, build_train_loader, build_val_loader, load_dataset
from d2proj.data.loaders import SeededSamples, TrainLoader
from d2proj.data.mapper import DetectionMapper
from d2proj.errors import InputError

RANDOM = [T.ResizeShortestEdge((20, 60), 80), T.RandomFlip(), T.RandomBrightness(0.5, 1.5)]
Batches = list[list[dict[str, Any]]]


def train_loader(data: DetectionData, **changes: Any) -> TrainLoader:
    arguments = {"batch_size": 2, "workers": 0, "augmentations": RANDOM, "seed": 5, **changes}
    return build_train_loader(data, **arguments)


def first(loader: Iterable[list[dict[str, Any]]], count: int) -> Batches:
    return list(islice(loader, count))


def assert_same(a: Batches, b: Batches) -> None:
    assert [[s["image_id"] for s in batch] for batch in a] == [
        [s["image_id"] for s in batch] for batch in b
    ]
    for one, other in zip(chain(*a), chain(*b), strict=True):
        assert one.keys() == other.keys()
        assert torch.equal(one["image"], other["image"])
        boxes = [sample["instances"].gt_boxes.tensor for sample in (one, other)]
        assert torch.equal(*boxes)


def generator_states() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return random.getstate(), kind, list(keys), rest, torch.get_rng_state().tolist()


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, size: int) -> None:
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    monkeypatch.setattr(comm, "get_world_size", lambda: size)


@pytest.mark.parametrize("grouping", [True, False])
def test_workers_and_the_global_generators_do_not_matter(
    grouping: bool, small: DetectionData
) -> None:
    expected = first(train_loader(small, aspect_ratio_grouping=grouping), 12)
    random.seed(1)
    np.random.seed(2)  # noqa: NPY002 - Detectron2's augmentations draw from it
    torch.manual_seed(3)
    before = generator_states()
    for workers in (0, 2):
        found = first(train_loader(small, workers=workers, aspect_ratio_grouping=grouping), 12)
        assert_same(found, expected)
    assert generator_states() == before
    # The augmentations do draw: the same image comes in different shapes.
    assert len({tuple(s["image"].shape) for s in chain(*expected)}) > 5
    other_seed = first(train_loader(small, seed=6), 12)
    assert [s["image_id"] for b in other_seed for s in b] != [
        s["image_id"] for b in expected for s in b
    ]


def test_augmentations_depend_on_seed_and_position(small: DetectionData) -> None:
    mapper = DetectionMapper(RANDOM, training=True)

    def shapes(seed: int, positions: list[int]) -> list[tuple[int, ...]]:
        samples = SeededSamples(small.dicts, mapper, seed=seed, replacements=None)
        return [tuple(samples[position, 1]["image"].shape) for position in positions]

    assert shapes(1, [0, 1, 2, 3]) == shapes(1, [3, 2, 1, 0])[::-1]
    assert shapes(1, [0, 1, 2, 3]) != shapes(2, [0, 1, 2, 3])
    assert len(set(shapes(1, [0, 1, 2, 3]))) > 1


@pytest.mark.parametrize(
    "changes", [{}, {"aspect_ratio_grouping": False}, {"repeat_threshold": 0.9}, {"workers": 2}]
)
def test_start_iter_is_skipping_batches(changes: dict[str, Any], small: DetectionData) -> None:
    expected = first(train_loader(small, **changes), 11)
    assert_same(first(train_loader(small, start_iter=7, **changes), 4), expected[7:])


def test_skipping_ahead_costs_little(small: DetectionData) -> None:
    # 100 000 batches take about 0.1 s; reading them would take minutes.
    assert len(first(train_loader(small, start_iter=100_000), 1)) == 1


def test_processes_share_each_epoch(small: DetectionData, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"aspect_ratio_grouping": False, "filter_empty": False, "augmentations": RANDOM}
    whole = list(chain(*first(train_loader(small, batch_size=2, **options), 7)))
    parts = []
    for rank in range(2):
        as_rank(monkeypatch, rank, 2)
        batches = first(train_loader(small, batch_size=2, **options), 7)
        assert {len(batch) for batch in batches} == {1}
        parts.append(list(chain(*batches)))
    # Sample n of the run is the same for any number of processes.
    assert_same([parts[0], parts[1]], [whole[0::2], whole[1::2]])
    assert sorted(s["image_id"] for s in whole[:7]) == [10, 11, 12, 13, 14, 15, 16]
    with pytest.raises(InputError, match=r"multiple of the number of processes \(2\), not 3"):
        train_loader(small, batch_size=3)


def test_groups_hold_wide_or_tall_images_and_lose_none(small: DetectionData) -> None:
    batches = first(train_loader(small, augmentations=[], batch_size=3, filter_empty=False), 28)
    for batch in batches:
        assert len({sample["width"] > sample["height"] for sample in batch}) == 1
    seen = [sample["image_id"] for batch in batches for sample in batch]
    counts = [seen.count(image) for image in range(10, 17)]
    assert min(counts) >= 10  # of 12 epochs, up to what still waits in the two groups
    assert max(counts) <= 13


def test_empty_images_are_left_out_or_kept(small: DetectionData) -> None:
    kept = {s["image_id"] for b in first(train_loader(small, filter_empty=False), 14) for s in b}
    assert kept == set(range(10, 17))
    left = {s["image_id"] for b in first(train_loader(small), 14) for s in b}
    assert left == {11, 12, 14, 15}


def test_only_empty_images_is_an_error(
    coco_node: Callable[..., Any], coco_document: dict[str, Any]
) -> None:
    coco_document["annotations"] = []
    data = load_dataset(coco_node(coco_document), "train")
    with pytest.raises(InputError, match="none of its 7 images has a box to train on"):
        train_loader(data)
    assert len(first(train_loader(data, filter_empty=False), 3)) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_named(workers: int, small: DetectionData) -> None:
    path = Path(small.dicts[1]["file_name"])
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(
        InputError, match=r"1\.png: the image cannot be used: .*truncated"
    ) as caught:
        first(train_loader(small, workers=workers), 10)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"1\.png: the image cannot be used"):
        list(build_val_loader(small, workers=workers, augmentations=[]))


def test_skipped_images_are_replaced_counted_and_reported_once(
    small: DetectionData, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(small.dicts[1]["file_name"])
    path.write_bytes(b"")
    loader = train_loader(small, on_bad_image="skip")
    expected = first(loader, 20)
    assert all(len(batch) == 2 for batch in expected)
    assert {s["image_id"] for b in expected for s in b} == {12, 14, 15}
    (met,) = loader.bad_images.items()
    assert met[0] == str(path)
    assert met[1] > 5
    assert sum("skipped" in record.message for record in caplog.records) == 1
    assert_same(first(train_loader(small, on_bad_image="skip", workers=2), 20), expected)
    assert_same(first(train_loader(small, on_bad_image="skip", start_iter=9), 11), expected[9:])


def test_when_every_image_is_bad(small: DetectionData) -> None:
    for record in small.dicts:
        Path(record["file_name"]).unlink()
    with pytest.raises(InputError, match=r"20 images in a row .*, the last .*not exist"):
        first(train_loader(small, on_bad_image="skip"), 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_gives_each_image_once_in_order(workers: int, small: DetectionData) -> None:
    loader = build_val_loader(small, batch_size=3, workers=workers, augmentations=[T.Resize(32)])
    for _ in range(2):
        batches = list(loader)
        assert [[s["image_id"] for s in b] for b in batches] == [
            [10, 11, 12],
            [13, 14, 15],
            [16],
        ]
    assert len(loader) == 3
    assert "instances" not in batches[0][0]


def test_validation_over_processes(small: DetectionData, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for rank in range(3):
        as_rank(monkeypatch, rank, 3)
        loader = build_val_loader(small, workers=0, augmentations=[])
        seen.append([sample["image_id"] for batch in loader for sample in batch])
    assert list(chain(*seen)) == list(range(10, 17))
    assert max(map(len, seen)) - min(map(len, seen)) <= 1


def test_validation_leaves_bad_images_out(small: DetectionData) -> None:
    for index in (1, 4):
        Path(small.dicts[index]["file_name"]).write_bytes(b"")
    loader = build_val_loader(small, workers=0, augmentations=[], on_bad_image="skip")
    assert [s["image_id"] for b in loader for s in b] == [10, 12, 13, 15, 16]
    assert sum(loader.bad_images.values()) == 2


def test_arguments_are_checked(small: DetectionData) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"batch_size": 0}, "data.batch_size must be a positive multiple"),
        ({"workers": -1}, "data.workers must not be negative"),
        ({"on_bad_image": "ignore"}, "data.on_bad_image must be raise or skip, not 'ignore'"),
    ]
    for changes, message in cases:
        with pytest.raises(InputError, match=message):
            train_loader(small, **changes)
