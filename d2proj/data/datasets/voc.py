"""Pascal VOC: ``Annotations/*.xml``, ``JPEGImages``, and ``ImageSets/Main/<split>.txt``.

The format is that of the development kit of http://host.robots.ox.ac.uk/pascal/VOC/.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from d2proj.data.bad_image import UNREADABLE
from d2proj.data.datasets.raw import RawDataset, existing_path, image_size, read_lines
from d2proj.errors import InputError

_SPLIT = {"root": None, "split": None}
KEYS: dict[str, Any] = {
    "train": _SPLIT,
    "val": _SPLIT,
    "one_based": None,
    "difficult": None,
}
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".JPG", ".JPEG", ".PNG")


@dataclass
class _Picture:
    """One annotation file: the picture's path and size, and its objects."""

    path: str
    width: int
    height: int
    names: list[str] = field(default_factory=list)
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)


def read(node: dict[str, Any], split: str) -> RawDataset:
    """Read ``dataset.<split>.root`` and ``.split``; every other key is optional.

    ``dataset.one_based`` (default True): coordinates count pixels from 1 and name the last pixel
    inside, as VOC's do, so that a box is x - 1, y - 1, X, Y in continuous coordinates.
    ``dataset.difficult`` (default "ignore"): objects marked difficult are not trained on and not
    counted in evaluation, as in VOC's own; "use" makes them ordinary.
    """
    offset = 1.0 if _choice(node, "one_based", (True, False)) else 0.0
    ignore_difficult = _choice(node, "difficult", ("ignore", "use")) == "ignore"
    root, list_file = _located(node, split)
    pictures = list(_pictures(root, list_file))
    names = {name for picture in pictures for name in picture.names}
    names |= _names_of_other_split(node, split)
    class_names = sorted(names)
    number = {name: i for i, name in enumerate(class_names)}
    if not class_names:
        raise InputError(f"{list_file}: no object of any class in its annotations.")

    return RawDataset(
        source=str(list_file),
        class_names=class_names,
        category_ids=list(range(1, len(class_names) + 1)),
        file_names=[picture.path for picture in pictures],
        image_ids=range(1, len(pictures) + 1),
        widths=[picture.width for picture in pictures],
        heights=[picture.height for picture in pictures],
        image_index=[i for i, picture in enumerate(pictures) for _ in picture.names],
        boxes=[
            value
            for picture in pictures
            for x1, y1, x2, y2 in picture.boxes
            for value in _continuous(x1, y1, x2, y2, offset)
        ],
        classes=[number[name] for picture in pictures for name in picture.names],
        crowd=[flag and ignore_difficult for picture in pictures for flag in picture.difficult],
        unreadable=[i for i, picture in enumerate(pictures) if picture.width == 0],
    )


def _continuous(
    x1: float, y1: float, x2: float, y2: float, offset: float
) -> tuple[float, float, float, float]:
    """Corner coordinates; a box that is labelled as of no area stays of no area."""
    if x2 <= x1 or y2 <= y1:
        return x1, y1, x2, y2
    return x1 - offset, y1 - offset, x2, y2


def _choice(node: dict[str, Any], key: str, allowed: tuple[Any, ...]) -> Any:
    value = node.get(key, allowed[0])
    if value not in allowed:
        raise InputError(f"dataset.{key} must be one of {allowed}, not {value!r}.")
    return value


def _located(node: dict[str, Any], split: str) -> tuple[Path, Path]:
    paths = node.get(split) or {}
    root = existing_path(paths.get("root"), f"dataset.{split}.root", folder=True)
    if paths.get("split") is None:
        raise InputError(
            f"dataset.{split}.split is not set: it must name a list in {root}/ImageSets/Main."
        )
    list_file = root / "ImageSets" / "Main" / f"{paths['split']}.txt"
    if not list_file.is_file():
        available = sorted(path.stem for path in list_file.parent.glob("*.txt"))
        raise InputError(
            f"dataset.{split}.split: {list_file} does not exist "
            f"(there are: {', '.join(available[:20]) or 'none'})."
        )
    return root, list_file


def _names_of_other_split(node: dict[str, Any], split: str) -> set[str]:
    """The classes of the other split, so that both number the same list.

    VOC data sets carry no list of their classes. A missing other split is no error here: it
    is one when it is loaded itself.
    """
    other = "val" if split == "train" else "train"
    if not node.get(other):
        return set()
    try:
        root, list_file = _located(node, other)
    except InputError:
        return set()
    return {name for picture in _pictures(root, list_file) for name in picture.names}


def _pictures(root: Path, list_file: Path) -> Iterator[_Picture]:
    folder = root / "Annotations"
    images = root / "JPEGImages"
    for path in (folder, images):
        if not path.is_dir():
            raise InputError(f"{root} is not a Pascal VOC data set: it has no folder {path.name}.")
    present = {path.stem: path.name for path in sorted(images.iterdir(), reverse=True)}
    entries = [line.split()[0] for line in read_lines(list_file) if line.strip()]
    if len(set(entries)) != len(entries):
        repeated = next(entry for entry in entries if entries.count(entry) > 1)
        raise InputError(f"{list_file} lists {repeated} twice.")
    for entry in entries:
        # A picture that is missing keeps its usual name and is reported with all others.
        image = images / present.get(entry, f"{entry}.jpg")
        yield _read_xml(folder / f"{entry}.xml", image)


def _read_xml(path: Path, image: Path) -> _Picture:
    """Read one annotation file; without one, a picture has no objects."""
    if not path.is_file():
        return _Picture(str(image), *_size_of(image))
    try:
        tree = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not well-formed XML: {error}.") from error
    width, height = (int(_number(tree, f"size/{side}", path, 0)) for side in ("width", "height"))
    if width <= 0 or height <= 0:
        width, height = _size_of(image)
    picture = _Picture(str(image), width, height)
    for position, item in enumerate(tree.iter("object")):
        name = (item.findtext("name") or "").strip()
        if not name:
            raise InputError(f"{path}: object {position + 1} has no name.")
        corners = [
            _number(item, f"bndbox/{corner}", path, None)
            for corner in ("xmin", "ymin", "xmax", "ymax")
        ]
        picture.names.append(name)
        picture.boxes.append((corners[0], corners[1], corners[2], corners[3]))
        picture.difficult.append(_number(item, "difficult", path, 0) != 0)
    return picture


def _number(element: ElementTree.Element, key: str, path: Path, default: float | None) -> float:
    text = element.findtext(key)
    if text is None or not text.strip():
        if default is None:
            raise InputError(f"{path}: an object has no {key}.")
        return default
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{path}: {key} must be a number, not {text.strip()!r}.") from None
    if default is not None and not math.isfinite(value):
        raise InputError(f"{path}: {key} must be a finite number, not {text.strip()!r}.")
    return value


def _size_of(image: Path) -> tuple[int, int]:
    """The size that an annotation does not give; 0 x 0 if the picture cannot be read either."""
    try:
        return image_size(str(image))
    except UNREADABLE:
        return 0, 0
