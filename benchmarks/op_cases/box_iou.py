"""box_iou, generalized_, distance_ and complete_box_iou, against torchvision's torch code."""

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
from d2proj import ops

NAMES = ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou")


def boxes(count: int) -> Tensor:
    """(count, 4) boxes with sides of 8 to 300 in a square of 800."""
    return random_rois(count, 1, 800)[:, 1:].contiguous()


def there_and_back(function: Callable[..., Tensor], a: Tensor, b: Tensor, grad: Tensor) -> object:
    """Forward, then the gradients of both arguments."""
    return torch.autograd.grad(function(a, b), (a, b), grad)


def cpu_cases(quick: bool) -> Iterator[Case]:
    """Forward alone and forward with backward, gradients of both arguments."""
    shapes = [(1000, 100), (10, 10), (100, 100), (1000, 10), (20_000, 10), (20_000, 200)]
    for n, m in shapes[:1] if quick else shapes:
        a, b = boxes(n), boxes(m)
        grad = torch.randn(n, m)
        for name in NAMES:
            ours, peer = getattr(ops, name), getattr(torchvision.ops, name)
            moved = size_of(a, b, grad)
            yield Case(
                f"{name} forward: {n} x {m}",
                lambda f=ours, x=(a, b): f(*x),
                lambda f=peer, x=(a, b): f(*x),
                "torchvision",
                moved,
            )
            x = (a.clone().requires_grad_(), b.clone().requires_grad_(), grad)
            yield Case(
                f"{name} forward and backward: {n} x {m}",
                lambda f=ours, x=x: there_and_back(f, *x),
                lambda f=peer, x=x: there_and_back(f, *x),
                "torchvision",
                2 * moved + size_of(a, b),
            )


def memory_cases() -> Iterator[MemoryCase]:
    """Six numbers a box of the second set; backward, up to 17 times that. No (N, M, 2) tensor."""
    a, b = boxes(20_000), boxes(200)
    grad = torch.randn(20_000, 200)
    slack = 1 << 18
    yield MemoryCase("complete_box_iou", lambda: ops.complete_box_iou(a, b), 200 * 24 + slack)
    backward = torch.ops.d2proj._pairwise_box_iou_backward
    yield MemoryCase(
        "complete_box_iou backward",
        lambda: backward(grad, a, b, 3, 0, 1e-7),
        17 * 208 * 24 + slack,
    )


def gpu_checks() -> Iterator[Check]:
    """Values and both gradients against the CPU kernels; a gradient twice gives the same bits."""
    forward, backward = (
        torch.ops.d2proj.pairwise_box_iou,
        torch.ops.d2proj._pairwise_box_iou_backward,
    )
    for dtype in (torch.float32, torch.float64):
        for n, m in ((1, 1), (33, 7), (100, 300), (5000, 3), (3, 5000), (70, 2000)):
            a, b = boxes(n).to(dtype), boxes(m).to(dtype)
            b[: min(n, m) // 2] = a[: min(n, m) // 2]
            grad = torch.randn(n, m, dtype=dtype)
            device = [t.cuda() for t in (grad, a, b)]
            for kind, name in enumerate(NAMES):
                rest = (kind, 0, 1e-7)
                label = f"{name} {n} x {m} {str(dtype)[6:]}"
                tolerance = 0.0 if kind < 3 else 1e-6
                with no_synchronisation():
                    found = forward(*device[1:], *rest)
                    grads, again = backward(*device, *rest), backward(*device, *rest)
                yield label, difference(found, forward(a, b, *rest)), tolerance
                for i, expected in enumerate(backward(grad, a, b, *rest)):
                    bound = 1e-4 if dtype == torch.float32 else 1e-11
                    yield f"{label} gradient {i + 1}", difference(grads[i], expected), bound
                    yield f"{label} gradient {i + 1}, twice", difference(grads[i], again[i]), 0.0


def gpu_times() -> Iterator[Timing]:
    """Ground truths against anchors."""
    for n, m in ((200, 20_000), (20_000, 200), (100, 250_000)):
        a, b = boxes(n).cuda(), boxes(m).cuda()
        grad = torch.randn(n, m, device="cuda")
        for name in NAMES:
            ours, peer = getattr(ops, name), getattr(torchvision.ops, name)
            yield (
                f"{name} forward {n} x {m}",
                lambda f=ours, x=(a, b): f(*x),
                lambda f=peer, x=(a, b): f(*x),
                size_of(a, b, grad),
            )
            x = (a.clone().requires_grad_(), b.clone().requires_grad_(), grad)
            yield (
                f"{name} forward and backward {n} x {m}",
                lambda f=ours, x=x: there_and_back(f, *x),
                lambda f=peer, x=x: there_and_back(f, *x),
                2 * size_of(a, b, grad),
            )
