"""Deformable convolution in plain torch: columns by bilinear reads, then one product."""

import torch
from torch import Tensor

from d2proj.ops._common import pair


def _read(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear reads of (C, H, W) at y, x, both (P,); zero outside. (C, P)."""
    _, height, width = image.shape
    inside = (y >= -1) & (y < height) & (x >= -1) & (x < width)  # false for NaN
    # In a graph `where` keeps the gradient of what it drops finite.
    y, x = torch.where(inside, y, 0), torch.where(inside, x, 0)
    top, left = y.detach().floor(), x.detach().floor()
    total = image.new_zeros(len(image), len(y))
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = top + dy, left + dx
            valid = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            weight = (y - top if dy else 1 - (y - top)) * (x - left if dx else 1 - (x - left))
            pixel = image[:, row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()]
            total = total + torch.where(valid, weight * pixel, 0)
    return total


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """See :func:`d2proj.ops.deform_conv2d`. One tap at a time; autograd differentiates it."""
    (sy, sx), (py, px), (dy, dx) = (
        pair(stride, "stride"),
        pair(padding, "padding"),
        pair(dilation, "dilation"),
    )
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    outputs, group_channels, kernel_h, kernel_w = weight.shape
    taps = kernel_h * kernel_w
    images, channels, _, _ = input.shape
    out_h, out_w = offset.shape[2:]
    groups = channels // group_channels
    offset_groups = offset.shape[1] // (2 * taps)
    base_y = (torch.arange(out_h, device=input.device) * sy - py).to(dtype)[:, None]
    base_x = (torch.arange(out_w, device=input.device) * sx - px).to(dtype)[None, :]
    results = []
    for n in range(images):
        features = input[n].to(dtype).chunk(offset_groups)
        moves = offset[n].to(dtype).view(offset_groups, taps, 2, out_h, out_w)
        columns = []
        for t in range(taps):
            parts = []
            for g in range(offset_groups):
                y = base_y + t // kernel_w * dy + moves[g, t, 0]
                x = base_x + t % kernel_w * dx + moves[g, t, 1]
                part = _read(features[g], y.flatten(), x.flatten())
                if mask is not None:
                    part = part * mask[n].to(dtype).view(offset_groups, taps, -1)[g, t]
                parts.append(part)
            columns.append(torch.cat(parts))
        column = torch.stack(columns, 1).view(groups, group_channels * taps, out_h * out_w)
        result = weight.to(dtype).view(groups, outputs // groups, -1) @ column
        results.append(result.view(outputs, out_h, out_w))
    if not results:
        return input.new_empty(0, outputs, out_h, out_w)
    output = torch.stack(results)
    if bias is not None:
        output = output + bias.to(dtype)[:, None, None]
    return output.to(input.dtype)
