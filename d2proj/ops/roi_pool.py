"""RoI max pooling (Girshick, Fast R-CNN, ICCV 2015): function, module, registrations."""

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


def roi_pool(
    input: Tensor,
    boxes: BoxesLike,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """Pool boxes of a feature map to a fixed size by the maximum of whole cells.

    Signature and semantics are ``torchvision.ops.roi_pool``'s.

    Args:
        input: (N, C, H, W), float16, bfloat16, float32 or float64; NCHW or channels-last in memory.
        boxes: (K, 5) of image index, x1, y1, x2, y2, or a (K_i, 4) for each image; in the units
            that ``spatial_scale`` maps to feature cells. float32 or float64 (half is raised).
        output_size: Height and width of the result, or one number for both.
        spatial_scale: Feature cells per box unit, 1/16 for a map of stride 16.

    Returns:
        (K, C, height, width) in the dtype and memory format of ``input``; 0 where a bin holds no
        cell. A NaN cell is never the maximum.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype or device, or, on the CPU, a box's
            image index is out of range (on CUDA such a box pools to zero).
    """
    _ext.require()
    height, width = pair(output_size, "output_size")
    rois = to_rois("roi_pool", boxes)
    # Where the maxima are is worked out only if the backward pass will ask.
    wanted = input.requires_grad and torch.is_grad_enabled()
    return torch.ops.d2proj.roi_pool(input, rois, spatial_scale, height, width, wanted)[0]


class RoIPool(nn.Module):
    """See :func:`roi_pool`."""

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, rois: BoxesLike) -> Tensor:
        """Pool ``rois`` of ``input`` (see :func:`roi_pool`)."""
        return roi_pool(input, rois, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"


def _forward_fake(
    input: Tensor,
    boxes: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    with_argmax: bool,
) -> tuple[Tensor, Tensor]:
    torch._check(input.dim() == 4, lambda: "roi_pool: input must have shape (N, C, H, W)")
    torch._check(boxes.dim() == 2, lambda: "roi_pool: boxes must have shape (K, 5)")
    output = torch.empty(
        (boxes.shape[0], input.shape[1], pooled_height, pooled_width),
        dtype=input.dtype,
        device=input.device,
        memory_format=memory_format(is_channels_last(input)),
    )
    if with_argmax:
        return output, torch.empty_like(output, dtype=torch.int32)
    return output, output.new_empty(0, dtype=torch.int32)


def _backward_fake(
    grad: Tensor,
    boxes: Tensor,
    argmax: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    batch_size: int,
    channels: int,
    height: int,
    width: int,
    channels_last: bool,
    deterministic: bool,
) -> Tensor:
    return torch.empty(
        (batch_size, channels, height, width),
        dtype=grad.dtype,
        device=grad.device,
        memory_format=memory_format(channels_last),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, boxes, *ctx.options, _ = inputs
    ctx.save_for_backward(boxes, output[1])
    ctx.input_shape = input.shape
    ctx.channels_last = is_channels_last(input)


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    boxes, argmax = ctx.saved_tensors
    grad_input = torch.ops.d2proj._roi_pool_backward(
        grad,
        boxes,
        argmax,
        *ctx.options,
        *ctx.input_shape,
        ctx.channels_last,
        torch.are_deterministic_algorithms_enabled(),
    )
    return grad_input, None, None, None, None, None


if _ext.AVAILABLE:
    register_differentiable(
        "roi_pool",
        forward_fake=_forward_fake,
        backward_fake=_backward_fake,
        setup_context=_setup_context,
        backward=_backward,
    )
    register_autocast("roi_pool", box_arguments=[1])
