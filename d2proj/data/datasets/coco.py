"""COCO json: ``images``, ``annotations`` with ``bbox`` = x y w h, ``categories``.

An annotation without ``bbox`` (or null) is a label of the image.

The format is described at https://cocodataset.org/#format-data.
"""

import mmap
import os
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from d2proj.data.datasets.json_stream import JSONDecodeError, read_top_level
from d2proj.data.datasets.raw import RawDataset, existing_path
from d2proj.errors import InputError

_SPLIT = {"json": None, "images": None}
KEYS: dict[str, Any] = {"train": _SPLIT, "val": _SPLIT}


def read(node: dict[str, Any], split: str) -> RawDataset:
    """Read ``dataset.<split>.json``; its pictures are in the folder ``dataset.<split>.images``."""
    paths = node.get(split) or {}
    json_file = existing_path(paths.get("json"), f"dataset.{split}.json", folder=False)
    folder = existing_path(paths.get("images"), f"dataset.{split}.images", folder=True)
    return read_coco_json(json_file, folder)


def read_coco_json(json_file: Path, image_folder: Path) -> RawDataset:
    """Read one COCO json without ever holding its annotations as Python objects.

    Raises:
        InputError: not JSON, not COCO (the missing or malformed key is named), or ids that refer
            to nothing.
    """
    images, annotations = _Images(json_file), _Annotations(json_file)
    rest = _parse(json_file, {"images": images.add, "annotations": annotations.add})
    for key in ("images", "annotations", "categories"):
        if key not in rest:
            raise InputError(f"{json_file} is not a COCO data set: it has no {key!r}.")
    names, ids = _categories(rest["categories"], json_file)
    image_ids = np.frombuffer(images.ids, dtype=np.int64)
    image_index = _index_of(
        image_ids, annotations.image_ids, "image_id", "image", annotations, json_file
    )
    classes = _index_of(
        np.array(ids, dtype=np.int64),
        annotations.category_ids,
        "category_id",
        "category",
        annotations,
        json_file,
    )
    boxes = np.frombuffer(annotations.boxes, dtype=np.float64).reshape(-1, 4).copy()
    boxes[:, 2:] += boxes[:, :2]
    return RawDataset(
        source=str(json_file),
        class_names=names,
        category_ids=ids,
        file_names=[os.path.join(image_folder, name) for name in images.file_names],
        image_ids=image_ids,
        widths=np.frombuffer(images.widths, dtype=np.int64),
        heights=np.frombuffer(images.heights, dtype=np.int64),
        image_index=image_index,
        boxes=boxes,
        classes=classes,
        crowd=np.frombuffer(annotations.crowd, dtype=np.int8).astype(np.bool_),
        areas=np.frombuffer(annotations.areas, dtype=np.float64),
        has_box=np.frombuffer(annotations.has_box, dtype=np.int8).astype(np.bool_),
        json_file=str(json_file),
        rewrite_because=annotations.unfit_for_evaluation(),
    )


def _parse(json_file: Path, arrays: dict[str, Any]) -> dict[str, Any]:
    """Decode a file's top-level object, streaming the named arrays."""
    try:
        with json_file.open("rb") as stream:
            if not os.fstat(stream.fileno()).st_size:
                raise InputError(f"{json_file} is empty, not a COCO json.")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                text = str(mapped, "utf-8-sig")
        return read_top_level(text, arrays)
    except (JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{json_file} is not valid JSON: {error}.") from None
    except OSError as error:
        raise InputError(f"{json_file} cannot be read: {error}.") from error


class _Images:
    """Collects the entries of ``images`` in columns."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self.file_names: list[str] = []
        self.ids, self.widths, self.heights = array("q"), array("q"), array("q")

    def add(self, entry: Any) -> None:
        try:
            name, width, height = entry["file_name"], entry["width"], entry["height"]
            self.ids.append(entry["id"])
            self.widths.append(width)
            self.heights.append(height)
            usable = isinstance(name, str) and name and width > 0 and height > 0
        except (KeyError, TypeError, OverflowError, IndexError) as error:
            raise _malformed(self._source, "images", len(self.file_names), error) from None
        if not usable:
            raise InputError(
                f"{self._source} is not a COCO data set: images[{len(self.file_names)}] needs a "
                f"file_name and a positive width and height, not {name!r}, {width}, {height}."
            )
        self.file_names.append(name)


class _Annotations:
    """Collects the entries of ``annotations`` in columns: 50 bytes each instead of 700."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self.image_ids, self.category_ids = array("q"), array("q")
        self.boxes, self.areas, self.crowd = array("d"), array("d"), array("b")
        self.has_box = array("b")
        self._missing: dict[str, int] = {"bbox": 0, "id": 0, "area": 0, "iscrowd": 0}

    def add(self, entry: Any) -> None:
        try:
            bbox = entry.get("bbox")
            is_label = bbox is None and not entry.get("iscrowd")
            self._missing["bbox"] += is_label
            self.has_box.append(not is_label)
            x, y, width, height = (0.0,) * 4 if is_label else bbox
            self.image_ids.append(entry["image_id"])
            self.category_ids.append(entry["category_id"])
            self.boxes.extend((x, y, width, height))
            area = entry.get("area")
            if area is None:
                self._missing["area"] += 1
                area = width * height
            self.areas.append(area)
            crowd = entry.get("iscrowd")
            if crowd is None:
                self._missing["iscrowd"] += 1
            self.crowd.append(1 if crowd else 0)
            if not entry.get("id"):
                self._missing["id"] += 1
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise _malformed(self._source, "annotations", len(self.crowd), error) from None

    def unfit_for_evaluation(self) -> list[str]:
        """Why pycocotools would fail on the file or count wrongly (an id of 0 means no match)."""
        return [
            f"{count} annotations without {key}" + (" or with id 0" if key == "id" else "")
            for key, count in self._missing.items()
            if count
        ]


def _malformed(source: Path, array_name: str, position: int, error: Exception) -> InputError:
    where = f"{array_name}[{position}]"
    if isinstance(error, KeyError):
        problem = f"{where} has no {error.args[0]!r}"
    elif array_name == "images":
        problem = f"{where} must have a file_name and whole numbers id, width and height"
    else:
        problem = (
            f"{where} must have whole numbers image_id and category_id and "
            f"a bbox of 4 numbers (x, y, width, height)"
        )
    return InputError(f"{source} is not a COCO data set: {problem}.")


def _categories(entries: Any, source: Path) -> tuple[list[str], list[int]]:
    """Names and ids by increasing id, the order in which COCO's evaluation reports classes."""
    try:
        pairs = sorted((entry["id"], entry["name"]) for entry in entries)
    except (KeyError, TypeError):
        pairs = []
    ids, names = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if not pairs or not all(isinstance(i, int) for i in ids):
        raise InputError(
            f"{source} is not a COCO data set: categories must be a list of "
            f"objects with a whole number id and a name."
        )
    for what, values in (("id", ids), ("name", names)):
        if len(set(values)) != len(values):
            repeated = next(v for v in values if values.count(v) > 1)
            raise InputError(f"{source}: two categories have the {what} {repeated!r}.")
    return [str(name) for name in names], ids


def _index_of(
    known: npt.NDArray[np.int64],
    wanted: array,
    key: str,
    kind: str,
    annotations: _Annotations,
    source: Path,
) -> npt.NDArray[np.int64]:
    """Where each wanted id stands among the known ones.

    Raises:
        InputError: a known id occurs twice, or a wanted one is not known.
    """
    order = np.argsort(known, kind="stable")
    ordered = known[order]
    if (repeated := ordered[1:] == ordered[:-1]).any():
        raise InputError(
            f"{source}: two entries of {kind}s have the id {ordered[1:][repeated][0]}."
        )
    ids = np.frombuffer(wanted, dtype=np.int64)
    if not len(ids):
        return np.zeros(0, dtype=np.int64)
    place = np.searchsorted(ordered, ids)
    unknown = np.ones(len(ids), dtype=np.bool_)
    inside = place < len(ordered)
    unknown[inside] = ordered[place[inside]] != ids[inside]
    if unknown.any():
        first = int(np.argmax(unknown))
        raise InputError(
            f"{source}: annotations[{first}] has {key} {ids[first]}, but no {kind} has that id "
            f"({int(unknown.sum())} such annotations)."
        )
    return order[place]
