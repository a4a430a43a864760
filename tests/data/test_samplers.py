"""Repeat factors against Detectron2's, and the columns that everything is computed from."""

import dataclasses
import pickle
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler

from d2proj.data import DetectionData, load_dataset
from d2proj.data.records import StringColumn
from d2proj.data.samplers import TrainBatchSampler, repeat_factors


def test_repeat_factors_equal_detectron2s(shared_data: Path) -> None:
    root = shared_data / "coco_val74"
    paths = {"json": str(root / "instances_val2017_subset.json"), "images": str(root / "images")}
    data = load_dataset({"format": "coco", "train": paths}, "train")
    # More crowds than the eight there are, so that whole classes are only that in some images.
    crowd = np.random.default_rng(0).random(len(data.dicts.boxes)) < 0.5
    records = dataclasses.replace(data.dicts, crowd=crowd)
    indices = np.flatnonzero(records.boxes_per_image(crowd=False))
    dicts = [records[i] for i in indices.tolist()]
    for record in dicts:
        record["annotations"] = [a for a in record["annotations"] if not a["iscrowd"]]
    for threshold in (0.001, 0.05, 0.5):
        expected = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dicts, threshold
        )
        found = repeat_factors(records, indices, threshold)
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-6)


def test_images_come_as_often_as_their_factor_says() -> None:
    factors = torch.tensor([1.0, 2.5, 1.0, 4.0])
    sampler = TrainBatchSampler(np.array([5, 6, 7, 8]), batch_size=2, seed=0, factors=factors)
    drawn = Counter(index for batch in islice(sampler, 1000) for _, index in batch)
    for index, factor in zip((5, 6, 7, 8), factors.tolist(), strict=True):
        assert abs(drawn[index] / 2000 - factor / 8.5) < 0.02


def test_positions_number_the_samples_of_the_run() -> None:
    sampler = TrainBatchSampler(np.arange(4), batch_size=3, seed=0)
    positions = [position for batch in islice(sampler, 5) for position, _ in batch]
    assert positions == list(range(15))


def test_strings_and_records_survive_and_compare(small: DetectionData) -> None:
    strings = ["", "a", "größe/ü.jpg", "\udcff"]
    column = StringColumn(strings)
    assert list(column) == strings
    assert column[-1] == strings[-1]
    assert column[1:3] == strings[1:3]
    again = pickle.loads(pickle.dumps(small.dicts))
    assert list(again) == list(small.dicts)
    assert small.dicts[-1] == small.dicts[len(small) - 1]
    assert small.dicts[1:3] == [small.dicts[1], small.dicts[2]]
