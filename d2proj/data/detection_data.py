"""What ``load_dataset`` returns: records, classes, and an account of what was found."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2proj.data.records import DetectionRecords
from d2proj.errors import InputError


@dataclass
class DatasetReport:
    """An account of a data set as it was read.

    Attributes:
        images: number of images kept.
        empty_images: how many of them have neither a box nor a label to train on.
        boxes: number of boxes kept, crowd boxes not counted.
        crowd: number of boxes that are ignored (COCO's crowds, VOC's difficult ones).
        clipped: number of kept boxes that reached outside their image and were cut.
        per_class: boxes of each class, crowd boxes not counted.
        labelled_images: how many images have a label without a box.
        per_label: labels without boxes of each class that has any.
        dropped: reason -> (count, an example) of boxes and images that were left out.
        notes: sentences about anything else a reader should know.
    """

    images: int = 0
    empty_images: int = 0
    boxes: int = 0
    crowd: int = 0
    clipped: int = 0
    per_class: dict[str, int] = field(default_factory=dict)
    labelled_images: int = 0
    per_label: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, tuple[int, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """A table for people, several lines."""
        lines = [
            f"{self.images} images ({self._without_boxes()}), {self.boxes} boxes of "
            f"{len(self.per_class)} classes, {self.crowd} ignored (crowd or difficult)"
        ]
        width = max((len(name) for name in self.per_class), default=0)
        lines += [f"  {name:<{width}}  {count}" for name, count in self.per_class.items()]
        if self.per_label:
            counts = [f"{name} {count}" for name, count in self.per_label.items()]
            shown = ", ".join(counts[:20]) + (", ..." if len(counts) > 20 else "")
            lines.append(f"labels without boxes, of {len(counts)} classes: {shown}")
        if self.clipped:
            lines.append(f"clipped to the image: {self.clipped} boxes")
        lines += [
            f"dropped, {reason}: {count} (for example {example})"
            for reason, (count, example) in self.dropped.items()
        ]
        return "\n".join(lines + self.notes)

    def _without_boxes(self) -> str:
        if not self.labelled_images:
            return f"{self.empty_images} without boxes"
        return f"{self.labelled_images} labelled without boxes, {self.empty_images} empty"


@dataclass
class DetectionData:
    """One split of a detection data set, checked and cleaned.

    Attributes:
        name: its name in Detectron2's DatasetCatalog and MetadataCatalog.
        dicts: Detectron2 dataset dicts, made on access (a sequence, not a list).
        class_names: index = ``category_id`` in ``dicts`` = class index of the model.
        category_ids: the id of each class in the evaluation json.
        report: what was found, dropped and clipped.
        json_file: COCO json to evaluate against: the data set's own where that can be used as it
            stands; None until ``evaluation_json`` has written one otherwise.
        label_names: of the labels from ``num_classes`` on, which only images without boxes have:
            the model must know what they are (``YOLO9000.learn_labels``).
    """

    name: str
    dicts: DetectionRecords
    class_names: list[str]
    category_ids: list[int]
    report: DatasetReport
    json_file: str | None = None
    label_names: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.dicts)

    @property
    def num_classes(self) -> int:
        """Number of classes found in the data."""
        return len(self.class_names)

    def register(self) -> None:
        """Enter the data set in Detectron2's catalogs, in place of an earlier reading of it."""
        if self.name in DatasetCatalog.list():
            DatasetCatalog.remove(self.name)
        if self.name in MetadataCatalog.list():
            MetadataCatalog.remove(self.name)
        DatasetCatalog.register(self.name, partial(list, self.dicts))
        metadata = MetadataCatalog.get(self.name)
        metadata.set(
            thing_classes=self.class_names,
            thing_dataset_id_to_contiguous_id={
                category: index for index, category in enumerate(self.category_ids)
            },
            evaluator_type="coco",
        )
        if self.json_file is not None:
            metadata.set(json_file=self.json_file)

    def evaluation_json(self, folder: str | os.PathLike[str]) -> str:
        """The path of the COCO json to evaluate against, written into ``folder`` if need be.

        Every process may call it: the content depends on the data alone and the file appears in
        one rename.
        """
        if self.json_file is None:
            path = Path(folder) / f"{self.name}_coco.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            with temporary.open("w", encoding="utf-8") as stream:
                self._write_coco_json(stream.write)
            temporary.replace(path)
            self.json_file = str(path)
            MetadataCatalog.get(self.name).set(json_file=self.json_file)
        return self.json_file

    def _write_coco_json(self, write: Any) -> None:
        categories = [
            {"id": category, "name": name}
            for category, name in zip(self.category_ids, self.class_names, strict=True)
        ]
        info = {"description": f"{self.name}, converted by d2proj"}
        write(
            f'{{"info": {json.dumps(info)},\n"categories": {json.dumps(categories)},\n"images": ['
        )
        write(",\n".join(map(json.dumps, self._coco_images())))
        write('],\n"annotations": [')
        for position, annotation in enumerate(self._coco_annotations()):
            write((",\n" if position else "") + json.dumps(annotation))
        write("]}\n")

    def _coco_images(self) -> Iterator[dict[str, Any]]:
        records = self.dicts
        # What is to be found in images with mere labels is not known.
        for i in np.flatnonzero(~records.labelled_images()).tolist():
            yield {
                "id": int(records.image_ids[i]),
                "file_name": records.file_names[i],
                "width": int(records.widths[i]),
                "height": int(records.heights[i]),
            }

    def _coco_annotations(self) -> Iterator[dict[str, Any]]:
        records = self.dicts
        sizes = records.boxes[:, 2:] - records.boxes[:, :2]
        areas = sizes.prod(axis=1) if records.areas is None else records.areas
        # Identity counts from 1: COCO's evaluation takes an annotation 0 for "no match".
        labelled = records.labelled_images()
        for k, image in enumerate(records.image_of_box()):
            if labelled[image]:
                continue
            (x, y), (width, height) = records.boxes[k, :2], sizes[k]
            yield {
                "id": k + 1,
                "image_id": int(records.image_ids[image]),
                "category_id": self.category_ids[records.classes[k]],
                "bbox": [round(float(v), 4) for v in (x, y, width, height)],
                "area": round(float(areas[k]), 4),
                "iscrowd": int(records.crowd[k]),
            }


def check_same_classes(train: DetectionData, val: DetectionData) -> None:
    """Raise InputError unless both splits number the same classes in the same way."""
    if train.class_names == val.class_names:
        return
    only_train = [name for name in train.class_names if name not in val.class_names]
    only_val = [name for name in val.class_names if name not in train.class_names]
    if only_train or only_val:
        difference = "; ".join(
            f"only in {split}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
            for split, names in (("train", only_train), ("val", only_val))
            if names
        )
    else:
        difference = "the same names in another order"
    raise InputError(
        f"The classes of train ({train.num_classes}) and val ({val.num_classes}) differ "
        f"({difference}): set dataset.class_names to the list to use."
    )
