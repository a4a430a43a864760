"""Deformable RoI pooling, both forms, in plain torch: bilinear samples looked up one by one."""

import torch
from torch import Tensor

from d2proj.ops._common import BoxesLike, pair, to_rois


def _bilinear(maps: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Read each map, (..., H, W), at its own points, (..., S), all of them inside."""
    height, width = maps.shape[-2:]
    flat = maps.flatten(-2)
    y0, x0 = y.detach().floor(), x.detach().floor()
    total = torch.zeros_like(y)
    for row, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
        for column, wx in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
            at = row.clamp(max=height - 1) * width + column.clamp(max=width - 1)
            total = total + wy * wx * flat.gather(-1, at.long())
    return total


def _clamp(at: Tensor, size: int) -> Tensor:
    """``at`` moved into the map; on its border without a derivative."""
    return torch.where((at >= 0) & (at < size - 1), at, at.detach().clamp(0, size - 1))


def deform_roi_pool(
    input: Tensor,
    rois: BoxesLike,
    offset: Tensor | None,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> Tensor:
    """See :func:`d2proj.ops.deform_roi_pool`. One bin at a time; autograd differentiates it."""
    pooled_h, pooled_w = pair(output_size, "output_size")
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    features, boxes = input.to(dtype), to_rois("deform_roi_pool", rois).to(dtype)
    _, channels, height, width = input.shape
    if offset is None or offset.numel() == 0:
        offset = input.new_zeros(len(boxes), 2, pooled_h, pooled_w)
    offset = offset.to(dtype)
    pooled = features.new_zeros(len(boxes), channels, pooled_h, pooled_w)
    for k, box in enumerate(boxes):
        start = box[1:3] * spatial_scale - 0.5  # x, y
        side = box[3:5] * spatial_scale - 0.5 - start
        bin_side = side / side.new_tensor([pooled_w, pooled_h])
        grid = bin_side.ceil() if sampling_ratio <= 0 else torch.full_like(side, sampling_ratio)
        for ph in range(pooled_h):
            for pw in range(pooled_w):
                moved = start + gamma * side * offset[k, :, ph, pw]
                moved = moved + side.new_tensor([pw, ph]) * bin_side
                if not (box.isfinite().all() and moved.isfinite().all() and grid.min() > 0):
                    continue
                x, y = (
                    moved[i]
                    + (torch.arange(int(grid[i]), dtype=dtype) + 0.5) * bin_side[i] / grid[i]
                    for i in (0, 1)
                )
                x, y = x[(x >= -1) & (x <= width)], y[(y >= -1) & (y <= height)]
                points = torch.cartesian_prod(_clamp(y, height), _clamp(x, width)).view(-1, 2)
                read = _bilinear(
                    features[int(box[0])],
                    points[:, 0].expand(channels, -1),
                    points[:, 1].expand(channels, -1),
                )
                pooled[k, :, ph, pw] = read.sum(1) / grid.prod()
    return pooled.to(input.dtype)


def _round(value: Tensor) -> Tensor:
    """Half away from zero, as C's ``round``; torch rounds half to even."""
    whole = value.trunc()
    return whole + ((value - whole).abs() >= 0.5) * value.sign()


def deform_ps_roi_pool(
    input: Tensor,
    rois: BoxesLike,
    offset: Tensor | None,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    part_size: int | tuple[int, int] | None = None,
    sample_per_part: int = 4,
    gamma: float = 0.1,
    group_size: int | tuple[int, int] | None = None,
) -> Tensor:
    """See :func:`d2proj.ops.deform_ps_roi_pool`. One bin at a time; autograd differentiates it."""
    pooled_h, pooled_w = pair(output_size, "output_size")
    part_h, part_w = pair(part_size or output_size, "part_size")
    group_h, group_w = pair(group_size or output_size, "group_size")
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    features, boxes = input.to(dtype), to_rois("deform_ps_roi_pool", rois).to(dtype)
    height, width = input.shape[2:]
    channels = input.shape[1] // (group_h * group_w)
    if offset is None or offset.numel() == 0:
        offset = input.new_zeros(len(boxes), 2, part_h, part_w)
    offset = offset.to(dtype)
    classes = offset.shape[1] // 2
    of_class = torch.arange(channels) // max(channels // classes, 1)
    pooled = features.new_zeros(len(boxes), channels, pooled_h, pooled_w)
    for k, box in enumerate(boxes):
        start = _round(box[1:3]) * spatial_scale - 0.5  # x, y
        side = (_round(box[3:5]) + 1) * spatial_scale - 0.5 - start
        if not side.isfinite().all():
            continue
        side = side.clamp(min=0.1)
        bin_side = side / side.new_tensor([pooled_w, pooled_h])
        for ph in range(pooled_h):
            for pw in range(pooled_w):
                part = offset[k, :, ph * part_h // pooled_h, pw * part_w // pooled_w]
                moved = side.new_tensor([pw, ph]) * bin_side + start
                moved = moved + part.view(classes, 2) * gamma * side  # (classes, 2)
                moved = moved[of_class]  # (channels, 2)
                i = torch.arange(sample_per_part, dtype=dtype)
                x = moved[:, :1] + i * (bin_side[0] / sample_per_part)  # (channels, samples)
                y = moved[:, 1:] + i * (bin_side[1] / sample_per_part)
                inside_x = (x >= -0.5) & (x <= width - 0.5)
                inside_y = (y >= -0.5) & (y <= height - 0.5)
                counted = (inside_y[:, :, None] & inside_x[:, None, :]).flatten(1)
                clean = [
                    torch.where(s, _clamp(v, n), 0.0)
                    for s, v, n in ((inside_y, y, height), (inside_x, x, width))
                ]
                cell = (ph * group_h // pooled_h) * group_w + pw * group_w // pooled_w
                read = _bilinear(
                    features[int(box[0]), cell :: group_h * group_w],
                    clean[0][:, :, None].expand(-1, -1, sample_per_part).flatten(1),
                    clean[1][:, None, :].expand(-1, sample_per_part, -1).flatten(1),
                )
                total = torch.where(counted, read, 0.0).sum(1)
                pooled[k, :, ph, pw] = total / counted.sum(1).clamp(min=1)
    return pooled.to(input.dtype)
