"""Pictures of an evaluation: predictions beside ground truth."""

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data.detection_utils import read_image
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode

from d2proj.data import DetectionData
from d2proj.evaluation.drawing import draw_boxes, enlarge, side_by_side

logger = logging.getLogger(__name__)


class PictureWriter(DatasetEvaluator):
    """Draws the first ``limit`` images of a data set while it is evaluated.

    File names are ``<position>_<name>.png``, whatever process draws them.
    """

    def __init__(self, data: DetectionData, folder: Path, *, limit: int, threshold: float) -> None:
        """Draw predictions of ``threshold`` and above into ``folder``."""
        self._data = data
        self._folder = folder
        self._threshold = threshold
        self._position = {int(data.dicts.image_ids[i]): i for i in range(limit)}

    def reset(self) -> None:
        """Make the folder."""
        if self._position:
            self._folder.mkdir(parents=True, exist_ok=True)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Draw what is wanted of one batch."""
        for sample, output in zip(inputs, outputs, strict=True):
            position = self._position.get(int(sample["image_id"]))
            if position is not None:
                self._draw(position, output["instances"].to("cpu"))

    def evaluate(self) -> dict[str, Any]:
        """Nothing: pictures are no metrics."""
        return {}

    def _draw(self, position: int, instances: Any) -> None:
        record = self._data.dicts[position]
        image = read_image(record["file_name"], "BGR")
        found = instances[instances.scores >= self._threshold]
        found_labels = [
            f"{self._data.class_names[c]} {score:.0%}"
            for c, score in zip(found.pred_classes.tolist(), found.scores.tolist(), strict=True)
        ]
        boxes, classes, labels = self._ground_truth(record)
        picture = side_by_side(
            [
                _drawn(
                    image,
                    found.pred_boxes.tensor.numpy(),
                    found.pred_classes.tolist(),
                    found_labels,
                ),
                _drawn(image, boxes, classes, labels),
            ],
            ["prediction", "ground truth"],
        )
        file = self._folder / f"{position:05d}_{Path(record['file_name']).stem}.png"
        if not cv2.imwrite(str(file), picture):
            logger.warning(f"the picture {file} could not be written")

    def _ground_truth(self, record: dict[str, Any]) -> tuple[np.ndarray, list[int], list[str]]:
        annotations = record["annotations"]
        boxes = [
            BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations
        ]
        classes = [int(a["category_id"]) for a in annotations]
        labels = [
            self._data.class_names[c] + (" (ignored)" if a.get("iscrowd") else "")
            for a, c in zip(annotations, classes, strict=True)
        ]
        return np.array(boxes, np.float32).reshape(-1, 4), classes, labels


def _drawn(
    image: np.ndarray, boxes: np.ndarray, classes: list[int], labels: list[str]
) -> np.ndarray:
    picture, factor = enlarge(image)
    return draw_boxes(picture, boxes * factor, classes, labels)
