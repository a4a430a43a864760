"""Pascal VOC xml."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from d2proj.data import load_dataset
from d2proj.errors import InputError

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>
<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"""
SIZE = "<size><width>60</width><height>40</height><depth>3</depth></size>"


def an_object(name: str, *box: float, difficult: int = 0) -> str:
    x1, y1, x2, y2 = box
    return OBJECT.format(name=name, x1=x1, y1=y1, x2=x2, y2=y2, difficult=difficult)


@pytest.fixture
def voc_node(tmp_path: Path, make_image: Callable[..., Path]) -> dict[str, Any]:
    """Train: pictures a and b; val: c, whose annotation has no size, and d, without one."""
    root = tmp_path / "VOC"
    texts = {
        "a": SIZE + an_object("dog", 1, 1, 60, 40) + an_object("cat", 11, 5, 20, 30, difficult=1),
        "b": SIZE,
        "c": an_object("bird", 2, 2, 10.5, 10),
    }
    (root / "Annotations").mkdir(parents=True)
    for name, text in texts.items():
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{text}</annotation>")
    for i, name in enumerate(["a.jpg", "b.png", "c.jpg", "d.jpg"]):
        make_image(root / "JPEGImages" / name, (60, 40), i)
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n\n")
    (lists / "val.txt").write_text("c  1\nd -1\n")
    node = {split: {"root": str(root), "split": split} for split in ("train", "val")}
    return {"format": "voc", **node}


def test_boxes_sizes_and_difficult_objects(voc_node: dict[str, Any]) -> None:
    data = load_dataset(voc_node, "train")
    assert [Path(record["file_name"]).name for record in data.dicts] == ["a.jpg", "b.png"]
    first, second = data.dicts
    # VOC counts from 1 and names the last pixel inside: this is the whole image.
    assert first["annotations"][0]["bbox"] == [0, 0, 60, 40]
    assert first["annotations"][1]["bbox"] == [10, 4, 20, 30]
    assert [a["iscrowd"] for a in first["annotations"]] == [0, 1]
    assert (first["width"], first["height"]) == (60, 40)
    assert second["annotations"] == []
    assert (data.report.boxes, data.report.crowd, data.report.empty_images) == (1, 1, 1)

    plain = load_dataset({**voc_node, "one_based": False, "difficult": "use"}, "train")
    assert plain.dicts[0]["annotations"][0]["bbox"] == [1, 1, 60, 40]
    assert plain.report.boxes == 2


def test_both_splits_number_the_classes_of_both(voc_node: dict[str, Any]) -> None:
    train, val = (load_dataset(voc_node, split) for split in ("train", "val"))
    assert train.class_names == val.class_names == ["bird", "cat", "dog"]
    assert [len(record["annotations"]) for record in val.dicts] == [1, 0]
    assert (val.dicts[0]["width"], val.dicts[0]["height"]) == (60, 40)
    alone = load_dataset({"format": "voc", "val": voc_node["val"]}, "val")
    assert alone.class_names == ["bird"]


def test_real_bccd(shared_data: Path, tmp_path: Path) -> None:
    root = str(shared_data / "bccd")
    node = {s: {"root": root, "split": s} for s in ("train", "val")}
    train, val = (load_dataset({"format": "voc", **node}, split) for split in ("train", "val"))
    test = load_dataset({"format": "voc", "val": {"root": root, "split": "test"}}, "val")
    assert [len(data) for data in (train, val, test)] == [205, 87, 72]
    assert train.class_names == val.class_names == test.class_names == ["Platelets", "RBC", "WBC"]
    # 4 888 boxes, of which two have no area.
    assert sum(data.report.boxes for data in (train, val, test)) == 4886
    dropped = [data.report.dropped.get("boxes of no area", (0, ""))[0] for data in (train, val)]
    assert dropped == [1, 1]
    written = json.loads(Path(val.evaluation_json(tmp_path)).read_text())
    assert len(written["annotations"]) == val.report.boxes == 1137


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", r"a\.xml is not well-formed XML"),
        ("", r"a\.xml is not well-formed XML"),
        (f"<annotation>{SIZE}<object><name>x</name></object></annotation>", "has no bndbox/xmin"),
        (
            f"<annotation>{SIZE}{an_object('', 1, 1, 2, 2)}</annotation>",
            "object 1 has no name",
        ),
        (
            f"<annotation>{SIZE}{an_object('x', 1, 1, 2, 2)}</annotation>".replace(
                "<xmin>1", "<xmin>l"
            ),
            "bndbox/xmin must be a number, not 'l'",
        ),
        (
            f"<annotation>{SIZE}</annotation>".replace("60", "inf"),
            "size/width must be a finite number",
        ),
    ],
)
def test_malformed_annotations(text: str, message: str, voc_node: dict[str, Any]) -> None:
    (Path(voc_node["train"]["root"]) / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_dataset(voc_node, "train")


def test_missing_parts(voc_node: dict[str, Any]) -> None:
    root = Path(voc_node["train"]["root"])

    def fails(message: str, **train: Any) -> None:
        node = {**voc_node, "train": {**voc_node["train"], **train}}
        with pytest.raises(InputError, match=message):
            load_dataset(node, "train")

    fails("dataset.train.root: /no does not exist", root="/no")
    fails("dataset.train.split is not set", split=None)
    fails(
        r"dataset.train.split: .*trian.txt does not exist \(there are: train, val\)", split="trian"
    )
    with pytest.raises(InputError, match=r"dataset\.difficult must be one of"):
        load_dataset({**voc_node, "difficult": "maybe"}, "train")
    (root / "JPEGImages" / "a.jpg").unlink()
    fails(r"1 of 2 image files are missing, for example .*a\.jpg")
    (root / "ImageSets" / "Main" / "train.txt").write_text("b\nb\n")
    fails("lists b twice")
    (root / "Annotations").rename(root / "annotations")
    fails("not a Pascal VOC data set: it has no folder Annotations")
