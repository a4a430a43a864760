"""Pictures with a label and no boxes: a folder with one folder for each class, as ImageNet's."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from d2proj.data.datasets.raw import count, existing_path
from d2proj.data.datasets.yolo import IMAGE_SUFFIXES
from d2proj.data.detection_data import DetectionData
from d2proj.errors import InputError

KEY = "dataset.train.classification"


def add_classification(data: DetectionData, folder: str | os.PathLike[str]) -> None:
    """Add labelled pictures to a data set to train on.

    A folder that is called like a class gives its pictures the label of that class; the others are
    ``data.label_names``, and it is the model's business what they are. No picture is opened here:
    ImageNet has more than a million.

    Args:
        data: changed in place.
        folder: has a folder for each class, with pictures in it and its sub-folders.

    Raises:
        InputError: there is no such folder, or no picture in it.
    """
    root = existing_path(folder, KEY, folder=True)
    numbers = {name: i for i, name in enumerate(data.class_names)}
    file_names: list[str] = []
    labels: list[int] = []
    for name in sorted(entry.name for entry in os.scandir(root) if entry.is_dir()):
        found = sorted(_pictures(root / name))
        if found:
            file_names += found
            labels += [numbers.setdefault(name, len(numbers))] * len(found)
    if not labels:
        raise InputError(
            f"{KEY}: {root} must have a folder for each class with pictures in it, but has none."
        )
    names = list(numbers)
    data.dicts = data.dicts.with_labels(file_names, np.array(labels, dtype=np.int32))
    data.label_names = names[data.num_classes :]
    data.json_file = None
    count(data.dicts, names, data.report)


def _pictures(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        for name in names:
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield os.path.join(parent, name)
