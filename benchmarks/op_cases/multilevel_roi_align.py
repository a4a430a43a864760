"""multilevel_roi_align: FPN's P2 to P5, 7 x 7 bins, against torchvision."""

from collections.abc import Callable, Iterator

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
from benchmarks.op_cases.roi_align import touched
from d2proj import ops
from d2proj.ops.multilevel_roi_align import REDUCTIONS
from d2proj.utils.testing import FLOATING, TOLERANCE, in_layout

SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]


def pyramid(
    n: int, c: int, side: int, layout: str, dtype: torch.dtype, device: str = "cpu"
) -> list[Tensor]:
    """Maps of an image of this side, one per scale."""
    sizes = [-(-side // round(1 / scale)) for scale in SCALES]
    return [in_layout(torch.randn(n, c, s, s).to(device, dtype), layout) for s in sizes]


def peer(maps: list[Tensor], rois: Tensor, side: int, reduce: str) -> Callable[[], Tensor]:
    """torchvision's MultiScaleRoIAlign, or its roi_align level by level."""
    if reduce == "assigned":
        module = torchvision.ops.MultiScaleRoIAlign(list("0123"), 7, 2)
        named = dict(zip("0123", maps, strict=True))
        boxes = [rois[rois[:, 0] == i, 1:] for i in range(maps[0].shape[0])]
        return lambda: module(named, boxes, [(side, side)] * maps[0].shape[0])

    def by_level() -> Tensor:
        each = [
            torchvision.ops.roi_align(m, rois, 7, scale, 2)
            for m, scale in zip(maps, SCALES, strict=True)
        ]
        stacked = torch.stack(each, 1)
        return {"none": lambda x: x, "sum": lambda x: x.sum(1), "max": lambda x: x.amax(1)}[reduce](
            stacked
        )

    return by_level


def ours(maps: list[Tensor], rois: Tensor, reduce: str) -> Callable[[], Tensor]:
    """The op with torchvision's conventions; boxes as a list, as MultiScaleRoIAlign takes them."""
    boxes = [rois[rois[:, 0] == i, 1:] for i in range(maps[0].shape[0])]
    return lambda: ops.multilevel_roi_align(maps, boxes, 7, SCALES, 2, False, reduce=reduce)


def cpu_cases(quick: bool) -> Iterator[Case]:
    """Forward, and forward and backward through autograd on both sides."""
    shapes = [  # boxes, images, channels, side of the image, layout, dtype, reduce
        (1000, 2, 256, 800, "nchw", torch.float32, "assigned"),
        (1000, 2, 256, 800, "nhwc", torch.float32, "assigned"),
        (1000, 2, 256, 800, "nchw", torch.float64, "assigned"),
        (1000, 2, 256, 800, "nchw", torch.float32, "max"),
        (1000, 2, 256, 800, "nchw", torch.float32, "sum"),
        (1000, 2, 256, 800, "nchw", torch.float32, "none"),
        (100, 1, 256, 800, "nchw", torch.float32, "assigned"),
        (10, 1, 256, 800, "nchw", torch.float32, "assigned"),
        (10, 1, 8, 200, "nchw", torch.float32, "assigned"),
    ]
    for k, n, c, side, layout, dtype, reduce in shapes[:1] if quick else shapes:
        maps = pyramid(n, c, side, layout, dtype)
        rois = random_rois(k, n, side, 8, 0.9 * side).to(dtype)
        rois = rois[rois[:, 0].argsort(stable=True)]
        our, their = ours(maps, rois, reduce), peer(maps, rois, side, reduce)
        name = f"{k} boxes, {n}x{c} of {side}x{side} {layout} {str(dtype)[6:]} {reduce}"
        read = sum(touched(m, rois, s) for m, s in zip(maps, SCALES, strict=True))
        moved = (min(read, size_of(*maps)) if reduce != "assigned" else read // 4) + size_of(our())
        yield Case(f"multilevel_roi_align forward: {name}", our, their, "torchvision", moved)
        leaves = [m.detach().clone(memory_format=torch.preserve_format) for m in maps]
        for leaf in leaves:
            leaf.requires_grad_()
        our, their = ours(leaves, rois, reduce), peer(leaves, rois, side, reduce)
        grad = torch.randn_like(our())
        yield Case(
            f"multilevel_roi_align forward and backward: {name}",
            lambda f=our, x=leaves, g=grad: torch.autograd.grad(f(), x, g),
            lambda f=their, x=leaves, g=grad: torch.autograd.grad(f(), x, g),
            "torchvision",
            moved + size_of(*maps, grad),
        )


def memory_cases() -> Iterator[MemoryCase]:
    """The plan (16 bytes a tap) and a buffer of 64 bytes a touched pixel and thread."""
    maps, rois = pyramid(2, 64, 800, "nchw", torch.float32), random_rois(512, 2, 800)
    pixels = sum(m.shape[2] * m.shape[3] for m in maps)
    for reduce in REDUCTIONS:
        views = 1 if reduce == "assigned" else 4
        bound = views * 512 * 2000 + torch.get_num_threads() * 64 * pixels
        bound += 512 * 64 * 49 if reduce == "max" else 0
        yield MemoryCase(
            f"multilevel_roi_align forward, {reduce}",
            lambda r=reduce: ops.multilevel_roi_align(maps, rois, 7, SCALES, 2, reduce=r),
            bound,
        )


def gpu_checks() -> Iterator[Check]:
    """Forward, backward, deterministic backward, against the CPU kernel."""
    torch.manual_seed(0)
    forward = torch.ops.d2proj.multilevel_roi_align
    backward = torch.ops.d2proj._multilevel_roi_align_backward
    for dtype in FLOATING:
        for layout in ("nchw", "nhwc", "sliced"):
            for channels in (1, 21, 64):
                for reduce, given in ((0, False), (0, True), (1, False), (2, False), (3, False)):
                    maps = pyramid(3, channels, 200, layout, dtype)
                    rois = random_rois(100, 3, 200, 4, 190)
                    levels = torch.randint(4, (100,)) if given else None
                    device_maps = [in_layout(m.cuda(), layout) for m in maps]
                    device_rois, device_levels = rois.cuda(), levels.cuda() if given else None
                    rest = (SCALES, 7, 3, 2, True, reduce, 56.0, 4)
                    cpu, _winner = forward(maps, rois, levels, *rest)
                    with no_synchronisation():
                        got, device_winner = forward(device_maps, device_rois, device_levels, *rest)
                    name = f"multilevel_roi_align {str(dtype)[6:]} {layout} C={channels}"
                    name += f" {REDUCTIONS[reduce]}{' levels' if given else ''}"
                    yield name, difference(got, cpu), 10 * TOLERANCE[dtype]
                    grad = torch.randn(cpu.shape).to(dtype)
                    sizes = [[m.shape[d] for m in maps] for d in (2, 3)]
                    last = [int(layout == "nhwc")] * 4
                    rest = (*rest[:3], 3, channels, *sizes, *rest[3:], last)
                    # The device's own winners, so that a tie broken by rounding does not count.
                    cpu = backward(grad, device_winner.cpu(), rois, levels, *rest, False)
                    tolerance = 80 * TOLERANCE[dtype]
                    device_grad = grad.cuda()
                    args = (device_grad, device_winner, device_rois, device_levels, *rest)
                    with no_synchronisation():
                        got, fixed = backward(*args, False), backward(*args, True)
                        again = backward(*args, True)
                    for i in range(4):
                        step = f"{name} backward, level {i}"
                        yield step, difference(got[i], cpu[i]), tolerance
                        yield f"{step}, deterministic", difference(fixed[i], cpu[i]), tolerance
                        yield f"{step}, deterministic, twice", difference(fixed[i], again[i]), 0.0
    nan, inf = float("nan"), float("inf")
    strange = torch.tensor([[0, nan, 0, 1, 1], [0, 0, 0, inf, 1], [9, 0, 0, 4, 4]]).cuda()
    ones = [torch.ones_like(m) for m in pyramid(1, 8, 64, "nchw", torch.float32, "cuda")]
    for reduce in REDUCTIONS:
        output = ops.multilevel_roi_align(ones, strange, 3, SCALES, reduce=reduce)
        name = f"multilevel_roi_align {reduce}: strange boxes pool to zero"
        yield name, difference(output, output * 0), 0.0


def gpu_times() -> Iterator[Timing]:
    """Both layouts, two dtypes."""
    torch.manual_seed(0)
    for layout in ("nchw", "nhwc"):
        for dtype in (torch.float32, torch.float16):
            maps = pyramid(2, 256, 800, layout, dtype, "cuda")
            rois = random_rois(1000, 2, 800, 8, 720).to("cuda", dtype)
            rois = rois[rois[:, 0].argsort(stable=True)]
            for reduce in REDUCTIONS:
                our, their = ours(maps, rois, reduce), peer(maps, rois, 800, reduce)
                moved = size_of(*maps, our())
                name = f"multilevel_roi_align {layout} {str(dtype)[6:]} {reduce}"
                yield f"{name} forward", our, their, moved
                leaves = [m.detach().requires_grad_() for m in maps]
                our, their = ours(leaves, rois, reduce), peer(leaves, rois, 800, reduce)
                grad = torch.randn_like(our())
                yield (
                    f"{name} forward and backward",
                    lambda f=our, x=leaves, g=grad: torch.autograd.grad(f(), x, g),
                    lambda f=their, x=leaves, g=grad: torch.autograd.grad(f(), x, g),
                    moved + size_of(*maps, grad),
                )
