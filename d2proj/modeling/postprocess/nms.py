"""Greedy non-maximum suppression of each class by itself."""

from collections.abc import Sequence
from typing import Any

from detectron2.structures import Boxes, Instances
from torch import Tensor

from d2proj.modeling.boxes import are_finite, clip_boxes
from d2proj.ops import batched_diou_nms, batched_nms


class PerClassNMS:
    """Score threshold, per-class NMS, best detections.

    Args:
        score_thresh: detections of a score up to this are dropped.
        nms_thresh: a box goes if its IoU with a better one of its class exceeds this.
        max_detections: how many an image keeps (all, if negative).
        topk_candidates: how many of the best scores enter the NMS from each map (dense detectors);
            none limits it if negative.
        clip: clip boxes to the image before the NMS (Fast R-CNN; torchvision always), or leave it
            to the end (Detectron2's RetinaNet); they differ in what overlaps outside.
    """

    def __init__(
        self,
        *,
        score_thresh: float = 0.05,
        nms_thresh: float = 0.5,
        max_detections: int = 100,
        topk_candidates: int = 1000,
        clip: bool = True,
    ) -> None:
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.max_detections = max_detections
        self.topk_candidates = topk_candidates
        self.clip = clip

    def __call__(
        self, boxes: Tensor, scores: Tensor, classes: Tensor, image_size: Sequence[int]
    ) -> Instances:
        """Detections of one image, best first.

        Args:
            boxes: (N, 4) pixels; those that are not finite are dropped.
            scores: (N,), above the threshold already.
            classes: (N,) int64.
            image_size: height, width.
        """
        finite = are_finite(boxes, scores)
        boxes, scores, classes = boxes[finite], scores[finite], classes[finite]
        if self.clip:
            boxes = clip_boxes(boxes, image_size)
        keep = self.keep(boxes, scores, classes)
        if self.max_detections >= 0:
            keep = keep[: self.max_detections]
        return Instances(
            (int(image_size[0]), int(image_size[1])),
            pred_boxes=Boxes(boxes[keep]),
            scores=scores[keep],
            pred_classes=classes[keep],
        )

    def keep(self, boxes: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
        """(K,) indices of the boxes that stay, best first."""
        return batched_nms(boxes, scores, classes, self.nms_thresh)


class PerClassDIoUNMS(PerClassNMS):
    """:class:`PerClassNMS` that spares boxes whose centres are apart: DIoU-NMS.

    Zheng et al. 2020, "Distance-IoU loss". A box goes if IoU - (d² / c²)^beta with a better one
    exceeds the threshold: d is the distance of the centres, c the diagonal of the smallest box
    around both.

    Args:
        beta: 1 in the paper; 0.6 in darknet, for ``nms_kind=greedynms`` as well as ``diounms``.
        **options: see :class:`PerClassNMS`.
    """

    def __init__(self, *, beta: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.beta = beta

    def keep(self, boxes: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
        """(K,) indices of the boxes that stay, best first."""
        return batched_diou_nms(boxes, scores, classes, self.nms_thresh, self.beta)
