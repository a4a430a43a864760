"""RetinaNet's head (Lin et al. 2017, section 4)."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from d2proj.layers.conv import Conv2d
from d2proj.layers.init import init_normal
from d2proj.layers.norm import PerLevelBatchNorm2d, get_norm
from d2proj.modeling.dense_heads.layout import per_anchor


class RetinaNetHead(nn.Module):
    """Two towers of 3x3 convolutions, shared by all levels: one for classes, one for boxes.

    State-dict names are Detectron2's: ``cls_subnet.0``, ``.2``, ... (with a normalisation ``.0``,
    ``.1``, ``.3``, ``.4``, ...), ``cls_score``, ``bbox_pred``.

    Args:
        in_channels: channels of every level.
        num_classes: K.
        num_anchors: A, anchors per cell.
        num_levels: pyramid levels (``"BN"`` keeps statistics for each).
        conv_dims: channels of the towers' convolutions.
        prior_prob: initial score of everything (section 4.1), so that the first losses are not
            swamped.
        norm: ``""``, ``"GN"``, or ``"BN"`` (one per level).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        num_anchors: int,
        num_levels: int = 5,
        conv_dims: Sequence[int] = (256, 256, 256, 256),
        prior_prob: float = 0.01,
        norm: str = "",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls_subnet = _tower(in_channels, conv_dims, norm, num_levels)
        self.bbox_subnet = _tower(in_channels, conv_dims, norm, num_levels)
        channels = list(conv_dims)[-1] if conv_dims else in_channels
        self.cls_score = nn.Conv2d(channels, num_anchors * num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, num_anchors * 4, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_normal(module, std=0.01)
        if self.cls_score.bias is not None:
            nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Predictions of each level.

        Args:
            features: maps (N, C, H, W).

        Returns:
            Logits (N, H * W * A, K) and deltas (N, H * W * A, 4) of each level, in the order of the
            anchors.
        """
        logits, deltas = [], []
        for level, x in enumerate(features):
            scores = self.cls_score(_run_tower(self.cls_subnet, x, level))
            boxes = self.bbox_pred(_run_tower(self.bbox_subnet, x, level))
            logits.append(per_anchor(scores, self.num_classes))
            deltas.append(per_anchor(boxes, 4))
        return logits, deltas


def _tower(in_channels: int, dims: Sequence[int], norm: str, num_levels: int) -> nn.ModuleList:
    layers: list[nn.Module] = []
    for channels in dims:
        layers.append(Conv2d(in_channels, channels, 3, padding=1))
        if norm == "BN":
            layers.append(PerLevelBatchNorm2d(num_levels, channels))
        elif (layer := get_norm(norm, channels)) is not None:
            layers.append(layer)
        layers.append(nn.ReLU(inplace=True))
        in_channels = channels
    return nn.ModuleList(layers)


def _run_tower(tower: nn.ModuleList, x: Tensor, level: int) -> Tensor:
    for layer in tower:
        x = layer(x, level) if isinstance(layer, PerLevelBatchNorm2d) else layer(x)
    return x
