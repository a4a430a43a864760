"""From YOLO9000's raw maps to candidate boxes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from d2proj.modeling.dense_heads.yolo import Candidates, RegionDecoder
from d2proj.modeling.word_tree import WordTree


class TreeDecoder(RegionDecoder):
    """YOLO9000 (Redmon & Farhadi 2017, section 4): classes form a tree.

    If the tree has no map, each box above the threshold is one candidate: its class is the node at
    which the descent from the roots ends, its score its objectness (``get_region_detections``).
    With a map each of its classes whose objectness times probability exceeds the threshold is one.

    Args:
        anchors: (A, 2) width, height in cells.
        tree: of n nodes.
        hier_thresh: the descent enters nodes of a probability above this.
    """

    def __init__(
        self,
        *,
        anchors: Sequence[Sequence[float]],
        tree: WordTree,
        hier_thresh: float = 0.5,
    ) -> None:
        super().__init__(anchors=anchors, num_classes=tree.num_classes)
        self.tree = tree
        self.hier_thresh = hier_thresh

    def forward(self, raw: Tensor, image_size: tuple[int, int], score_thresh: float) -> Candidates:
        """See :class:`~d2proj.modeling.dense_heads.yolo.Decoder`; (A * (5 + n), H, W)."""
        values, anchor, cell = self._candidate_cells(raw, score_thresh)
        boxes = self._boxes(values, anchor, cell, raw, image_size)
        objectness = values[:, 4].sigmoid()
        probability = self.tree.log_probability(values[:, 5:]).exp()
        if self.tree.class_map is None:
            return boxes, objectness, self.tree.descend(probability, self.hier_thresh)
        scores = objectness[:, None] * probability[:, self.tree.class_map]
        rows, kinds = torch.nonzero(scores > score_thresh).unbind(1)
        return boxes[rows], scores[rows, kinds], kinds
