"""The IoU losses of boxes with the gradients that AlexeyAB/darknet writes for them.

Source: ``dx_box_iou`` (box.c) and ``delta_yolo_box`` (yolo_layer.c). The published
``iou_normalizer`` and ``max_delta`` are for these gradients, which are larger than the losses' own
by two orders of magnitude.
"""

import math

import torch
from torch import Tensor, nn

from d2proj import ops

_LOSSES = {
    "iou": ops.iou_loss,
    "giou": ops.generalized_box_iou_loss,
    "diou": ops.distance_box_iou_loss,
    "ciou": ops.complete_box_iou_loss,
}
#: Sides of an image in the frame of the losses: large against the operators' eps of 1e-7.
_FRAME = 1024.0


class DarknetIoULoss(nn.Module):
    """1 - IoU, GIoU, DIoU or CIoU; the gradient is darknet's.

    It is that by the box's centre and size in shares of the image, taken for the one by x, y, w, h
    of the network (times exp(w), exp(h), where those are exponents): the derivatives of the
    sigmoid, of the cell's and of the anchor's size are left out. Besides, what width and height
    have from IoU and GIoU counts twice, the derivative of the enclosing box's diagonal by the
    centre has the other sign, and that of CIoU's aspect term lacks 1 / (w² + h²). Entries are
    clipped, and zero where they are not finite.

    Where boxes do not overlap, darknet's IoU and GIoU have a gradient from an intersection of
    negative sides, and its CIoU a weight of the aspect term; here the intersection is empty.

    Args:
        kind: ``"iou"``, ``"giou"``, ``"diou"`` or ``"ciou"``.
        max_delta: largest absolute value of a weighted entry.
    """

    def __init__(self, kind: str = "ciou", *, max_delta: float = math.inf) -> None:
        super().__init__()
        if kind not in _LOSSES or not max_delta > 0:
            raise ValueError(
                f"kind must be one of {', '.join(_LOSSES)} and max_delta positive, got {kind!r} "
                f"and {max_delta}"
            )
        self.kind = kind
        self.max_delta = max_delta

    def forward(
        self,
        boxes: Tensor,
        truth: Tensor,
        *,
        values: Tensor,
        growth: Tensor,
        image_size: tuple[int, int],
        weight: float,
    ) -> Tensor:
        """(M,) losses; their gradient goes to ``values`` alone.

        Args:
            boxes: (M, 4) decoded boxes, x1 y1 x2 y2 in pixels.
            truth: (M, 4) likewise.
            values: (M, 4) x, y, w, h of the network that ``boxes`` are decoded from.
            growth: (M, 2) what the gradients by w and h are multiplied by.
            image_size: height and width of the network's input.
            weight: by which the caller multiplies the losses; ``max_delta`` counts it in.
        """
        boxes, truth = boxes.detach(), truth.to(boxes)
        side = boxes.new_tensor([image_size[1], image_size[0]] * 2)
        loss, gradient = self._gradient(boxes / side * _FRAME, truth / side * _FRAME)
        gradient = torch.cat([gradient[:, :2], gradient[:, 2:] * growth.detach()], dim=1)
        gradient = (gradient * weight).nan_to_num(0.0, 0.0, 0.0)
        gradient = gradient.clamp(-self.max_delta, self.max_delta) / (weight or 1.0)
        return loss + ((values - values.detach()) * gradient).sum(1)

    def _gradient(self, boxes: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (M,) and gradients by centre and size in shares of the image (M, 4)."""
        with torch.enable_grad():
            center, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
            leaf = torch.cat([center, size], dim=1).requires_grad_()
            half = leaf[:, 2:] / 2
            corners = torch.cat([leaf[:, :2] - half, leaf[:, :2] + half], dim=1)
            overlap = ops.generalized_box_iou_loss if self.kind == "giou" else ops.iou_loss
            iou_loss = overlap(corners, truth)
            (of_iou,) = torch.autograd.grad(iou_loss.sum(), leaf, retain_graph=True)
            gradient = of_iou * of_iou.new_tensor([1.0, 1.0, 2.0, 2.0])
            if self.kind in ("diou", "ciou"):
                gradient = gradient + _distance_gradient(leaf, corners, truth)
        gradient = gradient * _FRAME
        if self.kind == "ciou":
            turn, share = _aspect(size, truth[:, 2:] - truth[:, :2], iou_loss.detach())
            toward = torch.stack([-size[:, 1], size[:, 0]], dim=1) / _FRAME
            gradient[:, 2:] += (share * 8 / math.pi**2 * turn)[:, None] * toward
        return _LOSSES[self.kind](corners.detach(), truth), gradient


def _distance_gradient(leaf: Tensor, corners: Tensor, truth: Tensor) -> Tensor:
    """(M, 4) of d² / c², with darknet's sign of the derivative of c² by the centre."""
    distance = (leaf[:, :2] - (truth[:, :2] + truth[:, 2:]) / 2).square().sum(1)
    hull = corners[:, 2:].maximum(truth[:, 2:]) - corners[:, :2].minimum(truth[:, :2])
    diagonal = hull.square().sum(1)
    (by_distance,) = torch.autograd.grad(
        (distance / diagonal.detach()).sum(), leaf, retain_graph=True
    )
    (by_diagonal,) = torch.autograd.grad((distance.detach() / diagonal).sum(), leaf)
    return by_distance + by_diagonal * leaf.new_tensor([-1.0, -1.0, 1.0, 1.0])


def _aspect(size: Tensor, truth: Tensor, iou_loss: Tensor) -> tuple[Tensor, Tensor]:
    """Difference of the angles of the boxes' diagonals, and CIoU's alpha, each (M,)."""
    turn = (truth[:, 0] / truth[:, 1]).atan() - (size[:, 0] / size[:, 1]).atan()
    term = 4 / math.pi**2 * turn**2
    return turn, term / (iou_loss + term + 1e-6)
