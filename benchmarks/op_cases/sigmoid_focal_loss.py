"""sigmoid_focal_loss, element-wise targets and classes, against torchvision."""

from collections.abc import Iterator
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

from benchmarks.op_cases.common import Case, Check, MemoryCase, Timing, difference, size_of
from d2proj import ops
from d2proj.utils.testing import FLOATING, TOLERANCE

ANCHORS = 120_000  # a RetinaNet's, for one image
FORWARD = torch.ops.d2proj.sigmoid_focal_loss
BACKWARD = torch.ops.d2proj._sigmoid_focal_loss_backward


def step(function: Any, x: Tensor, targets: Tensor, gamma: float, reduction: str) -> Tensor:
    """Forward and backward."""
    loss = function(x, targets, 0.25, gamma, reduction)
    return torch.autograd.grad(loss, x, torch.ones_like(loss))[0]


def one_hot(function: Any, x: Tensor, classes: Tensor) -> Tensor:
    """What is needed to give classes to torchvision."""
    targets = F.one_hot(classes, x.shape[1] + 1)[:, :-1].to(x.dtype)
    return step(function, x, targets, 2.0, "sum")


def cpu_cases(quick: bool) -> Iterator[Case]:
    """Forward and backward together: logits of 80 classes, and few."""
    ours, theirs = ops.sigmoid_focal_loss, torchvision.ops.sigmoid_focal_loss
    rows = [  # anchors, classes, dtype, gamma, reduction
        (ANCHORS, 80, torch.float32, 2.0, "sum"),
        (ANCHORS, 80, torch.float32, 2.0, "none"),
        (20_000, 80, torch.float32, 1.5, "sum"),
        (20_000, 80, torch.float64, 2.0, "sum"),
        (20_000, 80, torch.bfloat16, 2.0, "sum"),
        (1000, 80, torch.float32, 2.0, "sum"),
        (1000, 1, torch.float32, 2.0, "sum"),
        (10, 1, torch.float32, 2.0, "sum"),
    ]
    for n, k, dtype, gamma, reduction in rows[:1] if quick else rows:
        x = torch.randn(n, k).to(dtype).requires_grad_()
        targets = (torch.rand(n, k) > 0.99).to(dtype)
        name = f"{n}x{k} {str(dtype)[6:]}, gamma {gamma}, {reduction}"
        yield Case(
            f"sigmoid_focal_loss forward+backward: {name}",
            lambda a=(x, targets, gamma, reduction): step(ours, *a),
            lambda a=(x, targets, gamma, reduction): step(theirs, *a),
            "torchvision",
            # Both passes read both, one writes the gradient; without reduction losses are too.
            size_of(x) * (5 if reduction == "sum" else 7),
        )
    for n, k in [(ANCHORS, 80)] if quick else [(ANCHORS, 80), (1000, 80), (10_000, 3)]:
        x = torch.randn(n, k).requires_grad_()
        classes = torch.where(torch.rand(n) > 0.99, torch.randint(k, (n,)), k)
        yield Case(
            f"sigmoid_focal_loss of classes forward+backward: {n}x{k} float32",
            lambda a=(x, classes, 2.0, "sum"): step(ours, *a),
            lambda a=(x, classes): one_hot(theirs, *a),
            "torchvision, one-hot",
            size_of(x) * 3 + size_of(classes) * 2,
        )


def memory_cases() -> Iterator[MemoryCase]:
    """12 kB a thread and 8 bytes for 16 384 logits."""
    x = torch.randn(ANCHORS // 4, 80)
    classes = torch.zeros(len(x), dtype=torch.int64)
    bound = torch.get_num_threads() * (64 << 10) + x.numel() // 2048
    yield MemoryCase(
        "focal loss", lambda: ops.sigmoid_focal_loss(x, classes, 0.25, 2, "sum"), bound
    )
    one = torch.ones(())
    yield MemoryCase("focal loss backward", lambda: BACKWARD(one, x, classes, 0.25, 2.0, 2), bound)


def gpu_checks() -> Iterator[Check]:
    """Every dtype, reduction and kind of target against the CPU."""
    g = torch.Generator().manual_seed(0)
    for dtype in FLOATING:
        for columns in (3, 80):
            x = (torch.randn(501, columns, generator=g) * 4).to(dtype)
            soft = torch.rand(501, columns, generator=g).to(dtype)
            classes = torch.randint(-1, columns + 1, (501,), generator=g)
            for targets in (soft, classes):
                for gamma in (0.0, 1.0, 2.0, 1.5):
                    for reduction in range(3):
                        options = (0.25, gamma, reduction)
                        name = f"focal {str(dtype)[6:]} {columns} {targets.dim()}-D {options}"
                        cpu = FORWARD(x, targets, *options)
                        got = FORWARD(x.cuda(), targets.cuda(), *options)
                        # Relative to the largest value: a sum of 40 000 is large.
                        scale = cpu.double().abs().max().clamp(min=1).item()
                        yield name, difference(got, cpu) / scale, 4 * TOLERANCE[dtype]
                        up = torch.ones_like(cpu)
                        cpu = BACKWARD(up, x, targets, *options)
                        got = BACKWARD(up.cuda(), x.cuda(), targets.cuda(), *options)
                        yield f"{name} backward", difference(got, cpu), 8 * TOLERANCE[dtype]


def gpu_times() -> Iterator[Timing]:
    """A RetinaNet's logits for 16 images."""
    for dtype in (torch.float32, torch.float16):
        x = torch.randn(16 * ANCHORS, 80, device="cuda", dtype=dtype, requires_grad=True)
        targets = (torch.rand_like(x) > 0.99).to(dtype)
        name = f"sigmoid_focal_loss {str(dtype)[6:]}"
        for reduction, moved in (("none", 7), ("mean", 5)):
            yield (
                f"{name} {reduction} forward+backward",
                lambda a=(x, targets, 2.0, reduction): step(ops.sigmoid_focal_loss, *a),
                lambda a=(x, targets, 2.0, reduction): step(torchvision.ops.sigmoid_focal_loss, *a),
                moved * size_of(x),
            )
