"""RoIAlign of rotated boxes in plain torch: every sample of a box, then the mean of each bin."""

import math

import torch
from torch import Tensor

from d2proj.ops._common import pair, raise_box_dtype


def _bilinear(features: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """(C, *y.shape) values of a (C, H, W) map; further than a pixel outside it they are zero."""
    height, width = features.shape[1:]
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.floor().long(), x.floor().long()
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    fy, fx = y - top, x - left
    above = features[:, top, left] * (1 - fx) + features[:, top, right] * fx
    below = features[:, bottom, left] * (1 - fx) + features[:, bottom, right] * fx
    return (above * (1 - fy) + below * fy) * inside


def _offsets(length: float, bins: int, ratio: int, like: Tensor) -> Tensor:
    """Distance of each sample from the box's centre along one axis, (bins * grid,)."""
    grid = ratio if ratio > 0 else math.ceil(length / bins)
    return ((torch.arange(bins * grid).to(like) + 0.5) / max(bins * grid, 1) - 0.5) * length


def roi_align_rotated(
    input: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
) -> Tensor:
    """See :func:`d2proj.ops.roi_align_rotated`. One box at a time; autograd differentiates it."""
    pooled_h, pooled_w = pair(output_size, "output_size")
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    features = input.to(dtype)
    channels = input.shape[1]
    pooled = []
    for roi in raise_box_dtype(rois).to(dtype):
        image, cx, cy, width, height, degrees = roi.tolist()
        if not roi.isfinite().all() or width < 0 or height < 0:
            pooled.append(features.new_zeros(channels, pooled_h, pooled_w))
            continue
        along_y = _offsets(height * spatial_scale, pooled_h, sampling_ratio, features)[:, None]
        along_x = _offsets(width * spatial_scale, pooled_w, sampling_ratio, features)[None, :]
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        y = along_y * cos - along_x * sin + cy * spatial_scale - 0.5
        x = along_y * sin + along_x * cos + cx * spatial_scale - 0.5
        grid_h, grid_w = len(along_y) // pooled_h, along_x.shape[1] // pooled_w
        values = _bilinear(features[int(image)], y, x)
        values = values.view(channels, pooled_h, grid_h, pooled_w, grid_w)
        pooled.append(values.sum((2, 4)) / max(grid_h * grid_w, 1))
    if not pooled:
        return input.new_empty(0, channels, pooled_h, pooled_w)
    return torch.stack(pooled).to(input.dtype)
