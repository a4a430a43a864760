"""RoIAlign of rotated boxes (Detectron2's ROIAlignRotated): function, module, registrations."""

from typing import Any

import torch
from torch import Tensor, nn

from d2proj.ops import _ext
from d2proj.ops._common import (
    is_channels_last,
    memory_format,
    pair,
    raise_box_dtype,
    register_autocast,
    register_differentiable,
)


def roi_align_rotated(
    input: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
) -> Tensor:
    """Pool rotated boxes of a feature map to a fixed size by averaging bilinear samples.

    Args:
        input: (N, C, H, W), float16, bfloat16, float32 or float64; NCHW or channels-last in memory.
        rois: (K, 6) of image index, centre x, centre y, width, height and angle in degrees,
            counter-clockwise as one sees the image; lengths in the units that ``spatial_scale``
            maps to feature cells. float32 or float64 (half is raised).
        output_size: Height and width of the result, or one number for both.
        spatial_scale: Feature cells per box unit, 1/4 for a map of stride 4.
        sampling_ratio: Samples per bin along an axis; 0 or less: as many as the bin has cells.

    Returns:
        (K, C, height, width) in the dtype and memory format of ``input``; cell centres sit at .5,
        as with ``roi_align``'s ``aligned=True``.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype or device, or, on the CPU, a box's
            image index is out of range (on CUDA such a box pools to zero).
    """
    _ext.require()
    height, width = pair(output_size, "output_size")
    return torch.ops.d2proj.roi_align_rotated(
        input, raise_box_dtype(rois), spatial_scale, height, width, sampling_ratio
    )


class RoIAlignRotated(nn.Module):
    """See :func:`roi_align_rotated`."""

    def __init__(
        self, output_size: int | tuple[int, int], spatial_scale: float, sampling_ratio: int
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pool ``rois`` of ``input`` (see :func:`roi_align_rotated`)."""
        return roi_align_rotated(
            input, rois, self.output_size, self.spatial_scale, self.sampling_ratio
        )

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}"
        )


def _forward_fake(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
) -> Tensor:
    torch._check(input.dim() == 4, lambda: "roi_align_rotated: input must have shape (N, C, H, W)")
    torch._check(rois.dim() == 2, lambda: "roi_align_rotated: rois must have shape (K, 6)")
    return torch.empty(
        (rois.shape[0], input.shape[1], pooled_height, pooled_width),
        dtype=input.dtype,
        device=input.device,
        memory_format=memory_format(is_channels_last(input)),
    )


def _backward_fake(
    grad: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    batch_size: int,
    channels: int,
    height: int,
    width: int,
    sampling_ratio: int,
    channels_last: bool,
    deterministic: bool,
) -> Tensor:
    return torch.empty(
        (batch_size, channels, height, width),
        dtype=grad.dtype,
        device=grad.device,
        memory_format=memory_format(channels_last),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, rois, *ctx.options = inputs
    ctx.save_for_backward(rois)
    ctx.input_shape = input.shape
    ctx.channels_last = is_channels_last(input)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (rois,) = ctx.saved_tensors
    spatial_scale, pooled_height, pooled_width, sampling_ratio = ctx.options
    grad_input = torch.ops.d2proj._roi_align_rotated_backward(
        grad,
        rois,
        spatial_scale,
        pooled_height,
        pooled_width,
        *ctx.input_shape,
        sampling_ratio,
        ctx.channels_last,
        torch.are_deterministic_algorithms_enabled(),
    )
    return grad_input, None, None, None, None, None


if _ext.AVAILABLE:
    register_differentiable(
        "roi_align_rotated",
        forward_fake=_forward_fake,
        backward_fake=_backward_fake,
        setup_context=_setup_context,
        backward=_backward,
    )
    register_autocast("roi_align_rotated", box_arguments=[1])
