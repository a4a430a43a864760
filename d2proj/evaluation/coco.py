"""COCO metrics of a model on a data set: table, ``results.json``, speed, pictures."""

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from detectron2.evaluation import COCOEvaluator, DatasetEvaluators
from detectron2.utils import comm
from torch import nn

from d2proj.data import DetectionData, build_val_loader
from d2proj.evaluation.inference import run_inference
from d2proj.evaluation.pictures import PictureWriter
from d2proj.evaluation.report import results_table

logger = logging.getLogger(__name__)
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class CocoEvaluation:
    """Evaluates a model on one data set, as often as wanted.

    Every process calls it with its copy of the model, and every process gets the results.
    """

    def __init__(
        self,
        data: DetectionData,
        *,
        output_dir: Path,
        augmentations: Any,
        image_format: str = "BGR",
        on_bad_image: str = "raise",
        batch_size: int = 1,
        workers: int = 0,
        max_images: int | None = None,
        max_detections: int = 100,
        fuse: bool = True,
        visualize: int = 0,
        visualize_threshold: float = 0.3,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Prepare an evaluation of ``data``; the arguments are keys of ``eval`` and ``data``."""
        self._data = data
        self._folder = output_dir / "evaluation"
        self._pictures = output_dir / "pictures"
        self._batch_size = batch_size
        self._max_images = min(max_images or len(data), len(data))
        self._max_detections = max_detections
        self._fuse = fuse
        self._visualize = min(visualize, self._max_images)
        self._threshold = visualize_threshold
        self._autocast = autocast
        self._loader = build_val_loader(
            data,
            batch_size=batch_size,
            workers=workers,
            augmentations=augmentations,
            on_bad_image=on_bad_image,
            image_format=image_format,
        )

    def prepare(self) -> None:
        """Write the COCO json of data in another format, before the first evaluation."""
        self._data.evaluation_json(self._folder)

    def __call__(self, model: nn.Module) -> dict[str, Any]:
        """Evaluate ``model`` and give Detectron2's nested results, in percent.

        A metric that does not exist for this data (no small boxes, a class without boxes) is None.
        """
        first_images = {int(self._data.dicts.image_ids[i]) for i in range(self._max_images)}
        everything = self._max_images == len(self._data)
        evaluator = _CocoOnSubset(
            self._data.name,
            tasks=("bbox",),
            distributed=True,
            output_dir=str(self._folder),
            max_dets_per_image=self._max_detections,
        )
        evaluator.image_ids = None if everything else first_images
        pictures = PictureWriter(
            self._data, self._pictures, limit=self._visualize, threshold=self._threshold
        )
        speed = run_inference(
            model,
            self._loader if everything else _only(self._loader, first_images),
            DatasetEvaluators([evaluator, pictures]),
            autocast=self._autocast,
            fuse=self._fuse,
        )
        results: dict[str, Any] = comm.all_gather(self._metrics(evaluator))[0]
        if not comm.is_main_process():
            return results
        logger.info("\n" + results_table(results, self._data.class_names))
        logger.info(f"inference speed: {speed}")
        if self._visualize:
            logger.info(f"pictures of {self._visualize} images are in {self._pictures}")
        return results

    def _metrics(self, evaluator: "_CocoOnSubset") -> dict[str, Any]:
        logging.getLogger("detectron2.evaluation").setLevel(logging.ERROR)  # we print the table
        found = evaluator.evaluate_images() or {}
        metrics = {name: _finite(value) for name, value in found.get("bbox", {}).items()}
        if metrics.get("AP") is None:
            # A model that finds nothing at all: zero, where Detectron2 has no number.
            metrics |= dict.fromkeys(METRICS[:3], 0.0)
        for name in METRICS:
            metrics.setdefault(name, None)
        return {"bbox": metrics}


class _CocoOnSubset(COCOEvaluator):
    """Detectron2's evaluator, for the images that were given to the model only."""

    image_ids: set[int] | None = None

    def evaluate_images(self) -> dict[str, Any] | None:
        # COCO's own evaluation prints its table; ours follows.
        ids = None if self.image_ids is None else sorted(self.image_ids)
        with open(os.devnull, "w") as sink, redirect_stdout(sink):
            return self.evaluate(img_ids=ids)


def _only(batches: Any, image_ids: set[int]) -> Any:
    """The batches of the wanted images, which come first; stops reading once a batch has none."""
    for batch in batches:
        wanted = [x for x in batch if int(x["image_id"]) in image_ids]
        if not wanted:
            return
        yield wanted


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) and value >= 0 else None


def save_results(results: Mapping[str, Any], file: Path) -> None:
    """Write ``results.json`` in one rename: Detectron2's nested dict, percent."""
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    temporary.replace(file)
