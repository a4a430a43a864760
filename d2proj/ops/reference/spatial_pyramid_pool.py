"""Spatial pyramid pooling in plain torch: roi_pool to each grid."""

from collections.abc import Sequence

import torch
from torch import Tensor

from d2proj.ops._common import BoxesLike
from d2proj.ops.reference.roi_pool import roi_pool


def spatial_pyramid_pool(
    input: Tensor,
    boxes: BoxesLike,
    bins: Sequence[int] = (1, 2, 3, 6),
    spatial_scale: float = 1.0,
) -> Tensor:
    """See :func:`d2proj.ops.spatial_pyramid_pool`. Autograd differentiates it."""
    return torch.cat([roi_pool(input, boxes, b, spatial_scale).flatten(1) for b in bins], 1)
