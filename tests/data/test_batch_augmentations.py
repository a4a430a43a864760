"""Augmentations of whole batches: independent of the workers, resumable, equal in all processes."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from PIL import Image

from d2proj.data import BatchAugmentation, DetectionData, MultiScale, build_train_loader


class Noise(BatchAugmentation):
    """Writes down what it is called with and what it draws."""

    def __call__(self, batch: list[dict[str, Any]], *, iteration: int, seed: int) -> Any:
        draws = (float(torch.rand(())), float(np.random.rand()))  # noqa: NPY002
        return [{**sample, "call": (iteration, seed, draws)} for sample in batch]


STAGES = [MultiScale(min_size=32, max_size=96, step=32, period=2), Noise()]


def batches(data: DetectionData, count: int, **changes: Any) -> list[list[dict[str, Any]]]:
    arguments: dict[str, Any] = {
        "batch_size": 2,
        "workers": 0,
        "augmentations": [T.Resize((96, 96)), T.RandomFlip()],
        "batch_augmentations": STAGES,
        "seed": 5,
        **changes,
    }
    return list(islice(build_train_loader(data, **arguments), count))


def summary(found: list[list[dict[str, Any]]]) -> list[Any]:
    return [
        (s["image_id"], s["call"], s["image"].tolist(), s["instances"].gt_boxes.tensor.tolist())
        for batch in found
        for s in batch
    ]


def test_workers_and_interruptions_do_not_matter(small: DetectionData) -> None:
    expected = batches(small, 9)
    assert summary(batches(small, 9, workers=2)) == summary(expected)
    for start in (1, 5):
        assert summary(batches(small, 9 - start, start_iter=start)) == summary(expected[start:])
    assert [batch[0]["call"][:2] for batch in expected] == [(i, 5) for i in range(9)]
    assert len({batch[0]["call"][2] for batch in expected}) == 9
    other = batches(small, 9, seed=6)
    assert {b[0]["call"][2] for b in other}.isdisjoint({b[0]["call"][2] for b in expected})


def test_every_process_takes_the_same_size(
    small: DetectionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        found[rank] = batches(small, 12, batch_size=4)
    shapes = [[[s["image"].shape for s in batch] for batch in found[rank]] for rank in (0, 1)]
    assert shapes[0] == shapes[1]
    sizes = [batch[0][1] for batch in shapes[0]]
    assert sizes[0::2] == sizes[1::2]  # a size lasts for period=2 iterations
    assert set(sizes) == {32, 64, 96}
    # What comes from the global generators is the process's own.
    draws = [{batch[0]["call"][2] for batch in found[rank]} for rank in (0, 1)]
    assert draws[0].isdisjoint(draws[1])


def test_sizes_are_all_drawn_and_as_often() -> None:
    scale = MultiScale()
    assert scale.sizes == [320, 352, 384, 416, 448, 480, 512, 544, 576, 608]
    drawn = np.array([scale.size(i, seed=0) for i in range(0, 20_000, 10)])
    counts = [np.count_nonzero(drawn == size) for size in scale.sizes]
    assert min(counts) > 150
    assert max(counts) < 260
    assert all(scale.size(i, seed=3) == scale.size(10, seed=3) for i in range(10, 20))


def test_boxes_are_scaled_with_the_image() -> None:
    """A white box on black stays where its box says; images of a batch keep their proportions."""
    wide = torch.zeros(3, 200, 400, dtype=torch.uint8)
    wide[:, 40:120, 100:300] = 255
    tall = torch.zeros(3, 300, 100, dtype=torch.uint8)
    samples = []
    for image, box in ((wide, [100.0, 40.0, 300.0, 120.0]), (tall, [0.0, 0.0, 100.0, 300.0])):
        size = (image.shape[1], image.shape[2])
        truth = Instances(size, gt_boxes=Boxes(torch.tensor([box])), gt_classes=torch.tensor([1]))
        samples.append({"image": image, "instances": truth})
    scale = MultiScale(min_size=200, max_size=200, step=32, period=1)
    one, other = scale(samples, iteration=0, seed=0)
    assert one["image"].shape == (3, 100, 200)
    assert other["image"].shape == (3, 150, 50)
    assert one["image"].dtype == torch.uint8
    assert one["instances"].image_size == (100, 200)
    assert one["instances"].gt_boxes.tensor.tolist() == [[50, 20, 150, 60]]
    assert other["instances"].gt_boxes.tensor.tolist() == [[0, 0, 50, 150]]
    assert one["instances"].gt_classes.tolist() == [1]
    white = torch.zeros(100, 200, dtype=torch.bool)
    white[20:60, 50:150] = True
    assert torch.equal(one["image"][0] > 127, white)
    # Pillow's bilinear resize, which darknet's other images are read with.
    noise = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
    empty = Instances((90, 120), gt_boxes=Boxes(torch.zeros(0, 4)))
    scale = MultiScale(min_size=60, max_size=60, step=32, period=1)
    (small,) = scale([{"image": noise, "instances": empty}], iteration=0, seed=0)
    pillow = Image.fromarray(noise.permute(1, 2, 0).numpy()).resize((60, 45), Image.BILINEAR)
    difference = small["image"].permute(1, 2, 0).int() - torch.from_numpy(np.array(pillow)).int()
    assert difference.abs().max() <= 1
    assert len(small["instances"]) == 0


@pytest.mark.parametrize("wrong", [{"min_size": 700}, {"step": 0}, {"period": 0}, {"min_size": 0}])
def test_wrong_arguments(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="MultiScale needs"):
        MultiScale(**wrong)
