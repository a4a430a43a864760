"""Boxes, Instances and ImageList, against loops over single boxes and images."""

import copy
import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import (
    Boxes,
    BoxMode,
    ImageList,
    Instances,
    pairwise_ioa,
    pairwise_iou,
    pairwise_point_box_distance,
)
from detectron2.structures.boxes import matched_pairwise_iou, pairwise_intersection


def random_boxes(count: int, seed: int, empty: bool = True) -> Boxes:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 4, generator=generator) * 20
    corners[:, 2:] += corners[:, :2]
    if empty:
        corners[0, 2] = corners[0, 0]
    return Boxes(corners)


def overlap(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def area(a: list[float]) -> float:
    return (a[2] - a[0]) * (a[3] - a[1])


def test_pairwise_measures_equal_a_loop() -> None:
    boxes1, boxes2 = random_boxes(9, 0), random_boxes(7, 1)
    for i, a in enumerate(boxes1.tensor.tolist()):
        for j, b in enumerate(boxes2.tensor.tolist()):
            shared = overlap(a, b)
            iou = shared / (area(a) + area(b) - shared) if shared else 0
            ioa = shared / area(b) if shared else 0
            assert float(pairwise_intersection(boxes1, boxes2)[i, j]) == pytest.approx(shared)
            assert float(pairwise_iou(boxes1, boxes2)[i, j]) == pytest.approx(iou, abs=1e-6)
            assert float(pairwise_ioa(boxes1, boxes2)[i, j]) == pytest.approx(ioa, abs=1e-6)


def test_matched_iou_is_the_diagonal() -> None:
    boxes1, boxes2 = random_boxes(8, 0, empty=False), random_boxes(8, 1)
    torch.testing.assert_close(
        matched_pairwise_iou(boxes1, boxes2), pairwise_iou(boxes1, boxes2).diagonal()
    )
    with pytest.raises(AssertionError):
        matched_pairwise_iou(boxes1, boxes2[:3])


def test_boxes_of_no_area_and_no_boxes() -> None:
    empty, none = Boxes(torch.zeros(2, 4)), Boxes(torch.zeros(0, 4))
    assert pairwise_iou(empty, empty).eq(0).all()
    assert pairwise_ioa(empty, empty).eq(0).all()
    assert pairwise_iou(none, empty).shape == (0, 2)
    assert pairwise_ioa(empty, none).shape == (2, 0)
    assert Boxes([]).tensor.shape == (0, 4)
    assert Boxes.cat([]).tensor.shape == (0, 4)


def test_point_box_distance() -> None:
    boxes = Boxes([[0.0, 1, 10, 21]])
    distances = pairwise_point_box_distance(torch.tensor([[3.0, 4], [-1, 30]]), boxes)
    assert distances.tolist() == [[[3, 3, 7, 17]], [[-1, 29, 11, -9]]]


def test_boxes_take_matrices_only() -> None:
    assert Boxes(np.zeros((3, 4))).tensor.dtype == torch.float32
    corners = torch.rand(3, 4)
    assert Boxes(corners).tensor is corners
    for bad in (torch.zeros(4), torch.zeros(2, 5)):
        with pytest.raises(AssertionError):
            Boxes(bad)


def test_boxes_geometry() -> None:
    boxes = Boxes([[1.0, 2, 4, 6], [5, 5, 5, 9], [-3, 0, 30, 40]])
    assert boxes.area().tolist() == [12, 0, 33 * 40]
    assert boxes.get_centers().tolist() == [[2.5, 4], [5, 7], [13.5, 20]]
    assert boxes.nonempty().tolist() == [True, False, True]
    assert boxes.nonempty(3).tolist() == [False, False, True]
    assert boxes.inside_box((9, 10)).tolist() == [True, False, False]  # reaching the edge is out
    assert boxes.inside_box((9, 10), 1).tolist() == [True, True, False]
    scaled = boxes.clone()
    scaled.scale(2, 0.5)
    assert scaled[0].tensor.tolist() == [[2, 1, 8, 3]]
    assert boxes.tensor[0].tolist() == [1, 2, 4, 6]


def test_clip_leaves_the_given_tensor_alone() -> None:
    corners = torch.tensor([[-1.0, -1, 50, 60]])
    boxes = Boxes(corners)
    boxes.clip((30, 40))
    assert boxes.tensor.tolist() == [[0, 0, 40, 30]]
    assert corners.tolist() == [[-1, -1, 50, 60]]
    with pytest.raises(AssertionError):
        Boxes([[0.0, 0, math.nan, 1]]).clip((3, 3))


@pytest.mark.parametrize(
    ("item", "rows"),
    [
        (0, [0]),
        (-1, [4]),
        (slice(1, 3), [1, 2]),
        (torch.tensor([True, False, True, False, False]), [0, 2]),
        (torch.tensor([3, 3]), [3, 3]),
        (torch.tensor([], dtype=torch.long), []),
    ],
)
def test_indexing(item: Any, rows: list[int]) -> None:
    boxes = random_boxes(5, 0)
    instances = Instances((10, 20), boxes=boxes, number=torch.arange(5))
    assert torch.equal(boxes[item].tensor, boxes.tensor[rows])
    assert instances[item].number.tolist() == rows
    assert torch.equal(instances[item].boxes.tensor, boxes.tensor[rows])
    assert instances[item].image_size == (10, 20)


def test_bad_indices() -> None:
    boxes = random_boxes(5, 0)
    instances = Instances((10, 20), boxes=boxes)
    for bad in (5, -6):
        with pytest.raises(IndexError):
            boxes[bad]
        with pytest.raises(IndexError):
            instances[bad]
    with pytest.raises(AssertionError):
        boxes[torch.tensor(2)]


def test_boxes_iterate_and_concatenate() -> None:
    boxes = random_boxes(3, 0)
    assert [row.shape for row in boxes] == [(4,)] * 3
    assert torch.equal(Boxes.cat([boxes, boxes[:1]]).tensor, boxes.tensor[[0, 1, 2, 0]])
    with pytest.raises(AssertionError):
        Boxes.cat([boxes.tensor])


@pytest.mark.parametrize("kind", [list, tuple, np.asarray, torch.tensor])
def test_box_modes_convert(kind: Any) -> None:
    def given(*values: float) -> Any:
        return kind(values) if kind in (list, tuple) else kind([values])

    def check(box: Any, from_mode: BoxMode, to_mode: BoxMode, expected: list[float]) -> None:
        before = copy.deepcopy(box)
        got = BoxMode.convert(box, from_mode, to_mode)
        assert type(got) is type(box)
        assert np.allclose(np.asarray(got).reshape(-1), expected, atol=1e-6)
        assert np.array_equal(np.asarray(box), np.asarray(before))

    check(given(5.0, 6, 10, 8), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS, [5, 6, 5, 2])
    check(given(5.0, 6, 10, 8), BoxMode.XYWH_ABS, BoxMode.XYXY_ABS, [5, 6, 15, 14])
    check(given(5.0, 6, 10, 8), BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS, [10, 10, 10, 8, 0])
    check(given(50.0, 50, 30, 20, 90), BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS, [40, 35, 60, 65])
    root = math.sqrt(2)
    check(given(1.0, 1, root, root, -45), BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS, [0, 0, 2, 2])
    same = given(1.0, 2, 3, 4)
    assert BoxMode.convert(same, BoxMode.XYXY_ABS, BoxMode.XYXY_ABS) is same


def test_box_modes_keep_dtypes() -> None:
    for box in (np.zeros((2, 4), np.int64), np.zeros((2, 4), np.float32)):
        assert BoxMode.convert(box, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).dtype == box.dtype
    assert BoxMode.convert([1, 2, 5, 9], BoxMode.XYXY_ABS, BoxMode.XYWH_ABS) == [1, 2, 4, 7]
    assert BoxMode(json.loads(json.dumps({"m": BoxMode.XYWH_ABS}))["m"]) is BoxMode.XYWH_ABS


@pytest.mark.parametrize(
    ("box", "from_mode", "to_mode", "error"),
    [
        ([1.0, 2, 3], BoxMode.XYXY_ABS, BoxMode.XYWH_ABS, AssertionError),
        ([[1.0, 2, 3, 4]], BoxMode.XYXY_ABS, BoxMode.XYWH_ABS, AssertionError),
        ([1.0, 2, 3, 4], BoxMode.XYXY_REL, BoxMode.XYWH_ABS, AssertionError),
        ([1.0, 2, 3, 4], BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS, AssertionError),
        ([1.0, 2, 3, 4, 5], BoxMode.XYWHA_ABS, BoxMode.XYWH_ABS, NotImplementedError),
    ],
)
def test_impossible_conversions(
    box: Any, from_mode: BoxMode, to_mode: BoxMode, error: type[Exception]
) -> None:
    with pytest.raises(error):
        BoxMode.convert(box, from_mode, to_mode)


def make_instances() -> Instances:
    instances = Instances((10, 20))
    instances.boxes = random_boxes(3, 0)
    instances.scores = torch.arange(3.0)
    instances.names = ["a", "b", "c"]
    return instances


def test_instances_fields() -> None:
    instances = make_instances()
    assert len(instances) == 3
    assert instances.has("scores")
    assert instances.get("scores") is instances.scores
    assert list(instances.get_fields()) == ["boxes", "scores", "names"]
    with pytest.raises(AssertionError):
        instances.wrong = torch.zeros(2)
    with pytest.raises(AttributeError):
        instances.missing  # noqa: B018 - reading it is the test
    instances.remove("scores")
    assert not instances.has("scores")
    instances._private = 1
    assert "_private" not in instances.get_fields()
    with pytest.raises(NotImplementedError):
        iter(instances)
    with pytest.raises(NotImplementedError):
        len(Instances((1, 1)))


def test_instances_concatenate() -> None:
    instances = make_instances()
    both = Instances.cat([instances, instances[1:]])
    assert both.scores.tolist() == [0, 1, 2, 1, 2]
    assert both.names == ["a", "b", "c", "b", "c"]
    assert len(both.boxes) == 5
    assert Instances.cat([instances]) is instances
    other = Instances((11, 20), scores=torch.zeros(1))
    for bad in ([], [instances, other], [instances, 3]):
        with pytest.raises(AssertionError):
            Instances.cat(bad)
    arrays = Instances((10, 20), a=np.zeros(2))
    with pytest.raises(ValueError, match="ndarray"):
        Instances.cat([arrays, arrays])


def test_instances_travel() -> None:
    instances = make_instances()
    for twin in (
        pickle.loads(pickle.dumps(instances)),
        copy.deepcopy(instances),
        instances.to("cpu"),
    ):
        assert torch.equal(twin.boxes.tensor, instances.boxes.tensor)
        assert (twin.names, twin.image_size) == (instances.names, (10, 20))
    assert "num_instances=3, image_height=10, image_width=20, fields=[" in str(instances)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (6, 7)),
        ({"size_divisibility": 4}, (8, 8)),
        ({"padding_constraints": {"size_divisibility": 5}}, (10, 10)),
        ({"size_divisibility": 8, "padding_constraints": {"size_divisibility": 3}}, (6, 9)),
        ({"padding_constraints": {"square_size": 16}}, (16, 16)),
        ({"size_divisibility": 4, "padding_constraints": {"square_size": 15}}, (16, 16)),
        ({"padding_constraints": {"square_size": 0}}, (6, 7)),
    ],
)
def test_images_are_padded(options: dict[str, Any], size: tuple[int, int]) -> None:
    images = [torch.rand(3, 5, 7), torch.rand(3, 6, 4)]
    batch = ImageList.from_tensors(images, pad_value=-1.0, **options)
    assert batch.tensor.shape == (2, 3, *size)
    assert batch.image_sizes == [(5, 7), (6, 4)]
    for index, image in enumerate(images):
        assert torch.equal(batch[index], image)
        padding = size[0] * size[1] - image[0].numel()
        assert (batch.tensor[index] == -1).sum() == 3 * padding


def test_image_list_keeps_dtype_and_gradient() -> None:
    small = [torch.ones(2, 2, dtype=torch.uint8), torch.ones(3, 1, dtype=torch.uint8)]
    batch = ImageList.from_tensors(small, 4)
    assert (batch.tensor.shape, batch.tensor.dtype) == ((2, 4, 4), torch.uint8)
    assert len(batch) == 2
    assert batch.to(torch.float32).tensor.dtype == torch.float32
    image = torch.rand(3, 2, 2, requires_grad=True)
    ImageList.from_tensors([image, image], 4).tensor.sum().backward()
    assert image.grad.eq(2).all()
    for bad in ([], torch.zeros(3, 2, 2), [torch.zeros(3, 2, 2), torch.zeros(2, 2, 2)]):
        with pytest.raises(AssertionError):
            ImageList.from_tensors(bad)
