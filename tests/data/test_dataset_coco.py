"""COCO json: what is read, what is refused, and what is dropped."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode

from d2proj.data import check_same_classes, has_split, load_dataset
from d2proj.errors import InputError

Node = Callable[..., dict[str, Any]]


def test_real_coco_equals_detectron2s_reader(shared_data: Path) -> None:
    root = shared_data / "coco_val74"
    paths = {"json": str(root / "instances_val2017_subset.json"), "images": str(root / "images")}
    ours = load_dataset({"format": "coco", "val": paths}, "val")
    theirs = load_coco_json(paths["json"], paths["images"], "d2proj_test_coco_val74")
    assert ours.class_names == MetadataCatalog.get("d2proj_test_coco_val74").thing_classes
    by_id = {record["image_id"]: record for record in ours.dicts}
    assert len(by_id) == len(theirs) == 74
    for expected in theirs:
        found = by_id[expected["image_id"]]
        for key in ("file_name", "height", "width"):
            assert found[key] == expected[key]
        assert len(found["annotations"]) == len(expected["annotations"])
        for a, b in zip(found["annotations"], expected["annotations"], strict=True):
            assert (a["category_id"], a["iscrowd"]) == (b["category_id"], b["iscrowd"])
            box = BoxMode.convert(b["bbox"], b["bbox_mode"], BoxMode.XYXY_ABS)
            clipped = np.clip(box, 0, [expected["width"], expected["height"]] * 2)
            # Detectron2 converts in float32.
            np.testing.assert_allclose(a["bbox"], clipped, rtol=0, atol=1e-4)
    assert (ours.report.crowd, ours.report.boxes) == (8, 621)
    # It can be evaluated against as it is.
    assert ours.evaluation_json("/nowhere") == paths["json"]
    assert MetadataCatalog.get(ours.name).json_file == paths["json"]


def test_catalogs_hold_it_and_reading_again_replaces_it(coco_node: Node) -> None:
    node = coco_node()
    first, second = load_dataset(node, "train"), load_dataset(node, "train")
    assert first.name == second.name
    assert DatasetCatalog.get(second.name) == list(second.dicts)
    metadata = MetadataCatalog.get(second.name)
    assert metadata.thing_classes == ["cat", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}


def test_bad_boxes_are_counted_and_dropped(coco_node: Node, coco_document: dict[str, Any]) -> None:
    good = {"image_id": 10, "category_id": 3, "iscrowd": 0, "area": 1.0}
    boxes = [
        [1, 1, 0, 5],  # no width
        [5, 5, -2, 5],  # negative
        [1, math.nan, 4, 4],
        [1, 1, math.inf, 4],
        [60, 1, 5, 5],  # right of the 60 pixel wide image
        [-5, -5, 5, 4],  # above and left of it
        [-5, -5, 10, 100],  # partly outside
        [59.99, 0, 0.02, 40],  # rounding, not a labelling error
    ]
    document = coco_document
    document["annotations"] = [{**good, "id": i + 1, "bbox": box} for i, box in enumerate(boxes)]
    data = load_dataset(coco_node(document), "train")
    dropped = {reason: count for reason, (count, _) in data.report.dropped.items()}
    assert dropped == {
        "boxes with a coordinate that is not a number": 2,
        "boxes of no area": 2,
        "boxes outside their image": 2,
    }
    assert data.report.clipped == 1
    assert [a["bbox"] for a in data.dicts[0]["annotations"]] == [
        [0, 0, 5, 40],
        [59.99, 0, 60, 40],
    ]
    summary = data.report.summary()
    assert "boxes of no area: 2 (for example [1, 1, 1, 6] in" in summary


def test_converted_json_says_what_is_in_the_records(
    coco_node: Node, coco_document: dict[str, Any], tmp_path: Path
) -> None:
    document = coco_document
    document["annotations"][0] |= {"id": 0}  # which pycocotools would take for "no match"
    del document["annotations"][1]["iscrowd"]
    data = load_dataset(coco_node(document), "train")
    assert data.json_file is None
    path = data.evaluation_json(tmp_path / "out")
    written = json.loads(Path(path).read_text())
    expected = coco_document
    assert written["categories"] == sorted(expected["categories"], key=lambda c: c["id"])
    folder = tmp_path / "images"
    for image in expected["images"]:
        image["file_name"] = str(folder / image["file_name"])
    assert written["images"] == expected["images"]
    for a, b in zip(written["annotations"], expected["annotations"], strict=True):
        for key in ("image_id", "category_id", "bbox", "area"):
            assert a[key] == b[key]
        assert a["id"] > 0
        assert a["iscrowd"] == 0
    assert not list((tmp_path / "out").glob("*.tmp"))
    assert MetadataCatalog.get(data.name).json_file == path


def test_the_order_in_the_file_does_not_matter(
    coco_node: Node, coco_document: dict[str, Any]
) -> None:
    expected = {r["image_id"]: r for r in load_dataset(coco_node(), "train").dicts}
    annotations = coco_document["annotations"]
    coco_document["annotations"] = annotations[::2] + annotations[1::2]
    for i in (0, 3, 1):
        coco_document["images"].append(coco_document["images"].pop(i))
    records = load_dataset(coco_node(coco_document), "train").dicts
    assert [r["image_id"] for r in records] == [i["id"] for i in coco_document["images"]]

    def boxes_of(record: dict[str, Any]) -> list[Any]:
        return sorted((a["category_id"], a["bbox"]) for a in record["annotations"])

    for record in records:
        other = expected[record["image_id"]]
        assert record["file_name"] == other["file_name"]
        assert boxes_of(record) == boxes_of(other)


def test_class_names_choose_and_reorder(coco_node: Node, tmp_path: Path) -> None:
    data = load_dataset(coco_node(class_names=["dog", "cat"]), "train")
    both = data.dicts[2]["annotations"]
    assert [data.class_names[a["category_id"]] for a in both] == ["cat", "dog"]
    written = json.loads(Path(data.evaluation_json(tmp_path)).read_text())
    assert written["categories"] == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]

    data = load_dataset(coco_node(class_names=["dog"]), "train")
    assert data.report.per_class == {"dog": 2}
    (count, _), *_ = data.report.dropped.values()
    assert count == 4
    with pytest.raises(InputError, match=r"lists 'bird', which .* does not have"):
        load_dataset(coco_node(class_names=["dog", "bird"]), "train")
    # A validation split may lack a class that is trained.
    assert load_dataset(coco_node(class_names=["dog", "bird"]), "val").num_classes == 2


def test_missing_images_raise_or_are_left_out(coco_node: Node, tmp_path: Path) -> None:
    node = coco_node()
    (tmp_path / "images" / "2.png").unlink()
    with pytest.raises(InputError, match=r"1 of 7 image files are missing, .*2\.png"):
        load_dataset(node, "train")
    data = load_dataset(node, "train", on_bad_image="skip")
    assert len(data) == 6
    assert data.report.boxes == 4
    written = json.loads(Path(data.evaluation_json(tmp_path)).read_text())
    assert len(written["images"]) == 6
    assert len(written["annotations"]) == 4


def _without(document: dict[str, Any], *path: Any) -> dict[str, Any]:
    part = document
    for key in path[:-1]:
        part = part[key]
    del part[path[-1]]
    return document


def _with(document: dict[str, Any], array: str, **values: Any) -> dict[str, Any]:
    document[array][0] |= values
    return document


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: "", "is empty"),
        (lambda d: "{", "is not valid JSON"),
        (lambda d: json.dumps(d)[:-20], "is not valid JSON"),
        (lambda d: json.dumps(d) + "]", "is not valid JSON: Extra data"),
        (lambda d: "[1, 2]", "it has no 'images'"),
        (lambda d: _without(d, "images"), "it has no 'images'"),
        (lambda d: _without(d, "annotations"), "it has no 'annotations'"),
        (lambda d: _without(d, "categories"), "it has no 'categories'"),
        (lambda d: _with(d, "annotations", bbox=None, iscrowd=1), "a bbox of 4 numbers"),
        (lambda d: _without(d, "images", 0, "width"), r"images\[0\] has no 'width'"),
        (lambda d: _without(d, "categories", 0, "name"), "categories must be a list"),
        (lambda d: {**d, "annotations": {"a": 1}}, "is not valid JSON: Expecting '\\['"),
        (lambda d: _with(d, "annotations", category_id=1), "has category_id 1, but no category"),
        (lambda d: _with(d, "annotations", image_id=99), "has image_id 99, but no image"),
        (lambda d: _with(d, "annotations", image_id="x"), "whole numbers image_id"),
        (lambda d: _with(d, "annotations", bbox=[1, 2, 3]), "a bbox of 4 numbers"),
        (lambda d: _with(d, "images", id=11), "two entries of images have the id 11"),
        (lambda d: _with(d, "images", width=0), "a positive width and height"),
        (lambda d: _with(d, "categories", id=3), "two categories have the id 3"),
        (lambda d: _with(d, "categories", name="cat"), "two categories have the name 'cat'"),
        (lambda d: {**d, "images": [], "annotations": []}, "there is no image in it"),
    ],
)
def test_bad_json_is_one_sentence(
    change: Callable[[dict[str, Any]], Any],
    message: str,
    coco_node: Node,
    coco_document: dict[str, Any],
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_dataset(coco_node(change(coco_document)), "train")
    assert "\n" not in str(caught.value)


def test_node_errors(coco_node: Node) -> None:
    node = coco_node()
    cases = [
        ({"format": "csv"}, "dataset.format must be one of coco, voc, yolo, digits, not 'csv'"),
        ({**node, "root": "x"}, "dataset.root is not a key of format coco"),
        ({**node, "train": {**node["train"], "jsn": 1}}, "dataset.train.jsn is not a key"),
        ({**node, "train": "x.json"}, "dataset.train must have keys"),
        ({"format": "coco"}, "dataset.train.json is not set"),
        ({**node, "train": {**node["train"], "json": "/no"}}, "json: /no does not exist"),
        ({**node, "train": {**node["train"], "images": "/no"}}, "images: /no does not exist"),
    ]
    for bad, message in cases:
        with pytest.raises(InputError, match=message):
            load_dataset(bad, "train")
    assert has_split(node, "val")
    assert not has_split({**node, "val": {"json": None, "images": None}}, "val")


def test_splits_that_number_classes_differently(coco_node: Node) -> None:
    train = load_dataset(coco_node(), "train")
    val = load_dataset(coco_node(class_names=["dog", "cat"]), "val")
    check_same_classes(train, train)
    with pytest.raises(InputError, match="the same names in another order"):
        check_same_classes(train, val)
    val.class_names = ["cat", "bird"]
    with pytest.raises(InputError, match="only in train: dog; only in val: bird"):
        check_same_classes(train, val)
