"""Corner pooling (Law and Deng, CornerNet, ECCV 2018, section 3.3): functions, modules."""

from typing import Any

import torch
from torch import Tensor, nn

from d2proj.ops import _ext
from d2proj.ops._common import (
    is_channels_last,
    memory_format,
    register_autocast,
    register_differentiable,
)
from d2proj.ops._direct import direct

#: Direction -> the dimension that is scanned, and whether the scan starts at its end.
_SCANS = {"top": (2, True), "bottom": (2, False), "left": (3, True), "right": (3, False)}
_CORNERS = {"top_left": True, "bottom_right": False}


def corner_pool(x: Tensor, direction: str) -> Tensor:
    """Running maximum of a map along an axis.

    ``top``: each cell gets the maximum of itself and all cells below it in its column; ``bottom``:
    of itself and all above; ``left``: all to its right in its row; ``right``: all to its left.

    Of equal values the one furthest from the cell holds the maximum (a scan from the far edge
    replaces only by what is greater, as CornerNet's code does), and the gradient goes there alone.
    A NaN spreads to every cell that sees it.

    Args:
        x: (N, C, H, W), float16, bfloat16, float32 or float64; NCHW or channels-last in memory.
        direction: ``top``, ``bottom``, ``left`` or ``right``.

    Returns:
        (N, C, H, W) in the dtype and memory format of ``x``.

    Raises:
        RuntimeError: ``x`` has the wrong shape or dtype.
        ValueError: ``direction`` is another word.
    """
    if not _ext.AVAILABLE:
        _ext.require()
    dim, from_end = _look_up(_SCANS, "corner_pool: direction", direction)
    return _pool(x, dim, from_end)


def corner_pool_pair(x_a: Tensor, x_b: Tensor, corner: str) -> Tensor:
    """What a corner of CornerNet sums, in one pass and without the two maps between.

    Args:
        x_a: (N, C, H, W), pooled along its columns; dtypes and layouts as in :func:`corner_pool`.
        x_b: As ``x_a``, pooled along its rows.
        corner: ``top_left``: top pooling of ``x_a`` plus left pooling of ``x_b``;
            ``bottom_right``: bottom plus right.

    Returns:
        (N, C, H, W) in the dtype and memory format of ``x_a``.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype or device.
        ValueError: ``corner`` is another word.
    """
    if not _ext.AVAILABLE:
        _ext.require()
    from_end = _look_up(_CORNERS, "corner_pool_pair: corner", corner)
    return _pool_pair(x_a, x_b, from_end)


def _look_up(table: dict[str, Any], name: str, word: str) -> Any:
    if word not in table:
        raise ValueError(f"{name} must be one of {', '.join(table)}, got {word!r}")
    return table[word]


class CornerPool(nn.Module):
    """See :func:`corner_pool`; the argument's name is mmcv's.

    Args:
        mode: ``top``, ``bottom``, ``left`` or ``right``.
    """

    def __init__(self, mode: str) -> None:
        super().__init__()
        _look_up(_SCANS, "CornerPool: mode", mode)
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        """Pool ``x`` (see :func:`corner_pool`)."""
        return corner_pool(x, self.mode)

    def extra_repr(self) -> str:
        """The argument, for ``repr``."""
        return f"mode={self.mode!r}"


class TopPool(CornerPool):
    """Each cell and all below it; see :func:`corner_pool`."""

    def __init__(self) -> None:
        super().__init__("top")


class BottomPool(CornerPool):
    """Each cell and all above it; see :func:`corner_pool`."""

    def __init__(self) -> None:
        super().__init__("bottom")


class LeftPool(CornerPool):
    """Each cell and all to its right; see :func:`corner_pool`."""

    def __init__(self) -> None:
        super().__init__("left")


class RightPool(CornerPool):
    """Each cell and all to its left; see :func:`corner_pool`."""

    def __init__(self) -> None:
        super().__init__("right")


def _empty_like(x: Tensor) -> Tensor:
    torch._check(x.dim() == 4, lambda: f"corner_pool: x must be (N, C, H, W), got {tuple(x.shape)}")
    return torch.empty_like(x, memory_format=memory_format(is_channels_last(x)))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.dim, ctx.from_end = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (x,) = ctx.saved_tensors
    return (
        torch.ops.d2proj._corner_pool_backward.default(grad, x, ctx.dim, ctx.from_end),
        None,
        None,
    )


def _pair_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x_a, x_b, ctx.from_end = inputs
    ctx.save_for_backward(x_a, x_b)


def _pair_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x_a, x_b = ctx.saved_tensors
    if not ctx.needs_input_grad[1]:
        return (
            torch.ops.d2proj._corner_pool_backward.default(grad, x_a, 2, ctx.from_end),
            None,
            None,
        )
    if not ctx.needs_input_grad[0]:
        return (
            None,
            torch.ops.d2proj._corner_pool_backward.default(grad, x_b, 3, ctx.from_end),
            None,
        )
    return *torch.ops.d2proj._corner_pool_pair_backward.default(grad, x_a, x_b, ctx.from_end), None


if _ext.AVAILABLE:
    register_differentiable(
        "corner_pool",
        forward_fake=lambda input, dim, from_end: _empty_like(input),
        backward_fake=lambda grad, input, dim, from_end: _empty_like(input),
        setup_context=_setup_context,
        backward=_backward,
    )
    register_differentiable(
        "corner_pool_pair",
        forward_fake=lambda x_a, x_b, from_end: _empty_like(x_a),
        # The kernel gives both gradients the layout of the first map.
        backward_fake=lambda grad, x_a, x_b, from_end: (_empty_like(x_a), _empty_like(x_a)),
        setup_context=_pair_setup_context,
        backward=_pair_backward,
    )
    register_autocast("corner_pool", box_arguments=[])
    register_autocast("corner_pool_pair", box_arguments=[])
    _pool = direct(torch.ops.d2proj.corner_pool.default, _setup_context, _backward, tensors=1)
    _pool_pair = direct(
        torch.ops.d2proj.corner_pool_pair.default, _pair_setup_context, _pair_backward
    )
