"""Index streams of the samplers, some recorded from Detectron2."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.data.build import worker_init_reset_seed
from detectron2.data.samplers import (
    GroupedBatchSampler,
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)


def first(sampler, count):
    return list(itertools.islice(iter(sampler), count))


def test_training_sampler_is_torchs_permutations():
    generator = torch.Generator().manual_seed(7)
    expected = [torch.randperm(11, generator=generator).tolist() for _ in range(3)]
    assert first(TrainingSampler(11, seed=7), 33) == list(itertools.chain(*expected))
    assert first(TrainingSampler(3, shuffle=False), 7) == [0, 1, 2, 0, 1, 2, 0]
    with pytest.raises(ValueError, match="positive"):
        TrainingSampler(0)


def test_random_subset():
    stream = first(RandomSubsetTrainingSampler(20, 0.35, seed_shuffle=1, seed_subset=2), 70)
    counts = Counter(stream)
    assert len(counts) == 7
    assert set(counts.values()) == {10}
    other = first(RandomSubsetTrainingSampler(20, 0.35, seed_shuffle=9, seed_subset=2), 70)
    assert set(other) == set(counts)
    assert other != stream


def test_repeat_factors():
    dicts = [{"annotations": [{"category_id": c} for c in ids]} for ids in ([0], [0], [0, 1], [])]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dicts, 0.5)
    assert torch.allclose(factors, torch.tensor([1.0, 1.0, 2**0.5, 1.0]))
    epochs = 4000
    sampler = RepeatFactorTrainingSampler(torch.tensor([1.0, 2.5, 1.25]), seed=3)
    counts = Counter(first(sampler, int(4.75 * epochs)))
    total = sum(counts.values())
    for index, factor in enumerate((1.0, 2.5, 1.25)):
        assert counts[index] / total == pytest.approx(factor / 4.75, abs=0.01)


def test_repeat_factor_stream():
    sampler = RepeatFactorTrainingSampler(torch.tensor([1.0, 2.5, 1.25, 3.0]), seed=3)
    assert first(sampler, 16) == [0, 3, 1, 1, 3, 3, 2, 1, 3, 3, 1, 1, 2, 0, 1, 3]


@pytest.mark.parametrize(("size", "world"), [(10, 3), (2, 4), (16, 2), (1, 1)])
def test_inference_sampler_covers_once(size, world):
    shares = [InferenceSampler._get_local_indices(size, world, r) for r in range(world)]
    assert list(itertools.chain(*shares)) == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_grouped_batches():
    sampler = torch.utils.data.SequentialSampler(range(12))
    # Not list(...), which asks for a length.
    batches = [*iter(GroupedBatchSampler(sampler, [i % 2 for i in range(12)], 3))]
    assert batches == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]


def test_workers_are_seeded_apart():
    def draw(worker):
        torch.manual_seed(123)
        worker_init_reset_seed(worker)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw(0) == draw(0)
    assert len(set(draw(0)) | set(draw(1))) == 6
