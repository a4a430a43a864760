"""The loss of Gaussian YOLOv3 at one level.

Source: Choi et al., "Gaussian YOLOv3", ICCV 2019, section 3.2, equations 5 to 7; what they leave
open is AlexeyAB/darknet's ``gaussian_yolo_layer.c``.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor

from d2proj.modeling.boxes import full_precision
from d2proj.modeling.dense_heads.yolo import YOLODecoder
from d2proj.modeling.losses.darknet_iou import DarknetIoULoss
from d2proj.modeling.losses.yolo import Positives, YOLOLoss, cross_entropy

# darknet's sigma_const, added to a deviation in the density's normalisation alone, and epsi (the
# paper's epsilon, equation 5), added to the density.
_SIGMA = 0.3
_EPSILON = 1e-9
# A density so many deviations away is zero beside epsilon, and so is its gradient.
_FAR = 30.0
_SMALLEST_SIGMA = 1e-6


class GaussianYOLOLoss(YOLOLoss):
    """:class:`YOLOLoss` for predictions that come with a standard deviation.

    A coordinate's loss is ``-log(N(target; mu, sigma) + 1e-9) (2 - w h) / 2``. Truths belong to the
    same anchors as in YOLOv3. With ``box_loss`` the box learns by that instead, and the deviations
    alone by the likelihood (as in darknet's cfg file for BDD100K).

    Gradients are those of darknet, which is to say no gradients of a function: the derivatives of
    the sigmoids of x, y and the deviations are left out, and a box loss that is a
    :class:`~d2proj.modeling.losses.darknet_iou.DarknetIoULoss` has its own rules. Two differences:
    what the deviations and, without a box loss, the coordinates learn is not clipped at
    ``max_delta``; with label smoothing a box is divided by the number of its truths' classes
    (darknet also counts classes whose output is below eps / 2).

    Args:
        uc_normalizer: weight of the deviations' loss.
        objectness_smooth: where a prediction overlaps a truth by more than ``ignore_thresh``,
            objectness learns the square of the IoU, and the classes the truth's.
        **yolo: see :class:`YOLOLoss`; ``iou_normalizer`` is for the box alone.
    """

    def __init__(self, *, uc_normalizer: float = 1.0, **yolo: Any) -> None:
        super().__init__(**yolo)
        self.uc_normalizer = uc_normalizer

    def forward(
        self,
        raw: Tensor,
        decoder: YOLODecoder,
        gt_instances: Sequence[Instances],
        input_size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """Losses ``loss_box``, ``loss_uncertainty``, ``loss_obj``, ``loss_cls``.

        Sums over the level, means over images; the arguments are :class:`YOLOLoss`'s, but that raw
        is (N, A * (9 + C), H, W).
        """
        count, _, height, width = raw.shape
        values = full_precision(raw).view(count, len(self.mask), -1, height, width)
        values = values.permute(0, 1, 3, 4, 2)  # N, A, H, W, 9 + C
        plain = torch.cat([values[..., :8:2], values[..., 8:]], -1)  # as YOLOv3 has them
        stride = values.new_tensor([input_size[1] / width, input_size[0] / height])
        positives = self._assign(gt_instances, stride, (height, width))
        where = (positives.image, positives.anchor, positives.y, positives.x)

        target, weight, overlapped = self._objectness(plain, decoder, gt_instances, stride)
        target = target**2
        target[where] = 1.0
        weight[where] = 1.0
        logits = plain[..., 4]
        loss_obj = (cross_entropy(logits, target) * weight).sum() * self.obj_normalizer

        places: tuple[Tensor, ...] = where
        kinds = positives.classes
        if self.objectness_smooth:
            smooth = tuple((overlapped >= 0).nonzero().T)
            places = tuple(torch.cat(pair) for pair in zip(where, smooth, strict=True))
            first = torch.tensor([0, *map(len, gt_instances)][:-1], device=raw.device).cumsum(0)
            of_all = torch.cat([x.gt_classes for x in gt_instances])
            kinds = torch.cat([kinds, of_all[first[smooth[0]] + overlapped[smooth]]])
        cells, of_pair, classes = self._classes(places, kinds, target)
        several = classes.sum(1)[of_pair[: len(where[0])]]
        wanted = classes * (1 - self.label_smooth_eps) + 0.5 * self.label_smooth_eps
        loss_cls = cross_entropy(plain.flatten(0, 3)[cells, 5:], wanted).sum()

        box, uncertainty = self._gaussian(values[where], decoder, positives, stride, input_size)
        return {
            "loss_box": (box / several).sum() * self.iou_normalizer / count,
            "loss_uncertainty": (uncertainty / several).sum() * self.uc_normalizer / count,
            "loss_obj": loss_obj / count,
            "loss_cls": loss_cls / count,
        }

    def _gaussian(
        self,
        values: Tensor,
        decoder: YOLODecoder,
        positives: Positives,
        stride: Tensor,
        input_size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """(M,) losses of boxes and of deviations of the pairs; values (M, 9 + C)."""
        cell = torch.stack([positives.x, positives.y], 1)
        anchors = decoder.anchors[positives.anchor]
        size = positives.boxes[:, 2:] - positives.boxes[:, :2]
        center = (positives.boxes[:, :2] + positives.boxes[:, 2:]) / 2
        target = torch.cat([center / stride - cell, (size / anchors).log()], 1)
        scale = decoder.scale_x_y
        squashed = values[:, :4].sigmoid() * scale - (scale - 1) / 2  # x, sigma x, y, sigma y
        offset = _unit_slope(squashed[:, ::2], values[:, 0:4:2])
        mu = torch.cat([offset, values[:, 4:8:2]], 1)
        sigma = torch.cat(
            [
                _unit_slope(squashed[:, 1::2], values[:, 1:4:2]),
                _unit_slope(values[:, 5:8:2].sigmoid(), values[:, 5:8:2]),
            ],
            1,
        )
        area = size.prod(1) / (input_size[0] * input_size[1])
        uncertainty = _likelihood(target, mu.detach(), sigma).sum(1) * (2 - area) / 2
        if self.box_loss is None:
            return _likelihood(target, mu, sigma.detach()).sum(1) * (2 - area) / 2, uncertainty
        coordinates = values[:, :8:2]
        boxes = decoder.boxes(coordinates, anchors, cell, stride)
        if not isinstance(self.box_loss, DarknetIoULoss):
            return self.box_loss(boxes, positives.boxes), uncertainty
        box = self.box_loss(
            boxes,
            positives.boxes,
            values=coordinates,
            growth=coordinates[:, 2:].exp(),
            image_size=input_size,
            weight=self.iou_normalizer,
        )
        return box, uncertainty


def _unit_slope(value: Tensor, logits: Tensor) -> Tensor:
    """``value``, whose derivative by ``logits`` is said to be one."""
    return value.detach() + (logits - logits.detach())


def _likelihood(target: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """Minus the logarithm of the density (plus epsilon), of each coordinate."""
    # scale_x_y can bring a deviation down to zero and below; its sign does not matter to z squared,
    # and published values keep the other denominator positive.
    sigma = torch.where(sigma.abs() < _SMALLEST_SIGMA, _SMALLEST_SIGMA, sigma)
    z = ((target - mu) / sigma).clamp(-_FAR, _FAR)
    width = (sigma + _SIGMA).clamp(min=_SMALLEST_SIGMA)
    density = (-(z**2) / 2).exp() / (math.sqrt(2 * math.pi) * width)
    return -(density + _EPSILON).log()
