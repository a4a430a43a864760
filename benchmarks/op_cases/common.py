"""What the ops' cases share: kinds of rows, random boxes, differences."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

# (what was checked, largest difference, tolerance)
Check = tuple[str, float, float]
# (what was timed, our call, the peer's call, bytes that must move)
Timing = tuple[str, Callable[[], Any], Callable[[], Any], int]


@dataclasses.dataclass
class Case:
    """One row of the CPU table: two functions that do the same, and what they cannot avoid.

    Attributes:
        name: ``op forward: shape``.
        ours, peer: The calls.
        peer_name: Whose the second one is.
        bytes: What must be read and written, once.
        flops: Multiplications and additions that no form of the algorithm avoids; 0 where the bytes
            rule.
    """

    name: str
    ours: Callable[[], object]
    peer: Callable[[], object]
    peer_name: str
    bytes: int
    flops: int = 0


@dataclasses.dataclass
class MemoryCase:
    """A call and the most memory that it may take beside its result (what the op's page says)."""

    name: str
    call: Callable[[], object]
    bound: int


def size_of(*tensors: Tensor) -> int:
    """Bytes of the tensors together."""
    return sum(t.numel() * t.element_size() for t in tensors)


def random_rois(count: int, images: int, size: float, low: float = 8, high: float = 300) -> Tensor:
    """(count, 5) boxes with sides of ``low`` to ``high`` in a ``size`` square."""
    sides = (torch.rand(count, 2) * (high - low) + low).clamp(max=size)
    corner = torch.rand(count, 2) * (size - sides)
    return torch.cat([torch.randint(images, (count, 1)), corner, corner + sides], 1)


@contextlib.contextmanager
def no_synchronisation() -> Iterator[None]:
    """Any wait of the host for the device inside raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference, infinite if the shapes or dtypes differ."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    return (a.double().cpu() - b.double().cpu()).abs().max().item() if a.numel() else 0.0
