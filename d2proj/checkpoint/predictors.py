"""Converts the class and box predictors of torchvision's detectors to Detectron2's order."""

import torch

from d2proj.checkpoint.naming import anchor_order
from d2proj.errors import InputError

COCO_CATEGORY_IDS = tuple(
    i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
)
"""COCO's 80 category ids; the place of each is its contiguous class, 0..79, as in Detectron2."""


def convert_predictors(tensors: dict[str, torch.Tensor], num_classes: int | None) -> list[str]:
    """Convert, in place, predictors that already have Detectron2's names.

    torchvision numbers classes as its data set does, with 0 for the background: its published COCO
    models have 91 rows, ten of which stand for ids that COCO does not use. Detectron2 numbers
    classes 0..K-1 and puts Faster R-CNN's background last.

    Args:
        tensors: the file's tensors by Detectron2's names; replaced where they need converting.
        num_classes: the model's K, which decides whether 91 rows are COCO's ids for 80 classes.

    Returns:
        Notes on what was done.
    """
    if "roi_heads.box_predictor.cls_score.weight" in tensors:
        return _convert_fast_rcnn(tensors, num_classes)
    if "head.cls_score.weight" in tensors and "head.bbox_pred.weight" in tensors:
        return _convert_retinanet(tensors, num_classes)
    if "head.levels.0.cls_score.weight" in tensors:
        return _convert_ssd(tensors, num_classes)
    return []


def _foreground(rows: int, num_classes: int | None) -> tuple[list[int], str]:
    if rows == 91 and num_classes == 80:
        note = (
            "91 COCO category ids mapped to COCO's 80 contiguous classes (0 person, 1 bicycle, ...)"
        )
        return list(COCO_CATEGORY_IDS), note
    return list(range(1, rows)), f"{rows - 1} classes after leaving out the background row 0"


def _convert_fast_rcnn(tensors: dict[str, torch.Tensor], num_classes: int | None) -> list[str]:
    prefix = "roi_heads.box_predictor."
    rows = tensors[prefix + "cls_score.weight"].shape[0]
    keep, note = _foreground(rows, num_classes)
    for kind in ("weight", "bias"):
        scores, deltas = f"{prefix}cls_score.{kind}", f"{prefix}bbox_pred.{kind}"
        if scores in tensors:
            tensors[scores] = tensors[scores][[*keep, 0]]
        if deltas in tensors and tensors[deltas].shape[0] == 4 * rows:
            per_class = tensors[deltas].unflatten(0, (rows, 4))
            tensors[deltas] = per_class[keep].flatten(0, 1)
    return [f"class rows: {note}; the background went from first to last"]


def _convert_ssd(tensors: dict[str, torch.Tensor], num_classes: int | None) -> list[str]:
    """SSD's boxes stand in one order everywhere; its background goes from first to last."""
    note = ""
    for name in [n for n in tensors if n.startswith("head.levels.") and ".cls_score." in n]:
        boxes = tensors.get(name.replace(".cls_score.", ".bbox_pred."))
        anchors = 0 if boxes is None else boxes.shape[0] // 4
        if not anchors or tensors[name].shape[0] % anchors:
            raise InputError(
                f"the torchvision SSD weights are inconsistent: {name} has "
                f"{tensors[name].shape[0]} rows for {anchors} boxes"
            )
        per_anchor = tensors[name].unflatten(0, (anchors, -1))
        keep, note = _foreground(per_anchor.shape[1], num_classes)
        tensors[name] = per_anchor[:, [*keep, 0]].flatten(0, 1)
    return [f"class rows: {note}; the background went from first to last"]


def _convert_retinanet(tensors: dict[str, torch.Tensor], num_classes: int | None) -> list[str]:
    boxes, scores = tensors["head.bbox_pred.weight"], tensors["head.cls_score.weight"]
    anchors = boxes.shape[0] // 4
    if not anchors or boxes.shape[0] % 4 or scores.shape[0] % anchors:
        raise InputError(
            f"the torchvision RetinaNet weights are inconsistent: {boxes.shape[0]} rows of box "
            f"deltas and {scores.shape[0]} of class scores"
        )
    order = anchor_order(anchors)
    rows = scores.shape[0] // anchors
    if rows == num_classes:
        keep, note = list(range(rows)), f"{rows} classes taken as they are, numbered from 0"
    else:
        keep, note = _foreground(rows, num_classes)
    for kind in ("weight", "bias"):
        name = f"head.cls_score.{kind}"
        if name in tensors:
            per_anchor = tensors[name].unflatten(0, (anchors, rows))
            tensors[name] = per_anchor[order][:, keep].flatten(0, 1)
        name = f"head.bbox_pred.{kind}"
        if name in tensors:
            tensors[name] = tensors[name].unflatten(0, (anchors, 4))[order].flatten(0, 1)
    return [f"class rows: {note}; anchors re-ordered from ratio-major to size-major"]
