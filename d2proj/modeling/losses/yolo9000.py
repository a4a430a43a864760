"""The loss of YOLO9000: boxes and mere labels together, classes in a tree."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor
from torch.nn import functional as F

from d2proj.modeling.boxes import full_precision
from d2proj.modeling.dense_heads.yolo import RegionDecoder
from d2proj.modeling.losses.region import RegionLoss
from d2proj.modeling.word_tree import WordTree


class TreeRegionLoss(RegionLoss):
    """YOLO9000 (Redmon & Farhadi 2017, section 4; ``region_layer.c`` with ``tree=``).

    The class loss of a truth is the cross entropy of every group along its path, which is minus the
    logarithm of the node's probability.

    An image whose ``Instances`` have a field ``gt_has_box`` with a false entry is a classification
    image: of each such label (its box is not looked at) the box that gives it the highest
    objectness times probability learns the class, and nothing else is learned from the image.

    Args:
        tree: of n nodes; labels are its data set's classes.
        assumed_iou: objectness that the box of a mere label is raised to if it is below: the paper
            takes its overlap with the object to be at least 0.3; darknet leaves objectness alone
            (0).
        **region: see :class:`RegionLoss`.
    """

    def __init__(
        self,
        *,
        tree: WordTree,
        assumed_iou: float = 0.3,
        **region: Any,
    ) -> None:
        super().__init__(num_classes=tree.num_classes, **region)
        self.tree = tree
        self.assumed_iou = assumed_iou

    def forward(
        self,
        raw: Tensor,
        decoder: RegionDecoder,
        gt_instances: Sequence[Instances],
        input_size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """As :meth:`RegionLoss.forward`; ``raw`` is (N, A * (5 + n), H, W)."""
        labelled = [i for i, truth in enumerate(gt_instances) if _is_label_only(truth)]
        if not labelled:
            return super().forward(raw, decoder, gt_instances, input_size)
        count = len(raw)
        boxed = [i for i in range(count) if i not in labelled]
        zero = raw.new_zeros((), dtype=torch.float32)
        losses = {"loss_box": zero, "loss_obj": zero, "loss_cls": zero}
        if boxed:
            truths = [gt_instances[i] for i in boxed]
            found = super().forward(raw[boxed], decoder, truths, input_size)
            losses = {name: loss * (len(boxed) / count) for name, loss in found.items()}
        if self.training:
            self.seen += len(labelled) * comm.get_world_size()
        for i in labelled:
            values = full_precision(raw[i]).view(len(decoder.anchors), -1, *raw.shape[2:])
            values = values.permute(0, 2, 3, 1).flatten(0, 2)  # A H W, 5 + n
            for label in self._label_losses(values, gt_instances[i]):
                losses = {name: loss + label[name] / count for name, loss in losses.items()}
        return losses

    def _label_losses(self, values: Tensor, truth: Instances) -> list[dict[str, Tensor]]:
        """Of each label without a box, the losses of the box that is surest of it."""
        losses = []
        for node in self.tree.nodes(truth.gt_classes[~truth.gt_has_box]).tolist():
            with torch.no_grad():
                likely = self.tree.log_probability_of(values[:, 5:], node)
                best = (F.logsigmoid(values[:, 4]) + likely).argmax()
            objectness = values[best, 4].sigmoid()
            missing = (self.assumed_iou - objectness).clamp(min=0)
            losses.append(
                {
                    "loss_box": values.new_zeros(()),
                    "loss_obj": missing.square() * self.object_scale / 2,
                    "loss_cls": -self.tree.log_probability_of(values[best, 5:], node)
                    * self.class_scale,
                }
            )
        return losses

    def class_loss(self, logits: Tensor, kinds: Tensor) -> Tensor:
        """Summed over the rows of (M, n) logits and (M,) labels."""
        nodes = self.tree.nodes(kinds)
        return -self.tree.log_probability(logits).gather(1, nodes[:, None]).sum()


def _is_label_only(truth: Instances) -> bool:
    return truth.has("gt_has_box") and not bool(truth.gt_has_box.all())
