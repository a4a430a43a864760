"""ps_roi_pool, ps_roi_align: 7 x 7 bins, stride 16 (R-FCN), against torchvision."""

from collections.abc import Iterator

import torch
import torchvision

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

NAMES = {"ps_roi_pool": (), "ps_roi_align": (2,)}  # and the sampling ratio


def cpu_cases(quick: bool) -> Iterator[Case]:
    """R-FCN's maps for VOC, COCO and one class; Light-Head's 10 channels; small ones."""
    shapes = [  # boxes, channels of the result, height and width of the map, layout, dtype
        (300, 21, 38, 63, "nchw", torch.float32),
        (300, 21, 38, 63, "nhwc", torch.float32),
        (300, 21, 38, 63, "nchw", torch.float64),
        (300, 81, 38, 63, "nchw", torch.float32),
        (300, 1, 38, 63, "nchw", torch.float32),
        (300, 4, 38, 63, "nchw", torch.float32),
        (1000, 10, 50, 50, "nchw", torch.float32),
        (10, 10, 50, 50, "nchw", torch.float32),
        (1, 1, 20, 20, "nchw", torch.float32),
    ]
    for k, c, height, width, layout, dtype in shapes[:1] if quick else shapes:
        input = in_layout(torch.randn(1, c * 49, height, width, dtype=dtype), layout)
        rois = random_rois(k, 1, height * 16).to(dtype)
        for name, ratio in NAMES.items():
            text = f"{k} boxes, {c}*49x{height}x{width} {layout} {str(dtype)[6:]}"
            op, peer_op = getattr(ops, name), getattr(torchvision.ops, name)
            both = (getattr(torch.ops, where) for where in ("d2proj", "torchvision"))
            ours, peer = (getattr(each, f"_{name}_backward") for each in both)
            args = (input, rois, 7, 1 / 16, *ratio)
            output = op(*args)
            yield Case(
                f"{name} forward: {text}",
                lambda f=op, a=args: f(*a),
                lambda f=peer_op, a=args: f(*a),
                "torchvision",
                size_of(input, output),
            )
            grad = torch.randn_like(output)
            mapping = torch.arange(c * 49, dtype=torch.int32).view(1, c, 7, 7).expand(k, -1, 7, 7)
            mapping = mapping.contiguous()
            sizes, last = (1 / 16, 7, 7), layout == "nhwc"
            yield Case(
                f"{name} backward: {text}",
                lambda f=ours, a=(grad, rois, *sizes, *input.shape, *ratio, last, False): f(*a),
                lambda f=peer, a=(grad, rois, mapping, *sizes, *ratio, *input.shape): f(*a),
                "torchvision",
                size_of(input, grad),
            )


def memory_cases() -> Iterator[MemoryCase]:
    """The plan and, per thread, a buffer of 64 bytes a pixel of a plane."""
    input, rois = torch.randn(1, 21 * 49, 38, 63), random_rois(300, 1, 600)
    bound = 300 * 2000 + torch.get_num_threads() * 64 * 38 * 63 + (1 << 17)
    for name, ratio in NAMES.items():
        args, op = (input, rois, 7, 1 / 16, *ratio), getattr(ops, name)
        backward = getattr(torch.ops.d2proj, f"_{name}_backward")
        yield MemoryCase(f"{name} forward", lambda f=op, a=args: f(*a), bound)
        output = op(*args)
        yield MemoryCase(
            f"{name} backward",
            lambda f=backward, g=output, r=ratio: f(
                g, rois, 1 / 16, 7, 7, *input.shape, *r, False, False
            ),
            bound,
        )


def gpu_checks() -> Iterator[Check]:
    """Forward, backward, deterministic backward, against the CPU kernel."""
    g = torch.Generator().manual_seed(0)
    for name, ratio in NAMES.items():
        op = getattr(torch.ops.d2proj, name)
        backward = getattr(torch.ops.d2proj, f"_{name}_backward")
        for dtype in FLOATING:
            for layout in ("nchw", "nhwc", "sliced"):
                for channels in (1, 21):
                    options = (0.5, 3, 2)
                    input = torch.randn(3, channels * 6, 25, 33, generator=g).to(dtype)
                    rois = testing.random_rois(100, 3, 70, generator=g)
                    input = in_layout(input, layout)
                    device_input, device_rois = in_layout(input.cuda(), layout), rois.cuda()
                    text = f"{name} {str(dtype)[6:]} {layout} C={channels}"
                    cpu = op(input, rois, *options, *ratio)
                    with no_synchronisation():
                        got = op(device_input, device_rois, *options, *ratio)
                    yield text, difference(got, cpu), 4 * TOLERANCE[dtype]
                    grad = torch.randn(cpu.shape, generator=g).to(dtype)
                    rest = (*options, *input.shape, *ratio, layout == "nhwc")
                    expected = backward(grad, rois, *rest, False)
                    device_grad = grad.cuda()
                    with no_synchronisation():
                        sums = backward(device_grad, device_rois, *rest, False)
                        fixed = backward(device_grad, device_rois, *rest, True)
                        again = backward(device_grad, device_rois, *rest, True)
                    # Sums of many terms: the rounding grows with them.
                    tolerance = 40 * TOLERANCE[dtype]
                    yield f"{text} backward", difference(sums, expected), tolerance
                    yield f"{text} backward, deterministic", difference(fixed, expected), tolerance
                    yield f"{text} backward, deterministic, twice", difference(fixed, again), 0.0


def gpu_times() -> Iterator[Timing]:
    """R-FCN's map for VOC, both layouts."""
    g = torch.Generator().manual_seed(0)
    for layout in ("nchw", "nhwc"):
        input = in_layout(torch.randn(1, 21 * 49, 38, 63, generator=g).cuda(), layout)
        rois = random_rois(300, 1, 600).cuda()
        for name, ratio in NAMES.items():
            args = (input, rois, 7, 1 / 16, *ratio)
            op, peer = getattr(ops, name), getattr(torchvision.ops, name)
            output = op(*args)
            yield (
                f"{name} {layout} forward",
                lambda f=op, a=args: f(*a),
                lambda f=peer, a=args: f(*a),
                size_of(input, output),
            )
