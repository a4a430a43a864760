"""iou_loss, generalized_, distance_ and complete_box_iou_loss, against torchvision's torch code."""

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
)
from d2proj import ops

NAMES = ("generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss")


def pairs(count: int) -> tuple[Tensor, Tensor]:
    """Predictions and the boxes that they should be."""
    target = random_rois(count, 1, 800)[:, 1:].contiguous()
    return target + torch.randn(count, 4) * 3, target


def there_and_back(function: Callable[..., Tensor], a: Tensor, b: Tensor) -> object:
    """Forward, then the gradient of the predictions."""
    return torch.autograd.grad(function(a, b, "sum"), a)


def cpu_cases(quick: bool) -> Iterator[Case]:
    """Forward alone (no reduction) and forward with backward (sum), gradient of predictions."""
    for count in (10_000,) if quick else (10, 100, 1000, 10_000, 100_000, 1_000_000):
        a, b = pairs(count)
        for name in NAMES:
            ours, peer = getattr(ops, name), getattr(torchvision.ops, name)
            yield Case(
                f"{name} forward: {count} pairs",
                lambda f=ours, x=(a, b): f(*x),
                lambda f=peer, x=(a, b): f(*x),
                "torchvision",
                36 * count,
            )
            x = (a.clone().requires_grad_(), b)
            yield Case(
                f"{name} forward and backward: {count} pairs",
                lambda f=ours, x=x: there_and_back(f, *x),
                lambda f=peer, x=x: there_and_back(f, *x),
                "torchvision",
                80 * count,
            )


def memory_cases() -> Iterator[MemoryCase]:
    """One sum for each 2048 pairs, nothing else."""
    a, b = pairs(1_000_000)
    yield MemoryCase(
        "complete_box_iou_loss", lambda: ops.complete_box_iou_loss(a, b, "mean"), 1 << 18
    )
    backward, grad = torch.ops.d2proj._box_iou_loss_backward, torch.tensor(1.0)
    yield MemoryCase(
        "complete_box_iou_loss backward",
        lambda: backward(grad, a, b, 3, False, 1, 1e-7, True, True),
        1 << 18,
    )


def gpu_checks() -> Iterator[Check]:
    """Values and both gradients against the CPU kernels; sums twice give the same bits."""
    forward, backward = (torch.ops.d2proj.box_iou_loss, torch.ops.d2proj._box_iou_loss_backward)
    for dtype in (torch.float32, torch.float64):
        for count in (1, 33, 300_001):
            a, b = (t.to(dtype) for t in pairs(count))
            b[::7] = a[::7]
            device = (a.cuda(), b.cuda())
            for kind in range(4):
                for reduction in range(3):
                    rest = (kind, kind == 0 and reduction == 2, reduction, 1e-7)
                    label = f"box_iou_loss {kind} {count} {str(dtype)[6:]} reduction {reduction}"
                    expected = forward(a, b, *rest)
                    grad = torch.ones_like(expected)
                    device_grad = grad.cuda()
                    with no_synchronisation():
                        found, again = forward(*device, *rest), forward(*device, *rest)
                        grads = backward(device_grad, *device, *rest, True, True)
                    scale = max(1.0, expected.abs().max().item())
                    tolerance = scale * (1e-6 if dtype == torch.float32 else 1e-12)
                    yield label, difference(found, expected), tolerance
                    yield f"{label}, twice", difference(found, again), 0.0
                    cpu = backward(grad, a, b, *rest, True, True)
                    for i in range(2):
                        bound = 1e-5 if dtype == torch.float32 else 1e-12
                        yield f"{label} gradient {i + 1}", difference(grads[i], cpu[i]), bound


def gpu_times() -> Iterator[Timing]:
    """A batch's positives, and a million pairs."""
    for count in (1000, 1_000_000, 10_000_000):
        a, b = (t.cuda() for t in pairs(count))
        for name in NAMES:
            ours, peer = getattr(ops, name), getattr(torchvision.ops, name)
            yield (
                f"{name} forward {count}",
                lambda f=ours, x=(a, b): f(*x),
                lambda f=peer, x=(a, b): f(*x),
                36 * count,
            )
            x = (a.clone().requires_grad_(), b)
            yield (
                f"{name} forward and backward {count}",
                lambda f=ours, x=x: there_and_back(f, *x),
                lambda f=peer, x=x: there_and_back(f, *x),
                80 * count,
            )
