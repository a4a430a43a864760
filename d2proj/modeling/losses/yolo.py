"""The losses of YOLOv3 and YOLOv4 at one level, with darknet's assignment and weights.

Sources: Redmon & Farhadi, "YOLOv3", 2018, section 2; Bochkovskiy et al., "YOLOv4", 2020, section
3.4; what they leave open is AlexeyAB/darknet's ``yolo_layer.c``. darknet writes gradients, not
losses; these losses have those gradients, but for what is stated below.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.modeling.boxes import full_precision, pairwise_iou
from d2proj.modeling.dense_heads.yolo import YOLODecoder
from d2proj.modeling.losses.darknet_iou import DarknetIoULoss
from d2proj.modeling.losses.label_smoothing import smooth_labels

BoxLoss = Callable[[Tensor, Tensor], Tensor]
# A cell that finds no class more likely than this is never let off (compare_yolo_class).
_CLASS_MATCH = 0.25


@dataclass
class Positives:
    """The (truth, anchor) pairs of a batch, one row each.

    Attributes:
        image, anchor, y, x: where the anchor is; ``anchor`` counts the level's own.
        boxes: (M, 4) of the truth.
        classes: (M,) of the truth.
    """

    image: Tensor
    anchor: Tensor
    y: Tensor
    x: Tensor
    boxes: Tensor
    classes: Tensor


class YOLOLoss(nn.Module):
    """Objectness, class and box loss of a level.

    A truth belongs to the anchor (of all levels') whose shape fits best, at the cell of its centre,
    and to every other one whose shape overlaps it by more than ``iou_thresh``. Where a prediction
    overlaps some truth by more than ``ignore_thresh`` its objectness is not punished.

    With :class:`~d2proj.modeling.losses.darknet_iou.DarknetIoULoss` the gradients of the boxes are
    darknet's, too; with another loss they are that loss's own. darknet's ``cls_normalizer`` has no
    effect without ``counters_per_class`` and does not exist here.

    One difference: where several truths share an anchor, darknet divides the gradient of the box by
    the number of classes whose gradient is positive, which with label smoothing are nearly all
    classes; here it is always that of the truths' classes.

    Args:
        anchors: (T, 2) width, height in pixels, of all levels.
        mask: which of them are this level's.
        num_classes: C.
        box_loss: element-wise loss of two (M, 4) tensors of boxes, with its own gradient; or
            ``DarknetIoULoss``; None: squared errors of the coordinates (YOLOv3), weighted by
            2 - w h of the truth.
        ignore_thresh, iou_thresh: see above; 1 for the best anchor alone.
        iou_normalizer, obj_normalizer: weights of the box loss and the objectness.
        label_smooth_eps: class targets become ``t (1 - eps) + eps / 2``.
        objectness_smooth: objectness learns the IoU where that exceeds ``ignore_thresh`` and zero
            elsewhere, also where a truth is (what darknet's code comes to, though it says
            otherwise).
    """

    anchors: Tensor
    mask: Tensor

    def __init__(
        self,
        *,
        anchors: Sequence[Sequence[float]],
        mask: Sequence[int],
        num_classes: int,
        box_loss: BoxLoss | None = None,
        ignore_thresh: float = 0.5,
        iou_thresh: float = 1.0,
        iou_normalizer: float = 0.75,
        obj_normalizer: float = 1.0,
        label_smooth_eps: float = 0.0,
        objectness_smooth: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("anchors", torch.tensor(anchors).float(), persistent=False)
        self.register_buffer("mask", torch.tensor(mask), persistent=False)
        self.num_classes = num_classes
        self.box_loss = box_loss
        self.ignore_thresh = ignore_thresh
        self.iou_thresh = iou_thresh
        self.iou_normalizer = iou_normalizer
        self.obj_normalizer = obj_normalizer
        self.label_smooth_eps = label_smooth_eps
        self.objectness_smooth = objectness_smooth

    def forward(
        self,
        raw: Tensor,
        decoder: YOLODecoder,
        gt_instances: Sequence[Instances],
        input_size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """Losses ``loss_box``, ``loss_obj``, ``loss_cls``: sums over the level, means over images.

        Args:
            raw: (N, A * (5 + C), H, W).
            decoder: of this level.
            gt_instances: ``gt_boxes`` and ``gt_classes`` of each of the N images.
            input_size: height and width of the network's input.
        """
        count, _, height, width = raw.shape
        values = full_precision(raw).view(count, len(self.mask), -1, height, width)
        values = values.permute(0, 1, 3, 4, 2)  # N, A, H, W, 5 + C
        logits = torch.logit(values, eps=1e-7) if decoder.new_coords else values
        stride = logits.new_tensor([input_size[1] / width, input_size[0] / height])
        positives = self._assign(gt_instances, stride, (height, width))
        target, weight, _ = self._objectness(logits, decoder, gt_instances, stride)
        where = (positives.image, positives.anchor, positives.y, positives.x)
        if not self.objectness_smooth:
            target[where] = 1.0
            weight[where] = 1.0
        error = _squared if decoder.new_coords else cross_entropy
        loss_obj = (error(values[..., 4], target) * weight).sum() * self.obj_normalizer

        cells, of_pair, classes = self._classes(where, positives.classes, target)
        several = classes.sum(1)[of_pair] if self.iou_thresh < 1 else torch.ones_like(target[where])
        smooth = smooth_labels(classes, self.label_smooth_eps)
        loss_cls = error(values.flatten(0, 3)[cells, 5:], smooth).sum()
        box = logits[where][:, :4], values[where][:, :4]
        loss_box = self._boxes(*box, decoder, positives, stride, input_size) / several
        return {
            "loss_box": loss_box.sum() * self.iou_normalizer / count,
            "loss_obj": loss_obj / count,
            "loss_cls": loss_cls / count,
        }

    def _classes(
        self, where: tuple[Tensor, ...], kinds: Tensor, like: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The cells that have truths, the cell of each pair, and (cells, C) which classes.

        Args:
            where: of the pairs, in a map (N, A, H, W).
            kinds: class of each pair.
            like: such a map; cells are numbered as in it.
        """
        flat = where[0]
        for index, size in zip(where[1:], like.shape[1:], strict=True):
            flat = flat * size + index
        cells, of_pair = flat.unique(return_inverse=True)
        classes = like.new_zeros(len(cells), self.num_classes)
        classes[of_pair, kinds] = 1.0
        return cells, of_pair, classes

    @torch.no_grad()
    def _assign(
        self, gt_instances: Sequence[Instances], stride: Tensor, map_size: tuple[int, int]
    ) -> Positives:
        """Pairs of truths and anchors, by shape alone."""
        images, pairs, boxes, classes = [], [], [], []
        for i, truth in enumerate(gt_instances):
            gt = truth.gt_boxes.tensor
            shapes = torch.cat([torch.zeros_like(gt[:, :2]), gt[:, 2:] - gt[:, :2]], 1)
            anchors = torch.cat([torch.zeros_like(self.anchors), self.anchors], 1).to(gt)
            overlap = pairwise_iou(shapes, anchors)  # truths, all anchors
            wanted = overlap > self.iou_thresh if self.iou_thresh < 1 else overlap > 2
            if len(gt):
                wanted[torch.arange(len(gt)), overlap.argmax(1)] = True
            pair = wanted[:, self.mask].nonzero()
            images.append(torch.full_like(pair[:, 0], i))
            pairs.append(pair[:, 1])
            boxes.append(gt[pair[:, 0]])
            classes.append(truth.gt_classes[pair[:, 0]])
        of_pair = torch.cat(boxes)
        cell = ((of_pair[:, :2] + of_pair[:, 2:]) / 2 / stride).long()
        last = cell.new_tensor([map_size[1] - 1, map_size[0] - 1])
        x, y = cell.clamp(min=0).minimum(last).unbind(1)
        return Positives(torch.cat(images), torch.cat(pairs), y, x, of_pair, torch.cat(classes))

    @torch.no_grad()
    def _objectness(
        self,
        logits: Tensor,
        decoder: YOLODecoder,
        gt_instances: Sequence[Instances],
        stride: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Targets and weights (N, A, H, W) before any truth is assigned.

        The third map has the truth (its number in the image) that a prediction overlaps by more
        than ``ignore_thresh``, -1 where there is none.
        """
        height, width = logits.shape[2:4]
        rows, columns = torch.meshgrid(
            torch.arange(height, device=logits.device),
            torch.arange(width, device=logits.device),
            indexing="ij",
        )
        anchors = decoder.anchors[:, None, None]
        boxes = decoder.boxes(logits[..., :4], anchors, torch.stack([columns, rows], -1), stride)
        sure = (logits[..., 5:].sigmoid() > _CLASS_MATCH).any(-1)
        target = torch.zeros_like(logits[..., 4])
        weight = torch.ones_like(target)
        overlapped = torch.full_like(target, -1, dtype=torch.int64)
        for i, truth in enumerate(gt_instances):
            gt = truth.gt_boxes.tensor
            if not len(gt):
                continue
            candidates = sure[i].nonzero()
            best, which = pairwise_iou(boxes[i][tuple(candidates.T)], gt).max(1)
            found = candidates[best > self.ignore_thresh]
            overlapped[i][tuple(found.T)] = which[best > self.ignore_thresh]
            if self.objectness_smooth:
                target[i][tuple(found.T)] = best[best > self.ignore_thresh]
            else:
                weight[i][tuple(found.T)] = 0.0
        return target, weight, overlapped

    def _boxes(
        self,
        logits: Tensor,
        values: Tensor,
        decoder: YOLODecoder,
        positives: Positives,
        stride: Tensor,
        image: tuple[int, int],
    ) -> Tensor:
        """(M,) box losses of the pairs."""
        cell = torch.stack([positives.x, positives.y], 1)
        anchors = decoder.anchors[positives.anchor]
        if self.box_loss is not None:
            predicted = decoder.boxes(logits, anchors, cell, stride)
            if not isinstance(self.box_loss, DarknetIoULoss):
                return self.box_loss(predicted, positives.boxes)
            sizes = values[:, 2:]
            return self.box_loss(
                predicted,
                positives.boxes,
                values=values,
                growth=torch.ones_like(sizes) if decoder.new_coords else sizes.exp(),
                image_size=image,
                weight=self.iou_normalizer,
            )
        if decoder.new_coords:
            raise ValueError("new_coords needs an IoU loss")
        size = positives.boxes[:, 2:] - positives.boxes[:, :2]
        center = (positives.boxes[:, :2] + positives.boxes[:, 2:]) / 2
        offset = center / stride - cell
        s = decoder.scale_x_y
        # The function whose derivative is s σ(t) - (s - 1) / 2 - offset; cross entropy for s = 1.
        position = s * F.softplus(logits[:, :2]) - (offset + (s - 1) / 2) * logits[:, :2]
        shape = (logits[:, 2:4] - (size / anchors).log()) ** 2 / 2
        area = size.prod(1) / (image[0] * image[1])
        return (position + shape).sum(1) * (2 - area)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy, element-wise."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def _squared(probability: Tensor, target: Tensor) -> Tensor:
    # darknet's error, multiplied by the derivative of the sigmoid that ends the network, is the
    # gradient of a squared error.
    return (probability - target) ** 2 / 2
