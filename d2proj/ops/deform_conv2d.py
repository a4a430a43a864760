"""Deformable convolution: function, modules, registrations.

Version 1 is Dai et al., ICCV 2017, version 2 (with a mask) Zhu et al., CVPR 2019.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from d2proj.ops import _common, _ext
from d2proj.ops._common import (
    is_channels_last,
    memory_format,
    pair,
    register_differentiable,
)

IntOrPair = int | tuple[int, int]


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Convolve samples that learned offsets have moved, bilinearly read and times a mask.

    Signature and semantics are ``torchvision.ops.deform_conv2d``'s: version 1 without a mask,
    version 2 with one. The numbers of groups and of offset groups follow from the shapes.

    Args:
        input: (N, C, H, W), float16, bfloat16, float32 or float64; NCHW or channels-last in memory.
        offset: (N, 2 * offset_groups * kernel_h * kernel_w, out_h, out_w) in input pixels: for each
            offset group and tap y, then x. Any floating dtype. A sample whose offset is not finite
            is zero.
        weight: (C_out, C / groups, kernel_h, kernel_w), in the dtype of ``input``.
        bias: (C_out,), in the dtype of ``input``.
        stride: Along y and x, or one number for both; so are ``padding`` and ``dilation``.
        padding: Zeros around the input.
        dilation: Input pixels from a tap to the next.
        mask: (N, offset_groups * kernel_h * kernel_w, out_h, out_w), what each sample is multiplied
            by. Any floating dtype.

    Returns:
        (N, C_out, out_h, out_w) in the dtype and memory format of ``input``.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype or device.
    """
    _ext.require()
    return torch.ops.d2proj.deform_conv2d(
        input,
        weight,
        offset,
        mask,
        bias,
        *pair(stride, "stride"),
        *pair(padding, "padding"),
        *pair(dilation, "dilation"),
    )


class DeformConv2d(nn.Module):
    """See :func:`deform_conv2d`; offsets (and mask) are given. As ``torchvision.ops``'s module."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: IntOrPair = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"{name} must be a multiple of groups, {groups}, got {channels}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = pair(kernel_size, "kernel_size")
        self.stride = pair(stride, "stride")
        self.padding = pair(padding, "padding")
        self.dilation = pair(dilation, "dilation")
        self.groups = groups
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, *self.kernel_size)
        )
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as ``nn.Conv2d`` does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """Convolve ``input`` at ``offset`` (see :func:`deform_conv2d`)."""
        return deform_conv2d(
            input,
            offset,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            mask,
        )

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}, bias={self.bias is not None}"
        )


class _Pack(DeformConv2d):
    """A deformable convolution that takes its offsets from a convolution of its own.

    ``conv_offset`` starts at zero, so that the layer starts as a plain convolution. Names in the
    state dict are mmcv's; with ``norm`` they are also Detectron2's, but for ``conv_offset.``, which
    Detectron2's blocks have beside the layer, as ``<layer>_offset.``.

    Args:
        deform_groups: Groups of input channels with offsets of their own.
        norm: Follows the convolution, as in Detectron2's layers.
        activation: Follows the norm.
    """

    #: Channels of ``conv_offset`` for each tap and offset group.
    offset_channels = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: IntOrPair = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = False,
        *,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if in_channels % deform_groups:
            raise ValueError(
                f"in_channels must be a multiple of deform_groups, {deform_groups}, "
                f"got {in_channels}"
            )
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )
        self.deform_groups = deform_groups
        self.conv_offset = nn.Conv2d(
            in_channels,
            self.offset_channels * deform_groups * self.kernel_size[0] * self.kernel_size[1],
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
        )
        for parameter in self.conv_offset.parameters():
            nn.init.zeros_(parameter)
        self.norm = norm
        self.activation = activation

    def _convolve(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        output = super().forward(input, offset, mask)
        if self.norm is not None:
            output = self.norm(output)
        return output if self.activation is None else self.activation(output)

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return f"{super().extra_repr()}, deform_groups={self.deform_groups}"


class DeformConv2dPack(_Pack):
    """Deformable convolution v1 with its offsets' convolution; mmcv's of that name ("DCN")."""

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """Convolve (N, C, H, W)."""
        return self._convolve(input, self.conv_offset(input))


class ModulatedDeformConv2dPack(_Pack):
    """Deformable convolution v2, offsets and mask from one convolution; mmcv's ("DCNv2").

    The last third of ``conv_offset``'s channels is the mask, through a sigmoid: 1/2 at first.
    """

    offset_channels = 3

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: IntOrPair = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = True,
        *,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            deform_groups,
            bias,
            norm=norm,
            activation=activation,
        )

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """Convolve (N, C, H, W)."""
        moved = self.conv_offset(input)
        masks = moved.shape[1] // 3
        offset, mask = moved[:, : 2 * masks], moved[:, 2 * masks :].sigmoid()
        return self._convolve(input, offset, mask)


def _forward_fake(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
) -> Tensor:
    torch._check(input.dim() == 4, lambda: "deform_conv2d: input must have shape (N, C, H, W)")
    torch._check(weight.dim() == 4, lambda: "deform_conv2d: weight must have 4 dimensions")
    torch._check(offset.dim() == 4, lambda: "deform_conv2d: offset must have 4 dimensions")
    _, _, height, width = input.shape
    kernel_h, kernel_w = weight.shape[2:]
    shape = (
        input.shape[0],
        weight.shape[0],
        (height + 2 * pad_h - dilation_h * (kernel_h - 1) - 1) // stride_h + 1,
        (width + 2 * pad_w - dilation_w * (kernel_w - 1) - 1) // stride_w + 1,
    )
    return torch.empty(
        shape,
        dtype=input.dtype,
        device=input.device,
        memory_format=memory_format(is_channels_last(input)),
    )


def _backward_fake(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    need_input: bool,
    need_weight: bool,
    need_offset: bool,
    need_mask: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def result(needed: bool, like: Tensor | None) -> Tensor:
        return (offset if like is None else like).new_empty(
            like.shape if needed and like is not None else (0,)
        )

    grad_input = result(False, input)
    if need_input:
        grad_input = torch.empty(
            input.shape,
            dtype=input.dtype,
            device=input.device,
            memory_format=memory_format(is_channels_last(input)),
        )
    return (
        grad_input,
        result(need_weight, weight),
        result(need_offset, offset),
        result(need_mask, mask),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, offset, mask, _, *ctx.steps = inputs
    ctx.save_for_backward(input, weight, offset, mask)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight, offset, mask = ctx.saved_tensors
    need_input, need_weight, need_offset, need_mask, need_bias = ctx.needs_input_grad[:5]
    needed = (need_input, need_weight, need_offset, need_mask)
    grads: list[Tensor | None] = [None] * 4
    if any(needed):
        found = torch.ops.d2proj._deform_conv2d_backward(
            grad,
            input,
            weight,
            offset,
            mask,
            *ctx.steps,
            *needed,
            torch.are_deterministic_algorithms_enabled(),
        )
        grads = [g if need else None for g, need in zip(found, needed, strict=True)]
    return *grads, grad.sum((0, 2, 3)) if need_bias else None, *[None] * 6


def _autocast_rule(device_type: str) -> Callable[..., Tensor]:
    """As ``conv2d`` under autocast: what is multiplied goes down, where it is read does not."""
    op = torch.ops.d2proj.deform_conv2d.default

    def call(
        input: Tensor,
        weight: Tensor,
        offset: Tensor,
        mask: Tensor | None,
        bias: Tensor | None,
        *steps: int,
    ) -> Tensor:
        dtype = torch.get_autocast_dtype(device_type)

        def lowered(t: Tensor | None) -> Tensor | None:
            return t if t is None or t.dtype == torch.float64 else t.to(dtype)

        with torch.autocast(device_type, enabled=False):
            return op(lowered(input), lowered(weight), offset, mask, lowered(bias), *steps)

    return call


if _ext.AVAILABLE:
    register_differentiable(
        "deform_conv2d",
        forward_fake=_forward_fake,
        backward_fake=_backward_fake,
        setup_context=_setup_context,
        backward=_backward,
    )
    _common._LIBRARY.impl("deform_conv2d", _autocast_rule("cpu"), "AutocastCPU")
    _common._LIBRARY.impl("deform_conv2d", _autocast_rule("cuda"), "AutocastCUDA")
