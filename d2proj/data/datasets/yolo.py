"""YOLO text labels: one ``.txt`` per picture, lines ``class x y w h`` in fractions of its size.

Read from a folder or list of pictures with a file of names, from darknet's ``.data``, or from
Ultralytics' ``data.yaml``. Lines ``class x1 y1 x2 y2 x3 y3 ...`` are polygons; their box is used.
"""

import math
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from d2proj.data.bad_image import UNREADABLE
from d2proj.data.datasets.raw import RawDataset, existing_path, image_size, read_lines
from d2proj.data.names_file import read_names
from d2proj.errors import InputError

_SPLIT = {"images": None}
KEYS: dict[str, Any] = {
    "train": _SPLIT,
    "val": _SPLIT,
    "names": None,
    "yaml": None,
    "data": None,
}
IMAGE_SUFFIXES = frozenset(Image.registered_extensions()) - {".pdf", ".mpg", ".mpeg"}
# Fractions further out than this are pixels that somebody forgot to divide.
_LARGEST_FRACTION = 10.0
_NAMES_BESIDE = ("classes.txt", "obj.names", "data.yaml")


def splits_of(node: dict[str, Any]) -> set[str]:
    """Which of train and val a ``yaml`` or ``data`` file describes (a missing file: both)."""
    try:
        described = _description(node)
    except InputError:
        return {"train", "val"}
    return {split for split in ("train", "val") if _entry(described, split)}


def read(node: dict[str, Any], split: str) -> RawDataset:
    """Read ``dataset.<split>.images``, or what ``dataset.yaml`` or ``dataset.data`` says it is."""
    described = _description(node)
    given = (node.get(split) or {}).get("images")
    if given is not None:
        source = _existing(Path(str(given)).expanduser(), f"dataset.{split}.images")
        images = _images_at(source)
    elif described:
        source = Path(str(node.get("yaml") or node.get("data")))
        images = _described_images(described, split, source)
    else:
        raise InputError(
            f"dataset.{split}.images is not set: it must name a folder or a list of "
            f"pictures, unless dataset.yaml or dataset.data is given."
        )
    if not images:
        raise InputError(f"{source}: there is no picture in it.")
    names = _names(node, described, images[0])
    return _read_labels(str(source), images, names)


def _read_labels(source: str, images: list[str], names: list[str]) -> RawDataset:
    widths, heights, unreadable = [], [], []
    image_index, classes = [], []
    boxes: list[float] = []
    labelled = 0
    for i, image in enumerate(images):
        try:
            width, height = image_size(image)
        except UNREADABLE:
            width, height = 1, 1
            unreadable.append(i)
        widths.append(width)
        heights.append(height)
        label = label_path(image)
        if label is None:
            continue
        labelled += 1
        for category, (x1, y1, x2, y2) in _label_lines(label, len(names)):
            image_index.append(i)
            classes.append(category)
            boxes += (x1 * width, y1 * height, x2 * width, y2 * height)
    if not labelled:
        raise InputError(
            f"{source}: none of its {len(images)} pictures has a label file, neither beside it nor "
            f"in a folder labels in place of images (for example for {images[0]})."
        )
    without = len(images) - labelled
    return RawDataset(
        source=source,
        class_names=names,
        category_ids=list(range(1, len(names) + 1)),
        file_names=images,
        image_ids=range(1, len(images) + 1),
        widths=widths,
        heights=heights,
        image_index=image_index,
        boxes=boxes,
        classes=classes,
        crowd=[0] * len(classes),
        unreadable=unreadable,
        notes=[f"{without} pictures have no label file: no objects"] if without else [],
    )


def label_path(image: str) -> Path | None:
    """The label file of a picture: the last folder ``images`` replaced by ``labels``, or beside."""
    path = Path(image)
    parts = list(path.parts)
    for position in range(len(parts) - 2, -1, -1):
        if parts[position] == "images":
            moved = Path(*parts[:position], "labels", *parts[position + 1 :]).with_suffix(".txt")
            if moved.is_file():
                return moved
            break
    beside = path.with_suffix(".txt")
    return beside if beside.is_file() else None


def _label_lines(path: Path, num_classes: int) -> list[tuple[int, tuple[float, ...]]]:
    """Class and x1 y1 x2 y2, in fractions of the picture, of each line of a label file."""
    result = []
    for number, line in enumerate(read_lines(path), start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            category, *values = (float(text) for text in fields)
        except ValueError:
            raise InputError(f"{path}:{number}: not numbers: {line.strip()[:60]!r}.") from None
        polygon = len(values) >= 6 and len(values) % 2 == 0
        if len(values) != 4 and not polygon:
            raise InputError(
                f"{path}:{number}: expected 'class x y width height' (5 numbers), "
                f"found {len(fields)}."
            )
        if not category.is_integer() or not 0 <= category < num_classes:
            raise InputError(
                f"{path}:{number}: class {fields[0]} is not one of the {num_classes} classes "
                f"(0 to {num_classes - 1})."
            )
        if any(math.isfinite(value) and abs(value) > _LARGEST_FRACTION for value in values):
            raise InputError(
                f"{path}:{number}: coordinates must be fractions of the picture (0 to 1), "
                f"found {max(values, key=abs):g}."
            )
        result.append((int(category), _corners(values)))
    return result


def _corners(values: list[float]) -> tuple[float, ...]:
    if len(values) == 4:
        x, y, width, height = values
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])


def _images_at(source: Path) -> list[str]:
    """The pictures of a folder (and its sub-folders), or those that a text file lists."""
    if source.is_dir():
        return sorted(
            str(path) for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES
        )
    entries = [line.strip() for line in read_lines(source) if line.strip()]
    images = []
    for entry in entries:
        # Darknet's lists are relative to the working folder, Ultralytics' to the list.
        beside = source.parent / entry
        images.append(str(beside if beside.is_file() or not Path(entry).is_file() else entry))
    return images


def _description(node: dict[str, Any]) -> dict[str, Any]:
    """What dataset.yaml or dataset.data says; {} when neither is given."""
    if node.get("yaml") is not None:
        return _read_yaml(existing_path(node["yaml"], "dataset.yaml", folder=False))
    if node.get("data") is None:
        return {}
    path = existing_path(node["data"], "dataset.data", folder=False)
    result: dict[str, Any] = {}
    for number, line in enumerate(read_lines(path), start=1):
        line = line.split("#")[0].strip()
        if not line:
            continue
        key, separator, value = line.partition("=")
        if not separator:
            raise InputError(f"{path}:{number}: expected 'key = value', found {line[:60]!r}.")
        result[key.strip()] = value.strip()
    return result


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load("\n".join(read_lines(path)))
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise InputError(f"{path} is not valid YAML: {problem}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold keys (train, val, names), not {content!r:.60}.")
    return content


def _entry(described: dict[str, Any], split: str) -> Any:
    return described.get(split) or (described.get("valid") if split == "val" else None)


def _described_images(described: dict[str, Any], split: str, source: Path) -> list[str]:
    entries = _entry(described, split)
    if not entries:
        raise InputError(f"{source} names no {split} pictures.")
    images: list[str] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        candidates = _candidates(str(entry), described.get("path"), source)
        found = next((path for path in candidates if path.exists()), None)
        if found is None:
            raise InputError(f"{source}: its {split} pictures {candidates[0]} do not exist.")
        images += _images_at(found)
    return images


def _candidates(entry: str, base: Any, source: Path) -> list[Path]:
    """Where a path in a description may be: relative to its own base, its file, or here."""
    folders = [source.parent, Path()]
    if base is not None:
        folders = [source.parent / str(base), Path(str(base)), *folders]
    paths = [folder / entry for folder in folders]
    if entry.startswith("../"):
        # Exports exist whose "../train/images" lies beside the description itself.
        paths.append(source.parent / entry[3:])
    return paths


def _names(node: dict[str, Any], described: dict[str, Any], first_image: str) -> list[str]:
    """The class names: from dataset.names, the description, or a file beside the pictures."""
    given, origin = node.get("names"), "dataset.names"
    if given is None and described:
        given, origin = described.get("names"), str(node.get("yaml") or node.get("data"))
        if isinstance(given, str):
            candidates = _candidates(given, None, Path(origin))
            given = next((str(path) for path in candidates if path.is_file()), given)
    if given is None:
        given, origin = _names_beside(Path(first_image)), "dataset.names"
    if given is None:
        raise InputError(
            "dataset.names is not set: it must be a list of class names or a file with them."
        )
    if isinstance(given, str):
        path = existing_path(given, origin, folder=False)
        origin = str(path)
        if path.suffix in (".yaml", ".yml"):
            given = _read_yaml(path).get("names")
        else:
            given = read_names(path)
    names = _as_list(given, origin)
    expected = described.get("nc", described.get("classes"))
    if expected is not None and str(expected) != str(len(names)):
        raise InputError(f"{origin} has {len(names)} class names where {expected} are announced.")
    return names


def _as_list(names: Any, origin: str) -> list[str]:
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise InputError(f"{origin} must give a list of class names, not {names!r:.60}.")
    names = [str(name) for name in names]
    if len(set(names)) != len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{origin} lists the class {repeated!r} twice.")
    return names


def _names_beside(image: Path) -> str | None:
    for folder in (image.parent, *list(image.parents)[1:3]):
        for name in _NAMES_BESIDE:
            for path in (folder / name, folder / "labels" / name):
                if path.is_file():
                    return str(path)
    return None


def _existing(path: Path, key: str) -> Path:
    if not path.exists():
        raise InputError(f"{key}: {path} does not exist.")
    return path
