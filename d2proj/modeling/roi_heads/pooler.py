"""Features of boxes from the level of a pyramid that fits each (FPN, eq. 1)."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from d2proj.ops import multilevel_roi_align


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

    def forward(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Pool.

        Args:
            features: maps (N, C, H, W), one per scale.
            boxes: (K_i, 4) for each of the N images.

        Returns:
            (sum of K_i, C, output_size, output_size), image by image.
        """
        return multilevel_roi_align(
            features,
            boxes,
            self.output_size,
            self.scales,
            self.sampling_ratio,
            self.aligned,
            canonical_size=self.canonical_size,
            canonical_level=self.canonical_level,
        )
