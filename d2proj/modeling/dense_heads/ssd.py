"""SSD's predictors (Liu et al. 2016, section 2.1)."""

from collections.abc import Sequence

from torch import Tensor, nn

from d2proj.layers.init import init_xavier
from d2proj.modeling.dense_heads.layout import per_anchor


class MultiBoxPredictor(nn.Module):
    """A 3x3 convolution for the classes and one for the boxes of each cell's default boxes.

    Args:
        in_channels: of the map.
        num_anchors: A, default boxes of a cell.
        num_scores: class scores of a default box.
    """

    def __init__(self, in_channels: int, num_anchors: int, num_scores: int) -> None:
        super().__init__()
        self.num_scores = num_scores
        self.cls_score = nn.Conv2d(in_channels, num_anchors * num_scores, 3, padding=1)
        self.bbox_pred = nn.Conv2d(in_channels, num_anchors * 4, 3, padding=1)
        for conv in (self.cls_score, self.bbox_pred):
            init_xavier(conv)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> (N, H * W * A, num_scores), (N, H * W * A, 4)."""
        return per_anchor(self.cls_score(x), self.num_scores), per_anchor(self.bbox_pred(x), 4)


class SSDHead(nn.Module):
    """A predictor of its own for each map, ``levels[i]``.

    Args:
        in_channels: of each map.
        num_anchors: default boxes of a cell of each map.
        num_classes: K; the scores are K + 1, the background last.
    """

    def __init__(
        self, *, in_channels: Sequence[int], num_anchors: Sequence[int], num_classes: int
    ) -> None:
        super().__init__()
        if len(in_channels) != len(num_anchors):
            raise ValueError(
                f"an SSD head takes one num_anchors for each of its {len(in_channels)} maps, "
                f"got {len(num_anchors)}"
            )
        self.levels = nn.ModuleList(
            MultiBoxPredictor(channels, anchors, num_classes + 1)
            for channels, anchors in zip(in_channels, num_anchors, strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Predictions of each map.

        Args:
            maps: (N, C_i, H_i, W_i).

        Returns:
            Logits (N, H_i * W_i * A_i, K + 1) and deltas (N, H_i * W_i * A_i, 4) of each map, in
            the order of the default boxes.
        """
        logits, deltas = [], []
        for level, x in zip(self.levels, maps, strict=True):
            of_classes, of_boxes = level(x)
            logits.append(of_classes)
            deltas.append(of_boxes)
        return logits, deltas
