"""Labelled pictures beside boxes: what is read, how batches are mixed, what is refused."""

from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.utils import comm

from d2proj.anchors.__main__ import _Stretch, box_shapes
from d2proj.data import DetectionData, build_train_loader, check_same_classes, load_dataset
from d2proj.data.loaders import TrainLoader
from d2proj.data.samplers import TrainBatchSampler
from d2proj.errors import InputError

Node = dict[str, Any]


@pytest.fixture
def joint(coco_node: Callable[..., Node], make_image: Callable[..., Path], tmp_path: Path) -> Node:
    """Seven images with boxes of cat and dog or none; three labelled poodle, four cat."""
    root = tmp_path / "labelled"
    for i in range(3):
        make_image(root / "poodle" / "deeper" / f"{i}.JPEG", (30 + i, 20), i)
    for i in range(4):
        make_image(root / "cat" / f"{i}.png", (20, 30 + i), i)
    (root / "nothing").mkdir()
    (root / "cat" / "readme.txt").write_text("no picture")
    node = coco_node()
    return {**node, "train": {**node["train"], "classification": str(root)}}


def train_loader(data: DetectionData, **changes: Any) -> TrainLoader:
    arguments = {"batch_size": 4, "workers": 0, "augmentations": [T.Resize(32)], "seed": 5}
    return build_train_loader(data, **{**arguments, "aspect_ratio_grouping": False, **changes})


def is_labelled(sample: dict[str, Any]) -> bool:
    return sample["instances"].has("gt_has_box")


def test_what_is_read(joint: Node, coco_node: Callable[..., Node]) -> None:
    plain, data = load_dataset(coco_node(), "train"), load_dataset(joint, "train")
    assert data.class_names == plain.class_names == ["cat", "dog"]
    assert data.label_names == ["poodle"]
    assert data.dicts[: len(plain)] == list(plain.dicts)
    added = data.dicts[len(plain) :]
    assert [Path(r["file_name"]).name for r in added] == [
        *("0.png", "1.png", "2.png", "3.png"),
        *("0.JPEG", "1.JPEG", "2.JPEG"),
    ]
    assert [r["annotations"] for r in added] == [[{"category_id": 0, "iscrowd": 0}]] * 4 + [
        [{"category_id": 2, "iscrowd": 0}]
    ] * 3
    assert "width" not in added[0]
    ids = [r["image_id"] for r in data.dicts]
    assert len(set(ids)) == 14
    report = data.report
    assert (report.images, report.empty_images, report.labelled_images) == (14, 3, 7)
    assert (report.boxes, report.per_class) == (plain.report.boxes, plain.report.per_class)
    assert report.per_label == {"cat": 4, "poodle": 3}
    summary = report.summary()
    assert "14 images (7 labelled without boxes, 3 empty), 6 boxes of 2 classes" in summary
    assert "labels without boxes, of 2 classes: cat 4, poodle 3" in summary
    # One byte more for each box; a data set without labels has no such column.
    assert plain.dicts.has_box is None
    assert data.dicts.has_box is not None
    assert data.dicts.has_box.dtype == np.bool_


def test_evaluation_knows_nothing_of_them(
    joint: Node, coco_node: Callable[..., Node], tmp_path: Path
) -> None:
    val = load_dataset(joint, "val")
    assert list(val.dicts) == list(load_dataset(coco_node(), "val").dicts)
    train = load_dataset(joint, "train")
    check_same_classes(train, val)
    # The training set's own json, should somebody evaluate on it.
    written = Path(train.evaluation_json(tmp_path / "out")).read_text()
    assert written.count('"file_name"') == 7
    assert written.count('"bbox"') == 6
    assert "poodle" not in written


def test_anchors_are_those_of_the_boxes(joint: Node, coco_node: Callable[..., Node]) -> None:
    found = [
        box_shapes(load_dataset(node, "train").dicts, _Stretch("64"))
        for node in (joint, coco_node())
    ]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_share_and_order(share: float) -> None:
    labelled = np.arange(50) >= 10
    indices = np.arange(50) * 2

    def sampler(**changes: Any) -> list[list[tuple[int, int]]]:
        mixed = TrainBatchSampler(
            indices, batch_size=8, seed=3, labelled=labelled, share=share, **changes
        )
        return list(islice(mixed, 200))

    batches = sampler()
    counts = np.array([sum(i >= 20 for _, i in batch) for batch in batches])
    assert set(counts) <= {int(np.floor(8 * share)), int(np.ceil(8 * share))}
    # Never off by more than one image, at any time.
    expected = 8 * share * np.arange(1, 201)
    assert np.abs(np.cumsum(counts) - expected).max() <= 0.5
    assert [p for batch in batches for p, _ in batch] == list(range(1600))
    # Each group comes epoch by epoch, the boxes in the order that they have alone.
    drawn = [i for batch in batches for _, i in batch]
    for group, size in (([i for i in drawn if i < 20], 10), ([i for i in drawn if i >= 20], 40)):
        for start in range(0, len(group), size):
            epoch = group[start : start + size]
            assert len(set(epoch)) == len(epoch)
    alone = TrainBatchSampler(indices[:10], batch_size=8, seed=3)
    boxed = [i for i in drawn if i < 20]
    assert boxed == [i for batch in islice(alone, 200) for _, i in batch][: len(boxed)]
    # Places in the batch vary.
    if 0 < share < 1:
        assert len({tuple(i >= 20 for _, i in batch) for batch in batches}) > 5
    assert sampler(start=77)[:100] == batches[77:177]


def test_processes_share_the_mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(rank: int, size: int) -> list[tuple[int, int]]:
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: size)
        labelled = np.arange(30) % 3 > 0
        mixed = TrainBatchSampler(
            np.arange(30), batch_size=12 // size, seed=1, labelled=labelled, share=0.5
        )
        return list(chain(*islice(mixed, 20)))

    parts = [stream(rank, 3) for rank in range(3)]
    assert sorted(chain(*parts)) == stream(0, 1)
    # No process gets all of a kind.
    for part in parts:
        assert 20 < sum(i % 3 > 0 for _, i in part) < 60


def test_repeat_factors_are_those_of_the_boxes() -> None:
    labelled = np.array([False, True, False, True])
    factors = torch.tensor([1.0, 3.0])
    mixed = TrainBatchSampler(
        np.arange(4), batch_size=2, seed=0, labelled=labelled, share=0.5, factors=factors
    )
    drawn = [i for batch in islice(mixed, 2000) for _, i in batch]
    assert drawn.count(0) + drawn.count(2) == 2000
    assert drawn.count(2) == pytest.approx(3 * drawn.count(0), rel=0.01)
    assert drawn.count(1) == drawn.count(3)


@pytest.mark.parametrize("changes", [{}, {"repeat_threshold": 0.9}])
def test_batches(joint: Node, changes: dict[str, Any]) -> None:
    data = load_dataset(joint, "train")

    def read(count: int, **more: Any) -> list[list[dict[str, Any]]]:
        return list(islice(train_loader(data, classification_share=0.5, **changes, **more), count))

    batches = read(12)
    for batch in batches:
        assert [is_labelled(sample) for sample in batch].count(True) == 2
    for again in (read(7, start_iter=5), read(12, workers=2)[5:]):
        for one, other in zip(chain(*batches[5:]), chain(*again), strict=True):
            assert one["file_name"] == other["file_name"]
            assert torch.equal(one["image"], other["image"])
    samples = list(chain(*batches))
    assert len({s["file_name"] for s in samples if is_labelled(s)}) == 7
    # Images with neither box nor label are left out.
    assert len({s["file_name"] for s in samples if not is_labelled(s)}) == 4
    poodle = next(s for s in samples if "poodle" in s["file_name"])
    assert poodle["instances"].gt_classes.tolist() == [2]
    assert (poodle["height"], poodle["width"]) == (20, poodle["width"])
    everything = list(islice(train_loader(data, filter_empty=False), 40))
    assert len({s["file_name"] for s in chain(*everything)}) == 14


def test_wide_and_tall_groups_keep_the_share_on_average(joint: Node) -> None:
    data = load_dataset(joint, "train")
    loader = train_loader(data, aspect_ratio_grouping=True, classification_share=0.5)
    samples = list(chain(*islice(loader, 50)))
    assert sum(map(is_labelled, samples)) == pytest.approx(100, abs=8)


def test_json_annotations_without_bbox(
    coco_document: dict[str, Any], coco_node: Callable[..., Node]
) -> None:
    """Image 11 has one annotation (a cat), 12 has two; 11's and 12's first become labels."""
    del coco_document["annotations"][0]["bbox"]
    coco_document["annotations"][1]["bbox"] = None
    data = load_dataset(coco_node(coco_document), "train")
    assert data.dicts.labelled_images().tolist() == [False, True, True] + [False] * 4
    assert ["bbox" in a for a in data.dicts[2]["annotations"]] == [False, True]
    assert data.report.per_label == {"cat": 2}
    assert (data.report.boxes, data.report.labelled_images, data.report.empty_images) == (4, 2, 3)
    assert data.label_names == []
    batches = list(islice(train_loader(data, classification_share=0.25), 8))
    for batch in batches:
        assert sum(map(is_labelled, batch)) == 1
    # What is to be found in such an image is not known: they are no part of an evaluation.
    val = load_dataset(coco_node(coco_document), "val")
    assert [r["image_id"] for r in val.dicts] == [10, 13, 14, 15, 16]
    assert val.json_file is None
    dropped = val.report.dropped["images with a label without a box"]
    assert dropped[0] == 2
    assert dropped[1].endswith("1.png")


def test_chosen_classes(joint: Node) -> None:
    data = load_dataset({**joint, "class_names": ["dog"]}, "train")
    assert (data.class_names, data.label_names) == (["dog"], ["cat", "poodle"])


def test_labels_alone(joint: Node, coco_document: dict[str, Any], coco_node: Any) -> None:
    coco_node({**coco_document, "annotations": []})
    data = load_dataset(joint, "train")
    batches = list(islice(train_loader(data), 7))
    assert all(map(is_labelled, chain(*batches)))


def test_errors(joint: Node, tmp_path: Path) -> None:
    def fails(folder: Path, match: str) -> None:
        train = {**joint["train"], "classification": str(folder)}
        with pytest.raises(InputError, match=match) as caught:
            load_dataset({**joint, "train": train}, "train")
        assert "\n" not in str(caught.value)

    fails(tmp_path / "gone", r"dataset.train.classification: .*gone does not exist")
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    fails(tmp_path / "empty", r"must have a folder for each class with pictures in it, but has")
    with pytest.raises(InputError, match="classification is not a key of format coco"):
        load_dataset({**joint, "val": {**joint["val"], "classification": "x"}}, "val")
    data = load_dataset(joint, "train")
    with pytest.raises(InputError, match=r"classification_share must be between 0 and 1, not 1.5"):
        train_loader(data, classification_share=1.5)
    (tmp_path / "labelled" / "cat" / "1.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"cat/1.png: the image cannot be used"):
        list(islice(train_loader(data, classification_share=1), 5))
    skipping = train_loader(data, classification_share=1, on_bad_image="skip")
    assert len(list(islice(skipping, 5))) == 5
    assert len(skipping.bad_images) == 1
