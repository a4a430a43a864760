"""Deformable RoI pooling (Dai et al., Deformable Convolutional Networks, ICCV 2017, section 2.2).

``deform_roi_pool`` is mmcv's form (RoIAlign whose bins move), ``deform_ps_roi_pool`` the paper's
kernel, position-sensitive or not. The modulated form is of Deformable ConvNets v2 (CVPR 2019).
"""

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


def deform_roi_pool(
    input: Tensor,
    rois: BoxesLike,
    offset: Tensor | None,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> Tensor:
    """RoIAlign (``aligned=True``) whose bins are moved, each by an offset of its own.

    Signature and semantics are ``mmcv.ops.deform_roi_pool``'s.

    Args:
        input: (N, C, H, W), float16, bfloat16, float32 or float64; NCHW or channels-last in memory.
        rois: (K, 5) of image index, x1, y1, x2, y2, or a (K_i, 4) for each image; float32 or
            float64 (half is raised).
        offset: (K, 2, height, width), any floating dtype: x and y of each bin's shift, in units of
            ``gamma`` times the box's sides. None (or ``mmcv``'s empty 1-D tensor): no shifts, which
            is exactly :func:`d2proj.ops.roi_align`.
        output_size: Height and width of the result, or one number for both.
        spatial_scale: Feature cells per box unit, 1/4 for a map of stride 4.
        sampling_ratio: Samples per bin along an axis; 0 or less: as many as the bin has cells.
        gamma: The scale of the offsets.

    Returns:
        (K, C, height, width) in the dtype and memory format of ``input``. A bin whose box or offset
        is not finite is zero.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype or device, or, on the CPU, a box's
            image index is out of range (on CUDA such a box pools to zero).
    """
    _ext.require()
    height, width = pair(output_size, "output_size")
    boxes = to_rois("deform_roi_pool", rois)
    if _is_absent(offset):
        return torch.ops.d2proj.roi_align(
            input, boxes, spatial_scale, height, width, sampling_ratio, True
        )
    return torch.ops.d2proj.deform_roi_pool(
        input, boxes, offset, spatial_scale, height, width, sampling_ratio, gamma
    )


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
    """Deformable position-sensitive RoI pooling, as the paper's own kernel computes it.

    Args:
        input: (N, C * gh * gw, H, W) with ``group_size`` (gh, gw): output channel ``c`` reads, in
            cell (i, j), channel ``(c * gh + i) * gw + j``, as in ``torchvision.ops.ps_roi_pool``.
        rois: (K, 5) of image index, x1, y1, x2, y2, or a (K_i, 4) for each image. Corners are
            rounded to whole units, and x2, y2 are inside the box.
        offset: (K, 2 * classes, *part_size), any floating dtype: for each class x, then y of each
            part's shift, in units of ``gamma`` times the box's sides. The C output channels are
            divided among the classes evenly, in order. None (or an empty 1-D tensor): no shifts.
        output_size: Bins along height and width, or one number for both.
        spatial_scale: Feature cells per box unit.
        part_size: The grid of the offsets; None: ``output_size``.
        sample_per_part: Samples per bin along an axis.
        gamma: The scale of the offsets (``trans_std`` in the source).
        group_size: The position-sensitive grid; None: ``output_size``. 1: an ordinary map.

    Returns:
        (K, C, height, width) in the dtype and memory format of ``input``. A bin without a sample
        inside the map, or whose box or offset is not finite, is zero.

    Raises:
        RuntimeError: As for :func:`deform_roi_pool`.
    """
    _ext.require()
    boxes = to_rois("deform_ps_roi_pool", rois)
    pooled = pair(output_size, "output_size")
    part = pooled if part_size is None else pair(part_size, "part_size")
    group = pooled if group_size is None else pair(group_size, "group_size")
    if _is_absent(offset):
        offset = boxes.new_zeros(boxes.shape[0], 2, *part)
    return torch.ops.d2proj.deform_ps_roi_pool(
        input, boxes, offset, spatial_scale, *pooled, *group, *part, sample_per_part, gamma
    )


def _is_absent(offset: Tensor | None) -> bool:
    return offset is None or (offset.dim() == 1 and offset.shape[0] == 0)


class DeformRoIPool(nn.Module):
    """See :func:`deform_roi_pool`."""

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
    ) -> None:
        super().__init__()
        self.output_size = pair(output_size, "output_size")
        self.spatial_scale = float(spatial_scale)
        self.sampling_ratio = int(sampling_ratio)
        self.gamma = float(gamma)

    def _pool(self, input: Tensor, rois: BoxesLike, offset: Tensor | None) -> Tensor:
        return deform_roi_pool(
            input,
            rois,
            offset,
            self.output_size,
            self.spatial_scale,
            self.sampling_ratio,
            self.gamma,
        )

    def forward(self, input: Tensor, rois: BoxesLike, offset: Tensor | None = None) -> Tensor:
        """Pool ``rois`` of ``input`` (see :func:`deform_roi_pool`)."""
        return self._pool(input, rois, offset)

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, gamma={self.gamma}"
        )


def _zero(linear: nn.Module) -> None:
    assert isinstance(linear, nn.Linear)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)


class DeformRoIPoolPack(DeformRoIPool):
    """:class:`DeformRoIPool` that predicts its offsets from what the unmoved bins hold.

    Structure and state-dict keys are mmcv's ``DeformRoIPoolPack``'s. The last layer is zero at
    first, so that training starts from RoIAlign.

    Args:
        output_size: Height and width of the result, or one number for both.
        output_channels: Channels of the map.
        deform_fc_channels: Width of the hidden layers.
        spatial_scale: See :func:`deform_roi_pool`, as are the rest.
        sampling_ratio: Samples per bin along an axis.
        gamma: The scale of the offsets.
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        output_channels: int,
        deform_fc_channels: int = 1024,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
    ) -> None:
        super().__init__(output_size, spatial_scale, sampling_ratio, gamma)
        self.output_channels = output_channels
        self.deform_fc_channels = deform_fc_channels
        bins = self.output_size[0] * self.output_size[1]
        self.offset_fc = nn.Sequential(
            nn.Linear(bins * output_channels, deform_fc_channels),
            nn.ReLU(inplace=True),
            nn.Linear(deform_fc_channels, deform_fc_channels),
            nn.ReLU(inplace=True),
            nn.Linear(deform_fc_channels, bins * 2),
        )
        _zero(self.offset_fc[-1])

    def _predict(self, input: Tensor, rois: BoxesLike) -> tuple[Tensor, Tensor]:
        """The flattened unmoved bins, (K, C * height * width), and the offsets."""
        if input.dim() != 4 or input.shape[1] != self.output_channels:
            raise RuntimeError(
                f"{type(self).__name__}: input must have shape (N, {self.output_channels}, H, W), "
                f"got {tuple(input.shape)}"
            )
        unmoved = self._pool(input, rois, None).flatten(1)
        return unmoved, self.offset_fc(unmoved).view(-1, 2, *self.output_size)

    def forward(self, input: Tensor, rois: BoxesLike) -> Tensor:  # type: ignore[override]
        """Pool ``rois`` of ``input``."""
        _, offset = self._predict(input, rois)
        return self._pool(input, rois, offset)


class ModulatedDeformRoIPoolPack(DeformRoIPoolPack):
    """:class:`DeformRoIPoolPack` whose bins are also weighted, by a sigmoid of their own.

    Structure and state-dict keys are mmcv's ``ModulatedDeformRoIPoolPack``'s; every weight is 1/2
    at first.
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        output_channels: int,
        deform_fc_channels: int = 1024,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
    ) -> None:
        super().__init__(
            output_size, output_channels, deform_fc_channels, spatial_scale, sampling_ratio, gamma
        )
        bins = self.output_size[0] * self.output_size[1]
        self.mask_fc = nn.Sequential(
            nn.Linear(bins * output_channels, deform_fc_channels),
            nn.ReLU(inplace=True),
            nn.Linear(deform_fc_channels, bins),
            nn.Sigmoid(),
        )
        _zero(self.mask_fc[2])

    def forward(self, input: Tensor, rois: BoxesLike) -> Tensor:  # type: ignore[override]
        """Pool ``rois`` of ``input``."""
        unmoved, offset = self._predict(input, rois)
        mask = self.mask_fc(unmoved).view(-1, 1, *self.output_size)
        return self._pool(input, rois, offset) * mask


#: The name of ``ModulatedDeformRoIPoolPack`` in d2proj's list of ops.
ModulatedDeformRoIPool = ModulatedDeformRoIPoolPack


class DeformPSRoIPool(nn.Module):
    """See :func:`deform_ps_roi_pool`."""

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float = 1.0,
        part_size: int | tuple[int, int] | None = None,
        sample_per_part: int = 4,
        gamma: float = 0.1,
        group_size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.part_size = part_size
        self.sample_per_part = sample_per_part
        self.gamma = gamma
        self.group_size = group_size

    def forward(self, input: Tensor, rois: BoxesLike, offset: Tensor | None = None) -> Tensor:
        """Pool ``rois`` of ``input`` (see :func:`deform_ps_roi_pool`)."""
        return deform_ps_roi_pool(
            input,
            rois,
            offset,
            self.output_size,
            self.spatial_scale,
            self.part_size,
            self.sample_per_part,
            self.gamma,
            self.group_size,
        )

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"part_size={self.part_size}, sample_per_part={self.sample_per_part}, "
            f"gamma={self.gamma}, group_size={self.group_size}"
        )


def _pooled_like(input: Tensor, *shape: int | torch.SymInt) -> Tensor:
    return torch.empty(
        shape,
        dtype=input.dtype,
        device=input.device,
        memory_format=memory_format(is_channels_last(input)),
    )


def _check_fake(op: str, input: Tensor, rois: Tensor, offset: Tensor) -> None:
    torch._check(input.dim() == 4, lambda: f"{op}: input must have shape (N, C, H, W)")
    torch._check(rois.dim() == 2, lambda: f"{op}: rois must have shape (K, 5)")
    torch._check(offset.dim() == 4, lambda: f"{op}: offset must have four dimensions")


def _forward_fake(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    gamma: float,
) -> Tensor:
    _check_fake("deform_roi_pool", input, rois, offset)
    return _pooled_like(input, rois.shape[0], input.shape[1], pooled_height, pooled_width)


def _ps_forward_fake(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    group_height: int,
    group_width: int,
    *options: Any,
) -> Tensor:
    _check_fake("deform_ps_roi_pool", input, rois, offset)
    channels = input.shape[1] // (group_height * group_width)
    return _pooled_like(input, rois.shape[0], channels, pooled_height, pooled_width)


def _backward_fake(
    grad: Tensor, input: Tensor, rois: Tensor, offset: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    channels_last = options[-2]
    grad_input = torch.empty(
        input.shape,
        dtype=input.dtype,
        device=input.device,
        memory_format=memory_format(channels_last),
    )
    return grad_input, torch.empty(offset.shape, dtype=offset.dtype, device=offset.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, rois, offset, *ctx.options = inputs
    ctx.save_for_backward(input, rois, offset)


def _backward_of(name: str) -> Any:
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, rois, offset = ctx.saved_tensors
        grad_input, grad_offset = getattr(torch.ops.d2proj, f"_{name}_backward")(
            grad,
            input,
            rois,
            offset,
            *ctx.options,
            is_channels_last(input),
            torch.are_deterministic_algorithms_enabled(),
        )
        return grad_input, None, grad_offset, *(None for _ in ctx.options)

    return backward


if _ext.AVAILABLE:
    for _name, _fake in (
        ("deform_roi_pool", _forward_fake),
        ("deform_ps_roi_pool", _ps_forward_fake),
    ):
        register_differentiable(
            _name,
            forward_fake=_fake,
            backward_fake=_backward_fake,
            setup_context=_setup_context,
            backward=_backward_of(_name),
        )
        register_autocast(_name, box_arguments=[1])
