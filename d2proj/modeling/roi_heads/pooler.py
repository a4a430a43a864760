"""Features of boxes from the level of a pyramid that fits each (FPN, eq. 1)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from d2proj.ops import roi_align


def assign_levels(
    boxes: Tensor,
    *,
    min_level: int,
    max_level: int,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
) -> Tensor:
    """``floor(k0 + log2(sqrt(w h) / 224))``, clamped, counted from ``min_level``.

    (N, 4) boxes give (N,) int64 levels. Boxes whose area is not a number go to the finest level.
    """
    x1, y1, x2, y2 = boxes.unbind(1)
    size = ((x2 - x1) * (y2 - y1)).sqrt()
    level = torch.floor(canonical_level + torch.log2(size / canonical_size + 1e-8))
    return level.nan_to_num(nan=min_level).clamp(min_level, max_level).long() - min_level


class RoIPooler(nn.Module):
    """RoIAlign from one map of a pyramid, chosen by the size of the box.

    Args:
        output_size: bins along each side.
        scales: of each level, 1 / stride, finest first.
        sampling_ratio: samples along each side of a bin; 0 adapts to the box.
        aligned: half-pixel-exact coordinates (Detectron2's ``ROIAlignV2``); False is the original.
        canonical_size, canonical_level: boxes of this size (pixels) go to this level, log2 of its
            stride.
    """

    def __init__(
        self,
        *,
        output_size: int,
        scales: Sequence[float],
        sampling_ratio: int = 0,
        aligned: bool = True,
        canonical_size: float = 224.0,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        levels = [-math.log2(scale) for scale in scales]
        if any(level != levels[0] + i for i, level in enumerate(levels)):
            raise ValueError(f"pooler scales must be halving powers of two, got {list(scales)}")
        self.output_size = output_size
        self.scales = list(scales)
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.canonical_size = canonical_size
        self.canonical_level = canonical_level
        self.min_level = int(levels[0])

    def forward(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Pool.

        Args:
            features: maps (N, C, H, W), one per scale.
            boxes: (K_i, 4) for each of the N images.

        Returns:
            (sum of K_i, C, output_size, output_size), image by image.
        """
        pooled, inverse = self.by_level(features, boxes)
        return pooled[inverse]

    def by_level(
        self, features: Sequence[Tensor], boxes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`forward`, but in the order of levels, with the index that undoes it.

        Whoever treats boxes one by one puts the order right later, on vectors: pooled maps are
            large.
        """
        rois = torch.cat(
            [torch.cat((b.new_full((len(b), 1), i), b), dim=1) for i, b in enumerate(boxes)]
        )
        levels = assign_levels(
            rois[:, 1:],
            min_level=self.min_level,
            max_level=self.min_level + len(self.scales) - 1,
            canonical_size=self.canonical_size,
            canonical_level=self.canonical_level,
        )
        members = [torch.nonzero(levels == i).squeeze(1) for i in range(len(self.scales))]
        pooled = [
            self._pool(feature, rois[member], scale)
            for feature, member, scale in zip(features, members, self.scales, strict=True)
        ]
        order = torch.cat(members)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=order.device)
        return torch.cat(pooled), inverse

    def _pool(self, feature: Tensor, rois: Tensor, scale: float) -> Tensor:
        size = self.output_size
        return roi_align(feature, rois, size, scale, self.sampling_ratio, self.aligned)
