"""deform_roi_pool and deform_ps_roi_pool, 7 x 7 bins.

No other CPU kernel of these ops exists. The peer is torchvision's op without offsets that reads as
many samples a bin: roi_align, or ps_roi_align with 2 x 2 samples of DCN's 4 x 4.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torchvision
from torch import Tensor

from benchmarks.op_cases.common import (
    Case,
    Check,
    MemoryCase,
    Timing,
    difference,
    no_synchronisation,
    random_rois,
    size_of,
)
from d2proj import ops
from d2proj.utils import testing
from d2proj.utils.testing import FLOATING, TOLERANCE, in_layout


def backward(output: Tensor, wanted: list[Tensor], grad: Tensor) -> Any:
    """The gradients, the graph kept for the next call."""
    return torch.autograd.grad(output, wanted, grad, retain_graph=True)


def cpu_cases(quick: bool) -> Iterator[Case]:
    """Many and few boxes, both layouts; backward is of map and offsets together."""
    shapes = [  # boxes, images, channels, side of the map, layout
        (512, 2, 256, 100, "nchw"),
        (512, 2, 256, 100, "nhwc"),
        (1000, 1, 64, 50, "nchw"),
        (10, 1, 8, 50, "nchw"),
    ]
    for k, n, c, side, layout in shapes[:1] if quick else shapes:
        input = in_layout(torch.randn(n, c, side, side), layout).requires_grad_()
        rois = random_rois(k, n, side * 8)
        offset = torch.randn(k, 2, 7, 7).requires_grad_()
        name = f"{k} boxes, {n}x{c}x{side}x{side} {layout}"
        ours = ops.deform_roi_pool(input, rois, offset, 7, 0.125, 2)
        peer = torchvision.ops.roi_align(input, rois, 7, 0.125, 2, True)
        grad = torch.randn_like(ours)
        plain, shifts = input.detach(), offset.detach()
        yield Case(
            f"deform_roi_pool forward: {name}",
            lambda a=(plain, rois, shifts, 7, 0.125, 2): ops.deform_roi_pool(*a),
            lambda a=(plain, rois, 7, 0.125, 2, True): torchvision.ops.roi_align(*a),
            "torchvision roi_align",
            size_of(input, ours),
        )
        yield Case(
            f"deform_roi_pool backward: {name}",
            lambda a=(ours, [input, offset], grad): backward(*a),
            lambda a=(peer, [input], grad): backward(*a),
            "torchvision roi_align",
            2 * size_of(input) + size_of(grad),
        )
    for k, classes, side in (
        [(300, 21, 50)] if quick else [(300, 21, 50), (300, 81, 50), (10, 4, 50)]
    ):
        input = torch.randn(1, classes * 49, side, side).requires_grad_()
        rois = random_rois(k, 1, side * 16)
        offset = torch.randn(k, 2, 7, 7).requires_grad_()
        name = f"{k} boxes, {classes} x 49 x {side} x {side}"
        ours = ops.deform_ps_roi_pool(input, rois, offset, 7, 0.0625)
        peer = torchvision.ops.ps_roi_align(input, rois, 7, 0.0625, 4)
        grad = torch.randn_like(ours)
        plain, shifts = input.detach(), offset.detach()
        yield Case(
            f"deform_ps_roi_pool forward: {name}",
            lambda a=(plain, rois, shifts, 7, 0.0625): ops.deform_ps_roi_pool(*a),
            lambda a=(plain, rois, 7, 0.0625, 4): torchvision.ops.ps_roi_align(*a),
            "torchvision ps_roi_align",
            size_of(input, ours),
        )
        yield Case(
            f"deform_ps_roi_pool backward: {name}",
            lambda a=(ours, [input, offset], grad): backward(*a),
            lambda a=(peer, [input], grad): backward(*a),
            "torchvision ps_roi_align",
            2 * size_of(input) + size_of(grad),
        )


def memory_cases() -> Iterator[MemoryCase]:
    """The plan (6 taps a bin, 8 bytes each, 12 backward); 64 bytes a touched pixel and thread."""
    input, rois = torch.randn(2, 64, 100, 100), random_rois(512, 2, 800)
    offset = torch.randn(512, 2, 7, 7)
    bound = 512 * 49 * 140 + torch.get_num_threads() * 64 * 100 * 100 + (1 << 20)
    args = (0.125, 7, 7, 2, 0.1)
    output = torch.ops.d2proj.deform_roi_pool(input, rois, offset, *args)
    yield MemoryCase(
        "deform_roi_pool forward",
        lambda: torch.ops.d2proj.deform_roi_pool(input, rois, offset, *args),
        bound,
    )
    yield MemoryCase(
        "deform_roi_pool backward",
        lambda: torch.ops.d2proj._deform_roi_pool_backward(
            output, input, rois, offset, *args, False, False
        ),
        bound,
    )


def gpu_checks() -> Iterator[Check]:
    """Forward, backward, deterministic backward of both ops, against the CPU kernels."""
    g = torch.Generator().manual_seed(0)
    for dtype in FLOATING:
        for layout in ("nchw", "nhwc", "sliced"):
            for channels in (1, 21, 64):
                rois = testing.random_rois(60, 3, 70, generator=g)
                plain = torch.randn(3, channels, 25, 33, generator=g).to(dtype)
                plain_offset = torch.randn(60, 2, 7, 3, generator=g) * 2
                sensitive = torch.randn(3, channels * 6, 25, 33, generator=g).to(dtype)
                parts = torch.randn(60, 2, 2, 4, generator=g) * 2
                for name, input, offset, options in (
                    ("deform_roi_pool", plain, plain_offset, (0.5, 7, 3, 2, 0.1)),
                    ("deform_roi_pool", plain, plain_offset, (0.5, 7, 3, 0, 0.1)),
                    ("deform_ps_roi_pool", sensitive, parts, (0.5, 4, 3, 2, 3, 2, 4, 3, 0.1)),
                ):
                    forward = getattr(torch.ops.d2proj, name)
                    back = getattr(torch.ops.d2proj, f"_{name}_backward")
                    label = f"{name} {str(dtype)[6:]} {layout} C={channels} {options}"
                    input = in_layout(input, layout)
                    on_device = (in_layout(input.cuda(), layout), rois.cuda(), offset.cuda())
                    cpu = forward(input, rois, offset, *options)
                    with no_synchronisation():
                        got = forward(*on_device, *options)
                    yield label, difference(got, cpu), 4 * TOLERANCE[dtype]
                    grad = torch.randn(cpu.shape, generator=g).to(dtype)
                    device_grad = grad.cuda()
                    rest = (*options, layout == "nhwc")
                    expected = back(grad, input, rois, offset, *rest, False)
                    # Sums of many terms: the rounding grows with them.
                    tolerance = 200 * TOLERANCE[dtype]
                    with no_synchronisation():
                        got = back(device_grad, *on_device, *rest, False)
                        fixed = back(device_grad, *on_device, *rest, True)
                        again = back(device_grad, *on_device, *rest, True)
                    for i, what in enumerate(("input", "offset")):
                        yield f"{label} grad {what}", difference(got[i], expected[i]), tolerance
                        yield f"{label} fixed {what}", difference(fixed[i], expected[i]), tolerance
                        yield f"{label} twice {what}", difference(fixed[i], again[i]), 0.0


def gpu_times() -> Iterator[Timing]:
    """Against torchvision's op without offsets."""
    g = torch.Generator().manual_seed(0)
    for layout in ("nchw", "nhwc"):
        input = in_layout(
            torch.randn(2, 256, 100, 100, generator=g).cuda(), layout
        ).requires_grad_()
        rois, offset = random_rois(512, 2, 800).cuda(), torch.randn(512, 2, 7, 7).cuda()
        offset.requires_grad_()
        ours = ops.deform_roi_pool(input, rois, offset, 7, 0.125, 2)
        peer = torchvision.ops.roi_align(input, rois, 7, 0.125, 2, True)
        grad = torch.randn_like(ours)
        moved = size_of(input, ours)
        yield (
            f"deform_roi_pool {layout} forward",
            lambda a=(input, rois, offset, 7, 0.125, 2): ops.deform_roi_pool(*a),
            lambda a=(input, rois, 7, 0.125, 2, True): torchvision.ops.roi_align(*a),
            moved,
        )
        yield (
            f"deform_roi_pool {layout} backward",
            lambda a=(ours, [input, offset], grad): backward(*a),
            lambda a=(peer, [input], grad): backward(*a),
            moved + size_of(input),
        )
