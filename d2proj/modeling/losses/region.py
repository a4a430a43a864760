"""The losses of YOLOv2 and YOLOv1: squared errors, with darknet's assignment and weights.

Both are half of darknet's sums of squares, whose gradients ``region_layer.c`` and
``detection_layer.c`` write; a later truth takes an anchor from an earlier one in YOLOv2, an earlier
one keeps its cell in YOLOv1.
"""

from collections.abc import Sequence

import torch
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.modeling.boxes import full_precision, pairwise_iou
from d2proj.modeling.dense_heads.yolo import DetectionDecoder, RegionDecoder

# How strongly every box is pulled to its anchor at first (region_layer.c).
_WARM_UP_SCALE = 0.01


def _centers(truth: Instances) -> tuple[Tensor, Tensor]:
    """(M, 2) center and size of the ground truth in pixels."""
    boxes = truth.gt_boxes.tensor
    return (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]


def _last_of_each(keys: Tensor) -> Tensor:
    """Rows whose key does not come again later."""
    cells, inverse = keys.unique(return_inverse=True)
    order = torch.arange(len(keys), device=keys.device)
    return order.new_zeros(len(cells)).scatter_reduce(0, inverse, order, "amax")


class RegionLoss(nn.Module):
    """YOLOv2 (Redmon & Farhadi 2017, section 2; ``region_layer.c``).

    A truth belongs to the anchor of the cell of its centre whose shape fits best. At first all
    other boxes are pulled to their anchors.

    Args:
        num_classes: C.
        object_scale, noobject_scale, class_scale, coord_scale: weights of the terms.
        thresh: objectness of boxes that overlap a truth by more is not punished.
        rescore: objectness learns the IoU instead of 1.
        bias_match: shapes are the anchors'; the predicted boxes', otherwise.
        softmax: classes exclude each other (cross entropy); squared errors, otherwise.
        warmup_images: during how many images (of all processes) boxes are pulled to their anchors.
    """

    seen: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        object_scale: float = 5.0,
        noobject_scale: float = 1.0,
        class_scale: float = 1.0,
        coord_scale: float = 1.0,
        thresh: float = 0.6,
        rescore: bool = True,
        bias_match: bool = True,
        softmax: bool = True,
        warmup_images: int = 12_800,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.object_scale = object_scale
        self.noobject_scale = noobject_scale
        self.class_scale = class_scale
        self.coord_scale = coord_scale
        self.thresh = thresh
        self.rescore = rescore
        self.bias_match = bias_match
        self.softmax = softmax
        self.warmup_images = warmup_images
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(
        self,
        raw: Tensor,
        decoder: RegionDecoder,
        gt_instances: Sequence[Instances],
        input_size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """Losses ``loss_box``, ``loss_obj``, ``loss_cls``: means over images.

        Args:
            raw: (N, A * (5 + C), H, W).
            decoder: of the same map.
            gt_instances: ``gt_boxes`` and ``gt_classes`` of each of the N images.
            input_size: height and width of the network's input.
        """
        count, _, height, width = raw.shape
        values = full_precision(raw).view(count, len(decoder.anchors), -1, height, width)
        values = values.permute(0, 1, 3, 4, 2)  # N, A, H, W, 5 + C
        stride = values.new_tensor([input_size[1] / width, input_size[0] / height])
        anchors = decoder.anchors.to(values) * stride
        with torch.no_grad():
            boxes = decoder.grid_boxes(values[..., :4], stride)
        objectness = values[..., 4].sigmoid()
        target = torch.zeros_like(objectness)
        weight = torch.full_like(objectness, self.noobject_scale)
        coord = values.new_zeros((*objectness.shape, 4))
        coord_weight = torch.zeros_like(objectness)
        if self.training and self.seen < self.warmup_images:
            coord[..., :2] = 0.5
            coord_weight += _WARM_UP_SCALE
        loss_cls = raw.new_zeros((), dtype=values.dtype)
        for i, truth in enumerate(gt_instances):
            center, size = _centers(truth)
            if not len(center):
                continue
            overlap = pairwise_iou(boxes[i].reshape(-1, 4), truth.gt_boxes.tensor.to(values))
            near = (overlap.amax(1) > self.thresh).view(objectness.shape[1:])
            weight[i][near] = 0.0
            cell = (center / stride).long().clamp(min=0)
            x, y = cell.minimum(cell.new_tensor([width - 1, height - 1])).unbind(1)
            shapes = anchors.expand(len(center), -1, -1)
            if not self.bias_match:
                found = boxes[i][:, y, x].transpose(0, 1)
                shapes = found[..., 2:] - found[..., :2]
            inter = torch.minimum(shapes, size[:, None].to(shapes)).prod(2)
            union = shapes.prod(2) + size.prod(1, keepdim=True) - inter
            anchor = (inter / union).argmax(1)
            row = _last_of_each((anchor * height + y) * width + x)
            where = (torch.full_like(row, i), anchor[row], y[row], x[row])
            offset = (center / stride)[row] - torch.stack([x, y], 1)[row]
            shape = (size[row] / anchors[where[1]]).log()
            coord[where] = torch.cat([offset, shape], 1).to(values)
            coord_weight[where] = self.coord_scale
            weight[where] = self.object_scale
            flat = (where[1] * height + where[2]) * width + where[3]
            target[where] = overlap[flat, row] if self.rescore else 1.0
            logits, kinds = values[where][:, 5:], truth.gt_classes[row]
            loss_cls = loss_cls + self.class_loss(logits, kinds)
        predicted = torch.cat([values[..., :2].sigmoid(), values[..., 2:4]], -1)
        errors = (predicted - coord).square().sum(-1)
        if self.training:
            self.seen += count * comm.get_world_size()
        return {
            "loss_box": (coord_weight * errors).sum() / 2 / count,
            "loss_obj": (weight * (objectness - target).square()).sum() / 2 / count,
            "loss_cls": loss_cls * self.class_scale / count,
        }

    def class_loss(self, logits: Tensor, kinds: Tensor) -> Tensor:
        """Summed over the rows of (M, C) class values and (M,) labels."""
        if self.softmax:
            return F.cross_entropy(logits, kinds, reduction="sum")
        wanted = F.one_hot(kinds, self.num_classes).to(logits)
        return (logits - wanted).square().sum() / 2


class DetectionLoss(nn.Module):
    """YOLOv1 (Redmon et al. 2016, equation 3; ``detection_layer.c``).

    The cell of a truth's centre learns its class; of the cell's boxes the one that overlaps it most
    (or, if none does, lies nearest) is responsible for it.

    Args:
        num_classes: C.
        object_scale, noobject_scale, class_scale, coord_scale: weights of the terms.
        rescore: confidence learns the IoU instead of 1.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        object_scale: float = 1.0,
        noobject_scale: float = 0.5,
        class_scale: float = 1.0,
        coord_scale: float = 5.0,
        rescore: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.object_scale = object_scale
        self.noobject_scale = noobject_scale
        self.class_scale = class_scale
        self.coord_scale = coord_scale
        self.rescore = rescore

    def forward(
        self,
        raw: Tensor,
        decoder: DetectionDecoder,
        gt_instances: Sequence[Instances],
        input_size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """As :meth:`RegionLoss.forward`; ``raw`` has N * side² * (C + 5 B) values."""
        count, side = len(raw), decoder.side
        classes, confidence, boxes = decoder.split(full_precision(raw).reshape(count, -1))
        image = boxes.new_tensor([input_size[1], input_size[0]])
        target = torch.zeros_like(confidence)
        weight = torch.full_like(confidence, self.noobject_scale)
        loss_box = loss_cls = boxes.new_zeros(())
        for i, truth in enumerate(gt_instances):
            center, size = _centers(truth)
            center, size = (center / image).to(boxes), (size / image).to(boxes)
            place = (center * side).long().clamp(0, side - 1)
            keys = place[:, 1] * side + place[:, 0]
            # The first truth of a cell: the last one of the reversed list.
            row = len(keys) - 1 - _last_of_each(keys.flip(0))
            cell, center, size = keys[row], center[row], size[row]
            offset = center * side - place[row]
            with torch.no_grad():
                of_cell = boxes[i, cell]  # M, B, 4
                shape = of_cell[..., 2:] ** 2 if decoder.square_root else of_cell[..., 2:]
                found = torch.cat([of_cell[..., :2] / side, shape], -1)
                wanted = torch.cat([offset / side, size], 1)[:, None]
                overlap = _center_iou(found, wanted)
                distance = (found - wanted).square().sum(-1)
                best = torch.where((overlap > 0).any(1), overlap.argmax(1), distance.argmin(1))
            shape = size.sqrt() if decoder.square_root else size
            errors = boxes[i, cell, best] - torch.cat([offset, shape], 1)
            loss_box = loss_box + errors.square().sum()
            weight[i, cell, best] = self.object_scale
            iou = overlap.gather(1, best[:, None]).squeeze(1)
            target[i, cell, best] = iou if self.rescore else torch.ones_like(iou)
            kinds = F.one_hot(truth.gt_classes[row], self.num_classes).to(boxes)
            loss_cls = loss_cls + (classes[i, cell] - kinds).square().sum()
        return {
            "loss_box": loss_box * self.coord_scale / 2 / count,
            "loss_obj": (weight * (confidence - target).square()).sum() / 2 / count,
            "loss_cls": loss_cls * self.class_scale / 2 / count,
        }


def _center_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of (..., 4) boxes of center and size; 0 where they do not overlap."""
    low = torch.maximum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    high = torch.minimum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    inter = (high - low).clamp(min=0).prod(-1)
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - inter
    return torch.where(inter > 0, inter / union, 0.0)
