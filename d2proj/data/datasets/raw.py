"""What every reader produces, and the checks and cleaning that all formats share."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from d2proj.data.detection_data import DatasetReport, DetectionData
from d2proj.data.records import DetectionRecords, StringColumn
from d2proj.errors import InputError

# Coordinates are often written with two decimals: a box that leaves the image by less than this
# many pixels was not badly labelled, and is cut without being counted.
CLIP_TOLERANCE = 0.05
# Folders in which fewer files than this are wanted are not listed: the files are looked up.
_LIST_FROM = 200


@dataclass
class RawDataset:
    """A data set as its files say it is, before checks: N images, M boxes in any order.

    Attributes:
        source: what to call it in messages (its json, list or folder).
        class_names: C names.
        category_ids: C ids of the classes in the data set's own json, increasing.
        file_names: N paths.
        image_ids, widths, heights: N each.
        image_index: M indices of the image that a box is in.
        boxes: M x 4, x1 y1 x2 y2 in pixels, as labelled.
        classes: M indices into class_names.
        crowd: M flags.
        areas: M areas, or None for those of the boxes.
        has_box: M flags, false for a label of the image, whose box does not matter; or None.
        unreadable: indices of images whose size had to be read from the file and could not be.
        json_file: a COCO json that says the same.
        rewrite_because: why that json cannot be used for evaluation as it stands.
        notes: sentences for the report.
    """

    source: str
    class_names: list[str]
    category_ids: list[int]
    file_names: list[str]
    image_ids: Sequence[int] | npt.NDArray[np.int64]
    widths: Sequence[int] | npt.NDArray[np.int64]
    heights: Sequence[int] | npt.NDArray[np.int64]
    image_index: Sequence[int] | npt.NDArray[np.int64]
    boxes: Sequence[float] | npt.NDArray[np.float64]
    classes: Sequence[int] | npt.NDArray[np.int64]
    crowd: Sequence[int] | npt.NDArray[np.bool_]
    areas: npt.NDArray[np.float64] | None = None
    has_box: npt.NDArray[np.bool_] | None = None
    unreadable: list[int] = field(default_factory=list)
    json_file: str | None = None
    rewrite_because: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def finish(
    raw: RawDataset,
    *,
    name: str,
    class_names: Sequence[str] | None,
    training: bool,
    skip_missing: bool,
    check_images: bool,
) -> DetectionData:
    """Clean a data set and put it into its final form.

    Args:
        raw: what a reader found.
        name: the name to register it under.
        class_names: the user's choice and order of classes; None takes all that were found.
        training: each chosen class must occur among those of the data set. Otherwise images that
            have labels without boxes are left out: what a detector finds there cannot be judged.
        skip_missing: leave out images whose file is missing instead of raising.
        check_images: whether to look for the image files at all.
    """
    report = DatasetReport(notes=list(raw.notes))
    columns = _Columns(raw)
    if class_names is not None:
        _choose_classes(raw, columns, list(class_names), training, report)
    if check_images:
        _drop_missing_images(raw, columns, skip_missing, report)
    if not training:
        _drop_labelled_images(raw, columns, report)
    _drop_bad_boxes(raw, columns, report)
    records = columns.records(raw.file_names)
    if not len(records):
        raise InputError(f"{raw.source}: there is no image in it.")
    count(records, raw.class_names, report)
    if report.dropped:
        raw.rewrite_because.append("some of its entries are dropped")
    if raw.json_file and raw.rewrite_because:
        reasons = "; ".join(raw.rewrite_because)
        report.notes.append(f"evaluation uses a converted copy of {raw.json_file}: {reasons}")
    return DetectionData(
        name=name,
        dicts=records,
        class_names=raw.class_names,
        category_ids=raw.category_ids,
        report=report,
        json_file=None if raw.rewrite_because else raw.json_file,
    )


class _Columns:
    """The columns of a RawDataset as arrays, with a mask of the images and boxes still in."""

    def __init__(self, raw: RawDataset) -> None:
        self.image_ids = np.asarray(raw.image_ids, dtype=np.int64)
        self.widths = np.asarray(raw.widths, dtype=np.int32)
        self.heights = np.asarray(raw.heights, dtype=np.int32)
        self.image_index = np.asarray(raw.image_index, dtype=np.int64)
        self.boxes: npt.NDArray[np.float64] = np.asarray(raw.boxes, np.float64).reshape(-1, 4)
        self.classes = np.asarray(raw.classes, dtype=np.int32)
        self.crowd = np.asarray(raw.crowd, dtype=np.bool_)
        self.areas = raw.areas
        every = np.ones(len(self.boxes), dtype=np.bool_)
        self.has_box = every if raw.has_box is None else raw.has_box
        self.keep_image = np.ones(len(self.image_ids), dtype=np.bool_)
        self.keep_box = np.ones(len(self.boxes), dtype=np.bool_)

    def records(self, file_names: Sequence[str]) -> DetectionRecords:
        keep = self.keep_box & self.keep_image[self.image_index]
        rows = np.flatnonzero(keep)
        rows = rows[np.argsort(self.image_index[rows], kind="stable")]
        per_image = np.bincount(self.image_index[rows], minlength=len(self.keep_image))
        per_image = per_image[self.keep_image]
        has_box = self.has_box[rows]
        kept_names = [file_names[i] for i in np.flatnonzero(self.keep_image).tolist()]
        return DetectionRecords(
            file_names=StringColumn(kept_names),
            image_ids=self.image_ids[self.keep_image],
            widths=self.widths[self.keep_image],
            heights=self.heights[self.keep_image],
            first_box=np.concatenate([[0], np.cumsum(per_image)]).astype(np.int64),
            boxes=self.boxes[rows],
            classes=self.classes[rows],
            crowd=self.crowd[rows],
            areas=None if self.areas is None else self.areas[rows],
            has_box=None if has_box.all() else has_box,
        )


def _choose_classes(
    raw: RawDataset, columns: _Columns, chosen: list[str], require: bool, report: DatasetReport
) -> None:
    """Number the classes as the user listed them; boxes of other classes are dropped."""
    if len(set(chosen)) != len(chosen) or not chosen:
        raise InputError(f"dataset.class_names must list different names, not {chosen}.")
    found = raw.class_names
    if chosen == found:
        return
    unknown = [name for name in chosen if name not in found]
    if unknown and require:
        raise InputError(
            f"dataset.class_names lists {unknown[0]!r}, which {raw.source} does not have "
            f"(it has {_shortened(found)})."
        )
    position = {name: i for i, name in enumerate(chosen)}
    new_index = np.array([position.get(name, -1) for name in found], dtype=np.int32)
    columns.classes = new_index[columns.classes]
    other = columns.classes < 0
    _drop(columns, other, "of a class that dataset.class_names does not list", raw, report)
    raw.class_names = chosen
    raw.category_ids = list(range(1, len(chosen) + 1))
    raw.rewrite_because.append("dataset.class_names chooses or reorders its classes")


def _drop_missing_images(
    raw: RawDataset, columns: _Columns, skip: bool, report: DatasetReport
) -> None:
    missing = missing_files(raw.file_names)
    damaged = sorted(set(raw.unreadable) - set(missing))
    for indices, problem in ((missing, "missing"), (damaged, "unreadable")):
        if not indices:
            continue
        example = raw.file_names[indices[0]]
        if not skip:
            raise InputError(
                f"{raw.source}: {len(indices)} of {len(raw.file_names)} image files are {problem}, "
                f"for example {example}; data.on_bad_image=skip leaves them out."
            )
        columns.keep_image[indices] = False
        report.dropped[f"images whose file is {problem}"] = (len(indices), example)


def _drop_labelled_images(raw: RawDataset, columns: _Columns, report: DatasetReport) -> None:
    labelled = np.unique(columns.image_index[columns.keep_box & ~columns.has_box])
    labelled = labelled[columns.keep_image[labelled]]
    if len(labelled):
        columns.keep_image[labelled] = False
        example = raw.file_names[labelled[0]]
        report.dropped["images with a label without a box"] = (len(labelled), example)


def _drop_bad_boxes(raw: RawDataset, columns: _Columns, report: DatasetReport) -> None:
    """Drop what no detector can find, and cut the rest to its image."""
    boxes = columns.boxes
    x1, y1, x2, y2 = (boxes[:, i] for i in range(4))
    width, height = (size[columns.image_index] for size in (columns.widths, columns.heights))
    not_finite = ~np.isfinite(x1 + y1 + x2 + y2)
    # Written as not (x2 > x1), so that a NaN is caught as well.
    no_area = ~((x2 > x1) & (y2 > y1))
    outside = (x1 >= width) | (y1 >= height) | (x2 <= 0) | (y2 <= 0)
    for bad, reason in (
        (not_finite, "boxes with a coordinate that is not a number"),
        (no_area, "boxes of no area"),
        (outside, "boxes outside their image"),
    ):
        _drop(columns, bad & columns.has_box, reason, raw, report)

    beyond = np.max([-x1, -y1, x2 - width, y2 - height], axis=0, initial=0.0)
    report.clipped = int(((beyond > CLIP_TOLERANCE) & columns.keep_box).sum())
    zero = np.zeros_like(width)
    with np.errstate(invalid="ignore"):
        columns.boxes = np.clip(
            boxes,
            np.stack([zero, zero, zero, zero], axis=1),
            np.stack([width, height, width, height], axis=1),
        )


def _drop(
    columns: _Columns,
    bad: npt.NDArray[np.bool_],
    reason: str,
    raw: RawDataset,
    report: DatasetReport,
) -> None:
    """Take the marked boxes out, those that are still in, and report them."""
    bad = bad & columns.keep_box & columns.keep_image[columns.image_index]
    if not bad.any():
        return
    columns.keep_box &= ~bad
    first = int(np.argmax(bad))
    box = ", ".join(f"{value:g}" for value in columns.boxes[first])
    example = f"[{box}] in {raw.file_names[columns.image_index[first]]}"
    report.dropped[reason] = (int(bad.sum()), example)


def count(records: DetectionRecords, names: Sequence[str], report: DatasetReport) -> None:
    """Enter the numbers of images, boxes and labels.

    Args:
        records: the data set.
        names: of the classes, and of further labels.
        report: changed in place; classes that it counts boxes of already stay those.
    """
    boxed = ~records.labels()
    trainable = records.classes[boxed & ~records.crowd]
    classes = report.per_class or names
    counts = np.bincount(trainable, minlength=len(classes)).tolist()
    labels = np.bincount(records.classes[~boxed], minlength=len(names)).tolist()
    labelled = records.labelled_images()
    report.images = len(records)
    report.boxes = len(trainable)
    report.crowd = int(records.crowd.sum())
    report.labelled_images = int(labelled.sum())
    report.empty_images = int((records.boxes_per_image(crowd=False)[~labelled] == 0).sum())
    report.per_class = dict(zip(classes, counts, strict=True))
    report.per_label = {name: n for name, n in zip(names, labels, strict=True) if n}


def missing_files(paths: Sequence[str]) -> list[int]:
    """The indices of the paths that are not files, found by listing each folder once."""
    by_folder: dict[str, list[int]] = defaultdict(list)
    for i, path in enumerate(paths):
        by_folder[os.path.dirname(path)].append(i)
    missing: list[int] = []
    for folder, members in by_folder.items():
        if len(members) < _LIST_FROM:
            missing += [i for i in members if not os.path.isfile(paths[i])]
            continue
        try:
            with os.scandir(folder or ".") as entries:
                present = {entry.name for entry in entries}
        except OSError:
            present = set()
        missing += [i for i in members if os.path.basename(paths[i]) not in present]
    return sorted(missing)


def image_size(path: str) -> tuple[int, int]:
    """Width and height of an image file as it will be read, from its header.

    Raises:
        OSError: it is missing or not an image.
    """
    with Image.open(path) as image:
        width, height = image.size
        # 5 to 8 are the EXIF orientations that turn the picture on its side.
        if image.getexif().get(0x0112, 1) >= 5:
            width, height = height, width
    return width, height


def existing_path(value: Any, key: str, *, folder: bool) -> Path:
    """The path that a key names, checked.

    Raises:
        InputError: the key is not set, or there is no such file or folder.
    """
    kind = "folder" if folder else "file"
    if value is None:
        raise InputError(f"{key} is not set: it must name a {kind}.")
    path = Path(str(value)).expanduser()
    if not (path.is_dir() if folder else path.is_file()):
        problem = f"is not a {kind}" if path.exists() else "does not exist"
        raise InputError(f"{key}: {path} {problem}.")
    return path


def read_lines(path: Path) -> list[str]:
    """The lines of a text file.

    Raises:
        InputError: it cannot be read as text.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error}).") from error


def _shortened(names: Iterable[str], limit: int = 10) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


Reader = Callable[[dict[str, Any], str], RawDataset]
