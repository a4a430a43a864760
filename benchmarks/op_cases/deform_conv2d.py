"""deform_conv2d, version 2 (with a mask), against torchvision."""

from collections.abc import Iterator

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
    size_of,
)
from d2proj import ops
from d2proj.utils.testing import FLOATING, TOLERANCE, in_layout


def arguments(
    n: int,
    c: int,
    out: int,
    side: int,
    kernel: int = 3,
    groups: int = 1,
    offset_groups: int = 1,
    *,
    dtype: torch.dtype = torch.float32,
    g: torch.Generator | None = None,
) -> tuple[Tensor, ...]:
    """Input, weight, offset, mask, bias of a convolution that keeps the map's size."""
    taps = offset_groups * kernel * kernel
    depth = c // groups * kernel * kernel
    shapes = ((n, c, side, side), (out, c // groups, kernel, kernel), (n, 2 * taps, side, side))
    input, weight, offset = (torch.randn(s, generator=g) for s in shapes)
    mask, bias = torch.rand(n, taps, side, side, generator=g), torch.randn(out, generator=g)
    tensors = (input, weight / depth**0.5, offset * 2, mask, bias)
    return tuple(t.to(dtype) for t in tensors)


def forward(tensors: tuple[Tensor, ...], steps: tuple[int, ...]) -> Tensor:
    """Ours, on the op's own arguments."""
    return torch.ops.d2proj.deform_conv2d(*tensors, *steps)


def backward(grad: Tensor, tensors: tuple[Tensor, ...], steps: tuple[int, ...]) -> tuple:
    """Ours, every gradient (the bias's is the wrapper's)."""
    needed = (True, True, True, True)
    found = torch.ops.d2proj._deform_conv2d_backward(grad, *tensors[:4], *steps, *needed, False)
    return *found, grad.sum((0, 2, 3))


def peer_backward(
    grad: Tensor, tensors: tuple[Tensor, ...], steps: tuple[int, ...], groups: tuple[int, int]
) -> tuple:
    """torchvision's."""
    return torch.ops.torchvision._deform_conv2d_backward(grad, *tensors, *steps, *groups, True)


def peer_forward(tensors: tuple[Tensor, ...], padding: int) -> Tensor:
    """torchvision's."""
    input, weight, offset, mask, bias = tensors
    return torchvision.ops.deform_conv2d(input, offset, weight, bias, 1, padding, 1, mask)


def public_forward(tensors: tuple[Tensor, ...], padding: int) -> Tensor:
    """Ours, through the public function."""
    input, weight, offset, mask, bias = tensors
    return ops.deform_conv2d(input, offset, weight, bias, 1, padding, 1, mask)


def cpu_cases(quick: bool) -> Iterator[Case]:
    """The shape of specs/ops.md, then ResNet's and odd ones, small ones too."""
    shapes = [  # images, channels, outputs, side, kernel, groups, offset groups, layout, dtype
        (2, 128, 128, 64, 3, 1, 1, "nchw", torch.float32),
        (2, 128, 128, 64, 3, 1, 1, "nhwc", torch.float32),
        (2, 128, 128, 64, 3, 1, 1, "nchw", torch.float64),
        (1, 256, 256, 50, 3, 1, 4, "nchw", torch.float32),
        (1, 512, 512, 25, 3, 1, 1, "nchw", torch.float32),
        (1, 256, 256, 50, 3, 32, 1, "nchw", torch.float32),
        (1, 64, 64, 50, 3, 64, 1, "nchw", torch.float32),
        (2, 64, 64, 64, 1, 1, 1, "nchw", torch.float32),
        (1, 8, 8, 64, 3, 1, 1, "nchw", torch.float32),
        (1, 8, 8, 8, 3, 1, 1, "nchw", torch.float32),
        (1, 128, 128, 8, 3, 1, 1, "nchw", torch.float32),
        (33, 16, 16, 8, 3, 1, 1, "nchw", torch.float32),
        (1, 3, 1, 8, 1, 1, 1, "nchw", torch.float32),
    ]
    for n, c, out, side, kernel, groups, moved, layout, dtype in shapes[:1] if quick else shapes:
        tensors = arguments(n, c, out, side, kernel, groups, moved, dtype=dtype)
        tensors = (in_layout(tensors[0], layout), *tensors[1:])
        pad = kernel // 2
        steps = (1, 1, pad, pad, 1, 1)
        name = f"{n}x{c}x{side}x{side} -> {out}, {kernel}x{kernel}"
        name += f" groups {groups}/{moved} {layout} {str(dtype)[6:]}"
        output = forward(tensors, steps)
        grad = torch.randn_like(output)
        flops = 2 * output.numel() * c // groups * kernel * kernel
        yield Case(
            f"deform_conv2d forward: {name}",
            lambda a=(tensors, pad): public_forward(*a),
            lambda a=(tensors, pad): peer_forward(*a),
            "torchvision",
            size_of(*tensors, output),
            flops if dtype == torch.float32 else 2 * flops,
        )
        yield Case(
            f"deform_conv2d backward: {name}",
            lambda a=(grad, tensors, steps): backward(*a),
            lambda a=(grad, tensors, steps, (groups, moved)): peer_backward(*a),
            "torchvision",
            2 * size_of(*tensors) + size_of(grad),
            (2 if dtype == torch.float32 else 4) * flops,
        )


def memory_cases() -> Iterator[MemoryCase]:
    """What the page promises; columns of the whole batch would be 151 MB here."""
    tensors = arguments(8, 128, 128, 64)
    steps = (1, 1, 1, 1, 1, 1)
    output = forward(tensors, steps)
    threads = torch.get_num_threads()
    packed, weights = 16 << 20, size_of(tensors[1])
    task = threads * (300 << 10)
    yield MemoryCase(
        "deform_conv2d forward", lambda: forward(tensors, steps), packed + weights + task
    )
    needed = (output, *tensors[:4], *steps, True, True, True, True, False)
    yield MemoryCase(
        "deform_conv2d backward",
        lambda: torch.ops.d2proj._deform_conv2d_backward(*needed),
        2 * packed + int(2.2 * weights) + (9 << 20) + task,
    )


def gpu_checks() -> Iterator[Check]:
    """Forward, backward, deterministic backward, against the CPU kernel."""
    g = torch.Generator().manual_seed(0)
    steps = (1, 1, 1, 1, 1, 1)
    for dtype in FLOATING:
        for layout in ("nchw", "nhwc", "sliced"):
            for c, out, groups, moved in ((3, 5, 1, 1), (64, 48, 1, 2), (32, 16, 4, 1)):
                tensors = arguments(3, c, out, 21, 3, groups, moved, dtype=dtype, g=g)
                tensors[2][0, 3, 5] = float("nan")
                tensors = (in_layout(tensors[0], layout), *tensors[1:])
                device = tuple(t.cuda() for t in tensors)
                device = (in_layout(device[0], layout), *device[1:])
                name = f"deform_conv2d {str(dtype)[6:]} {layout} {c}->{out} groups {groups}/{moved}"
                cpu = forward(tensors, steps)
                with no_synchronisation():
                    got = forward(device, steps)
                # float32 within TF32's reach only if torch allows TF32; half is rounded twice.
                yield name, difference(got, cpu), 20 * TOLERANCE[dtype]
                grad = torch.randn(cpu.shape, generator=g).to(dtype)
                device_grad = grad.cuda()
                options = (*steps, True, True, True, True)
                op = torch.ops.d2proj._deform_conv2d_backward
                expected = op(grad, *tensors[:4], *options, False)
                with no_synchronisation():
                    found = op(device_grad, *device[:4], *options, False)
                    fixed = op(device_grad, *device[:4], *options, True)
                    again = op(device_grad, *device[:4], *options, True)
                for i, part in enumerate(("input", "weight", "offset", "mask")):
                    scale = expected[i].abs().max().item()
                    tolerance = 40 * TOLERANCE[dtype] * max(1.0, scale)
                    yield f"{name} grad {part}", difference(found[i], expected[i]), tolerance
                    yield (
                        f"{name} grad {part}, deterministic",
                        difference(fixed[i], expected[i]),
                        tolerance,
                    )
                    yield f"{name} grad {part}, twice", difference(fixed[i], again[i]), 0.0


def gpu_times() -> Iterator[Timing]:
    """The shape of specs/ops.md and a larger one, both layouts, three dtypes."""
    g = torch.Generator().manual_seed(0)
    steps = (1, 1, 1, 1, 1, 1)
    for n, c, side in ((2, 128, 64), (8, 256, 100)):
        for layout in ("nchw", "nhwc"):
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                tensors = tuple(t.to("cuda", dtype) for t in arguments(n, c, c, side, g=g))
                tensors = (in_layout(tensors[0], layout), *tensors[1:])
                # torchvision has no bfloat16.
                peer_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
                peer = tuple(t.to(peer_dtype) for t in tensors)
                output = forward(tensors, steps)
                name = f"deform_conv2d {n}x{c}x{side}x{side} {layout} {str(dtype)[6:]}"
                yield (
                    f"{name} forward",
                    lambda a=(tensors, steps): forward(*a),
                    lambda a=(peer, 1): peer_forward(*a),
                    size_of(*tensors, output),
                )
                grad = torch.randn_like(output)
                peer_grad = grad.to(peer_dtype)
                yield (
                    f"{name} backward",
                    lambda a=(grad, tensors, steps): backward(*a),
                    lambda a=(peer_grad, peer, steps, (1, 1)): peer_backward(*a),
                    2 * size_of(*tensors) + size_of(grad),
                )
