"""YOLO text labels, in the layouts of darknet and of Ultralytics."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from d2proj.data import has_split, load_dataset
from d2proj.errors import InputError

MakeImage = Callable[..., Path]


@pytest.fixture
def layout(tmp_path: Path, make_image: MakeImage) -> Path:
    """images/{train,val}/*.png with labels in labels/{train,val}; b.png has no label file."""
    for split in ("train", "val"):
        for i, name in enumerate(["a", "b"]):
            make_image(tmp_path / "images" / split / f"{name}.png", (60, 40), i)
        label = tmp_path / "labels" / split / "a.txt"
        label.parent.mkdir(parents=True)
        label.write_text("1 0.5 0.5 0.5 0.25\n\n0.0 0.9 0.5 0.4 0.2\n")
    (tmp_path / "obj.names").write_text("cat\ndog\n")
    return tmp_path


def node_of(layout: Path, **keys: Any) -> dict[str, Any]:
    images = {split: {"images": str(layout / "images" / split)} for split in ("train", "val")}
    return {"format": "yolo", **images, "names": ["cat", "dog"], **keys}


def check(data: Any) -> None:
    assert data.class_names == ["cat", "dog"]
    first, second = data.dicts
    assert [Path(record["file_name"]).name for record in data.dicts] == ["a.png", "b.png"]
    dog, cat = first["annotations"]
    assert dog["category_id"] == 1
    assert dog["bbox"] == pytest.approx([15, 15, 45, 25])
    assert cat["category_id"] == 0
    assert cat["bbox"] == pytest.approx([42, 16, 60, 24])  # cut at the right edge
    assert (first["width"], first["height"]) == (60, 40)
    assert second["annotations"] == []
    assert data.report.clipped == 1
    assert data.report.notes == ["1 pictures have no label file: no objects"]


def test_folders_and_lists(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(load_dataset(node_of(layout), "train"))
    check(load_dataset(node_of(layout, names=str(layout / "obj.names")), "val"))
    # Ultralytics' lists are relative to themselves, darknet's to the working folder.
    (layout / "train.txt").write_text("./images/train/a.png\nimages/train/b.png\n")
    (layout / "lists").mkdir()
    (layout / "lists" / "train.txt").write_text("images/train/a.png\nimages/train/b.png\n")
    monkeypatch.chdir(layout)
    for path in ("train.txt", "lists/train.txt"):
        check(load_dataset(node_of(layout, train={"images": path}), "train"))


def test_labels_beside_the_images_and_names_found(tmp_path: Path, make_image: MakeImage) -> None:
    for name in ("a", "b"):
        make_image(tmp_path / "pictures" / f"{name}.png", (60, 40))
    (tmp_path / "pictures" / "a.txt").write_text("1 0.5 0.5 0.5 0.25\n0 0.9 0.5 0.4 0.2\n")
    (tmp_path / "pictures" / "classes.txt").write_text("cat\ndog\n")
    check(load_dataset({"format": "yolo", "val": {"images": str(tmp_path / "pictures")}}, "val"))


@pytest.mark.parametrize(
    "text",
    [
        "path: {root}\ntrain: images/train\nval: [images/val]\nnames: [cat, dog]\nnc: 2\n",
        "train: ../images/train\nval: images/val\nnames: {{1: dog, 0: cat}}\n",
    ],
)
def test_ultralytics_yaml(text: str, layout: Path) -> None:
    path = layout / "data.yaml"
    path.write_text(text.format(root=layout))
    node = {"format": "yolo", "yaml": str(path)}
    for split in ("train", "val"):
        assert has_split(node, split)
        check(load_dataset(node, split))


def test_darknet_data_file(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (layout / "train.txt").write_text("images/train/a.png\nimages/train/b.png\n")
    (layout / "voc.data").write_text(
        "classes = 2\ntrain = train.txt # all\nnames = obj.names\nbackup = backup/\n"
    )
    monkeypatch.chdir(layout.parent)
    node = {"format": "yolo", "data": str(layout / "voc.data")}
    check(load_dataset(node, "train"))
    assert not has_split(node, "val")
    with pytest.raises(InputError, match="names no val pictures"):
        load_dataset(node, "val")


def test_polygons_give_their_box(layout: Path) -> None:
    (layout / "labels" / "train" / "a.txt").write_text("1 0.2 0.5 0.4 0.25 0.5 0.75 0.3 0.6\n")
    (box,) = load_dataset(node_of(layout), "train").dicts[0]["annotations"]
    assert box["bbox"] == pytest.approx([12, 10, 30, 30])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5", r"a\.txt:2: expected 'class x y width height' \(5 numbers\), found 4"),
        ("0 0.5 0.5 0.5 0.5 0.9", r"a\.txt:2: expected .* found 6"),
        ("0 0.5 0.5 0.5 x", r"a\.txt:2: not numbers"),
        ("2 0.5 0.5 0.5 0.5", r"a\.txt:2: class 2 is not one of the 2 classes \(0 to 1\)"),
        ("-1 0.5 0.5 0.5 0.5", "class -1 is not one of"),
        ("0.5 0.5 0.5 0.5 0.5", "class 0.5 is not one of"),
        ("0 20 30 15 20", r"must be fractions of the picture \(0 to 1\), found 30"),
    ],
)
def test_malformed_lines(line: str, message: str, layout: Path) -> None:
    (layout / "labels" / "train" / "a.txt").write_text(f"0 0.5 0.5 0.5 0.5\n{line}\n")
    with pytest.raises(InputError, match=message):
        load_dataset(node_of(layout), "train")


def test_bad_boxes_and_images(layout: Path) -> None:
    label = layout / "labels" / "train" / "a.txt"
    label.write_text("0 0.5 0.5 0 0.5\n0 nan 0.5 0.5 0.5\n0 1.5 0.5 0.5 0.5\n")
    report = load_dataset(node_of(layout), "train").report
    assert sorted(count for count, _ in report.dropped.values()) == [1, 1, 1]
    (layout / "images" / "train" / "b.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"1 of 2 image files are unreadable, .*b\.png"):
        load_dataset(node_of(layout), "train")
    assert len(load_dataset(node_of(layout), "train", on_bad_image="skip")) == 1


def test_node_errors(layout: Path) -> None:
    def fails(message: str, **keys: Any) -> None:
        with pytest.raises(InputError, match=message):
            load_dataset(node_of(layout, **keys), "train")

    fails("dataset.train.images: /no does not exist", train={"images": "/no"})
    fails("dataset.train.images is not set", train={})
    (layout / "gap.names").write_text("cat\n\ndog\n")
    fails("gap.names, line 2: expected a class name", names=str(layout / "gap.names"))
    fails("dataset.names: /no does not exist", names="/no")
    fails("lists the class 'cat' twice", names=["cat", "cat"])
    (layout / "data.yaml").write_text("names: [cat\n")
    fails(r"data\.yaml is not valid YAML", yaml=str(layout / "data.yaml"))
    (layout / "data.yaml").write_text("names: [cat, dog]\nnc: 3\n")
    fails("has 2 class names where 3 are announced", yaml=str(layout / "data.yaml"), names=None)
    for split in ("train", "val"):
        (layout / "labels" / split / "a.txt").unlink()
    fails("none of its 2 pictures has a label file")
