"""COCO's average precision of boxes."""

import contextlib
import copy
import io
import itertools
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from .evaluator import DatasetEvaluator

__all__ = ["COCOEvaluator", "instances_to_coco_json"]

_logger = logging.getLogger(__name__)

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_COCO_MAX_DETECTIONS = 100
_ALL_AREAS = 0  # index of COCOeval's area range "all"
_TABLE_COLUMNS = 6  # three pairs of class and AP


class COCOEvaluator(DatasetEvaluator):
    """AP of boxes, in percent, by COCO's own code; NaN where it cannot be computed.

    Args:
        dataset_name: A registered data set. Its metadata name the ``json_file`` to compare with;
            otherwise one is written into ``output_dir``.
        tasks: ("bbox",), the only task here; None is the same.
        distributed: Collect the predictions of all processes; otherwise each judges its own.
        output_dir: Where ``coco_instances_results.json`` and ``instances_predictions.pth`` go.
        max_dets_per_image: The most detections of an image that count, by default COCO's 100.
        use_fast_impl: Taken for the sake of Detectron2's signature; COCO's own code is always used.
        allow_cached_coco: Use a converted json that is already there.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        allow_cached_coco: bool = True,
    ) -> None:
        if tasks is not None and set(tasks) != {"bbox"}:
            raise ValueError(f"the embedded Detectron2 evaluates boxes only, not {tuple(tasks)}")
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets = max_dets_per_image or _COCO_MAX_DETECTIONS
        self._metadata = MetadataCatalog.get(dataset_name)
        if self._metadata.get("json_file") is None:
            if output_dir is None:
                raise ValueError(
                    "output_dir must be provided to COCOEvaluator for datasets not in COCO format."
                )
            _logger.info(f"Trying to convert '{dataset_name}' to COCO format ...")
            path = os.path.join(output_dir, f"{dataset_name}_coco_format.json")
            self._metadata.json_file = path
            convert_to_coco_json(dataset_name, path, allow_cached=allow_cached_coco)
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco = COCO(PathManager.get_local_path(self._metadata.json_file))
        # A test set comes without annotations: its predictions are only written.
        self._has_truth = "annotations" in self._coco.dataset
        self._predictions: list[dict] = []
        self._results: OrderedDict = OrderedDict()

    def reset(self) -> None:
        """Forget the predictions."""
        self._predictions = []

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """Keep the detections of a batch.

        Args:
            inputs: Each with ``image_id``.
            outputs: Each with ``instances``, in the frame of the original image.
        """
        for image, output in zip(inputs, outputs, strict=False):
            if "instances" in output:
                detections = output["instances"].to(torch.device("cpu"))
                entries = instances_to_coco_json(detections, image["image_id"])
                self._predictions.append({"image_id": image["image_id"], "instances": entries})

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict:
        """Compute the metrics; processes other than the main one get an empty dict.

        Args:
            img_ids: Judge only these images.

        Returns:
            ``{"bbox": {"AP": ..., "AP50": ..., ..., "AP-<class>": ...}}``.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(predictions, dst=0)
            if not comm.is_main_process():
                return {}
            predictions = list(itertools.chain.from_iterable(gathered))
        if not predictions:
            _logger.warning("[COCOEvaluator] Did not receive valid predictions.")
            return {}
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            path = os.path.join(self._output_dir, "instances_predictions.pth")
            with PathManager.open(path, "wb") as file:
                torch.save(predictions, file)
        self._results = OrderedDict()
        self._eval_predictions(predictions, img_ids)
        return copy.deepcopy(self._results)

    def _eval_predictions(self, predictions: Sequence[dict], img_ids: Sequence[int] | None) -> None:
        _logger.info("Preparing results for COCO format ...")
        # Copies: evaluate() may be called again.
        entries = [dict(entry) for p in predictions for entry in p["instances"]]
        self._restore_category_ids(entries)
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            _logger.info(f"Saving results to {path}")
            with PathManager.open(path, "w") as file:
                json.dump(entries, file)
        if not self._has_truth:
            _logger.info("Annotations are not available for evaluation.")
            return
        _logger.info("Evaluating predictions with official COCO API...")
        judged = self._run_cocoeval(entries, img_ids) if entries else None
        self._results["bbox"] = self._derive_coco_results(
            judged, "bbox", class_names=self._metadata.get("thing_classes")
        )

    def _restore_category_ids(self, entries: list[dict]) -> None:
        """Turn 0, 1, 2... back into the json's category ids, in place."""
        id_map = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if id_map is None:
            return
        indices = list(id_map.values())
        assert sorted(indices) == list(range(len(indices))), indices
        original = {index: category for category, index in id_map.items()}
        for entry in entries:
            category = entry["category_id"]
            assert category < len(indices), (
                f"A prediction has class={category}, but the dataset only has {len(indices)} "
                f"classes and predicted class id should be in [0, {len(indices) - 1}]."
            )
            entry["category_id"] = original[category]

    def _run_cocoeval(self, entries: list[dict], img_ids: Sequence[int] | None) -> COCOeval:
        with contextlib.redirect_stdout(io.StringIO()):
            judged = COCOeval(self._coco, self._coco.loadRes(entries), "bbox")
        judged.params.maxDets = [1, 10, self._max_dets]
        if img_ids is not None:
            judged.params.imgIds = img_ids
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            judged.evaluate()
            judged.accumulate()
            judged.summarize()
        if self._max_dets != _COCO_MAX_DETECTIONS:
            # summarize() looks for 100 detections in this one number, whatever maxDets says.
            judged.stats[0] = _mean_precision(judged.eval["precision"][:, :, :, _ALL_AREAS, -1])
        _logger.info(f"COCO's summary:\n{printed.getvalue()}")
        return judged

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Scores in percent from COCOeval's result; None stands for no prediction at all."""
        if coco_eval is None:
            _logger.warning("No predictions from the model!")
            return dict.fromkeys(_METRICS, float("nan"))
        results = {
            name: float(score * 100) if score >= 0 else float("nan")
            for name, score in zip(_METRICS, coco_eval.stats, strict=False)
        }
        _logger.info(f"Evaluation results for {iou_type}: \n{create_small_table(results)}")
        if not np.isfinite(list(results.values())).all():
            _logger.info("Some metrics cannot be computed and is shown as NaN.")
        if class_names is None or len(class_names) <= 1:
            return results
        precisions = coco_eval.eval["precision"]  # IoU x recall x class x area x max detections
        assert len(class_names) == precisions.shape[2], (len(class_names), precisions.shape)
        per_class = {
            f"AP-{name}": float(
                _mean_precision(precisions[:, :, index, _ALL_AREAS, -1], float("nan")) * 100
            )
            for index, name in enumerate(class_names)
        }
        _logger.info(f"Per-category {iou_type} AP: \n{_class_table(class_names, per_class)}")
        return {**results, **per_class}


def _mean_precision(precision: np.ndarray, none: float = -1.0) -> float:
    """Mean of the entries that are defined (COCOeval marks the others -1)."""
    defined = precision[precision > -1]
    return float(np.mean(defined)) if defined.size else none


def _class_table(class_names: Sequence[str], per_class: dict[str, float]) -> str:
    cells: list[Any] = []
    for name in class_names:
        cells += [name, per_class[f"AP-{name}"]]
    columns = min(_TABLE_COLUMNS, len(cells))
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    return tabulate(
        rows,
        tablefmt="pipe",
        floatfmt=".3f",
        headers=["category", "AP"] * (columns // 2),
        numalign="left",
    )


def instances_to_coco_json(instances: Instances, img_id: int) -> list[dict]:
    """COCO's result entries of one image's detections.

    Args:
        instances: On the CPU, with ``pred_boxes``, ``scores``, ``pred_classes``.
        img_id: The image's id.
    """
    if len(instances) == 0:
        return []
    boxes = BoxMode.convert(
        instances.pred_boxes.tensor.numpy(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS
    ).tolist()
    scores = instances.scores.tolist()
    classes = instances.pred_classes.tolist()
    return [
        {"image_id": img_id, "category_id": category, "bbox": box, "score": score}
        for box, score, category in zip(boxes, scores, classes, strict=True)
    ]
