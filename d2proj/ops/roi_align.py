"""RoIAlign (He et al., Mask R-CNN, ICCV 2017, section 3): function, module, registrations."""

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


def roi_align(
    input: Tensor,
    boxes: BoxesLike,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Pool boxes of a feature map to a fixed size by averaging bilinear samples.

    Signature and semantics are ``torchvision.ops.roi_align``'s.

    Args:
        input: (N, C, H, W), float16, bfloat16, float32 or float64; NCHW or channels-last in memory.
        boxes: (K, 5) of image index, x1, y1, x2, y2, or a (K_i, 4) for each image; in the units
            that ``spatial_scale`` maps to feature cells. float32 or float64 (half is raised).
        output_size: Height and width of the result, or one number for both.
        spatial_scale: Feature cells per box unit, 1/4 for a map of stride 4.
        sampling_ratio: Samples per bin along an axis; 0 or less: as many as the bin has cells.
        aligned: Shift boxes by half a cell so that cell centres sit at .5 (what Detectron2 uses);
            without it boxes are also at least one cell wide (the paper's released code).

    Returns:
        (K, C, height, width) in the dtype and memory format of ``input``.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype or device, or, on the CPU, a box's
            image index is out of range (on CUDA such a box pools to zero).
    """
    _ext.require()
    height, width = pair(output_size, "output_size")
    rois = to_rois("roi_align", boxes)
    return torch.ops.d2proj.roi_align(
        input, rois, spatial_scale, height, width, sampling_ratio, aligned
    )


class RoIAlign(nn.Module):
    """See :func:`roi_align`."""

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = False,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: BoxesLike) -> Tensor:
        """Pool ``rois`` of ``input`` (see :func:`roi_align`)."""
        return roi_align(
            input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
        )

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )


def _forward_fake(
    input: Tensor,
    boxes: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    torch._check(input.dim() == 4, lambda: "roi_align: input must have shape (N, C, H, W)")
    torch._check(boxes.dim() == 2, lambda: "roi_align: boxes must have shape (K, 5)")
    shape = (boxes.shape[0], input.shape[1], pooled_height, pooled_width)
    return torch.empty(
        shape,
        dtype=input.dtype,
        device=input.device,
        memory_format=memory_format(is_channels_last(input)),
    )


def _backward_fake(
    grad: Tensor,
    boxes: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    batch_size: int,
    channels: int,
    height: int,
    width: int,
    sampling_ratio: int,
    aligned: bool,
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
    input, boxes, *ctx.options = inputs
    ctx.save_for_backward(boxes)
    ctx.input_shape = input.shape
    ctx.channels_last = is_channels_last(input)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (boxes,) = ctx.saved_tensors
    spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned = ctx.options
    grad_input = torch.ops.d2proj._roi_align_backward(
        grad,
        boxes,
        spatial_scale,
        pooled_height,
        pooled_width,
        *ctx.input_shape,
        sampling_ratio,
        aligned,
        ctx.channels_last,
        torch.are_deterministic_algorithms_enabled(),
    )
    return grad_input, None, None, None, None, None, None


if _ext.AVAILABLE:
    register_differentiable(
        "roi_align",
        forward_fake=_forward_fake,
        backward_fake=_backward_fake,
        setup_context=_setup_context,
        backward=_backward,
    )
    register_autocast("roi_align", box_arguments=[1])
