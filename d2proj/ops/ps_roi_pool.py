"""Position-sensitive RoI pooling (R-FCN, 2016) and RoIAlign (Light-Head R-CNN, 2017)."""

from typing import Any

import torch
from torch import Tensor, nn

from d2proj.ops import _ext
from d2proj.ops._common import (
    BoxesLike,
    is_channels_last,
    memory_format,
    pair,
    register_autocast,
    register_differentiable,
    to_rois,
)


def ps_roi_pool(
    input: Tensor,
    boxes: BoxesLike,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """Pool boxes by the mean of whole cells, each bin from a group of channels of its own.

    Signature and semantics are ``torchvision.ops.ps_roi_pool``'s.

    Args:
        input: (N, C * height * width, H, W), float16, bfloat16, float32 or float64; channel
            ``(c * height + ph) * width + pw`` is what bin (ph, pw) of the result's channel c reads.
        boxes: (K, 5) of image index, x1, y1, x2, y2, or a (K_i, 4) for each image; in the units
            that ``spatial_scale`` maps to feature cells. float32 or float64 (half is raised).
        output_size: Height and width of the result, or one number for both.
        spatial_scale: Feature cells per box unit, 1/16 for a map of stride 16.

    Returns:
        (K, C, height, width) in the dtype and memory format of ``input``; 0 where a bin holds no
        cell.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype or device, or, on the CPU, a box's
            image index is out of range (on CUDA such a box pools to zero).
    """
    _ext.require()
    height, width = pair(output_size, "output_size")
    rois = to_rois("ps_roi_pool", boxes)
    return torch.ops.d2proj.ps_roi_pool(input, rois, spatial_scale, height, width)


def ps_roi_align(
    input: Tensor,
    boxes: BoxesLike,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
) -> Tensor:
    """Pool boxes by the mean of bilinear samples, each bin from a group of channels of its own.

    Signature and semantics are ``torchvision.ops.ps_roi_align``'s.

    Args:
        input: As in :func:`ps_roi_pool`.
        boxes: As in :func:`ps_roi_pool`.
        output_size: Height and width of the result, or one number for both.
        spatial_scale: Feature cells per box unit, 1/16 for a map of stride 16.
        sampling_ratio: Samples per bin along an axis; 0 or less: as many as the bin has cells.

    Returns:
        (K, C, height, width) in the dtype and memory format of ``input``.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype or device, or, on the CPU, a box's
            image index is out of range (on CUDA such a box pools to zero).
    """
    _ext.require()
    height, width = pair(output_size, "output_size")
    rois = to_rois("ps_roi_align", boxes)
    return torch.ops.d2proj.ps_roi_align(input, rois, spatial_scale, height, width, sampling_ratio)


class PSRoIPool(nn.Module):
    """See :func:`ps_roi_pool`."""

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, rois: BoxesLike) -> Tensor:
        """Pool ``rois`` of ``input`` (see :func:`ps_roi_pool`)."""
        return ps_roi_pool(input, rois, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"


class PSRoIAlign(nn.Module):
    """See :func:`ps_roi_align`."""

    def __init__(
        self, output_size: int | tuple[int, int], spatial_scale: float, sampling_ratio: int
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio

    def forward(self, input: Tensor, rois: BoxesLike) -> Tensor:
        """Pool ``rois`` of ``input`` (see :func:`ps_roi_align`)."""
        return ps_roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio)

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}"
        )


def _register(op: str) -> None:
    def forward_fake(
        input: Tensor,
        boxes: Tensor,
        spatial_scale: float,
        pooled_height: int,
        pooled_width: int,
        *sampling_ratio: int,
    ) -> Tensor:
        torch._check(input.dim() == 4, lambda: f"{op}: input must have shape (N, C, H, W)")
        torch._check(boxes.dim() == 2, lambda: f"{op}: boxes must have shape (K, 5)")
        channels = input.shape[1] // (pooled_height * pooled_width)
        return torch.empty(
            (boxes.shape[0], channels, pooled_height, pooled_width),
            dtype=input.dtype,
            device=input.device,
            memory_format=memory_format(is_channels_last(input)),
        )

    def backward_fake(grad: Tensor, boxes: Tensor, *rest: Any) -> Tensor:
        _, _, _, *shape = rest[:7]
        return torch.empty(
            shape,
            dtype=grad.dtype,
            device=grad.device,
            memory_format=memory_format(rest[-2]),
        )

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, boxes, *ctx.options = inputs
        ctx.save_for_backward(boxes)
        ctx.input_shape = input.shape
        ctx.channels_last = is_channels_last(input)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (boxes,) = ctx.saved_tensors
        spatial_scale, pooled_height, pooled_width, *sampling_ratio = ctx.options
        grad_input = getattr(torch.ops.d2proj, f"_{op}_backward")(
            grad,
            boxes,
            spatial_scale,
            pooled_height,
            pooled_width,
            *ctx.input_shape,
            *sampling_ratio,
            ctx.channels_last,
            torch.are_deterministic_algorithms_enabled(),
        )
        return grad_input, None, *[None for _ in ctx.options]

    register_differentiable(
        op,
        forward_fake=forward_fake,
        backward_fake=backward_fake,
        setup_context=setup_context,
        backward=backward,
    )
    register_autocast(op, box_arguments=[1])


if _ext.AVAILABLE:
    _register("ps_roi_pool")
    _register("ps_roi_align")
