"""Calls of every op with drawn arguments, for what every op must stand: the fuzzer, threads, vmap.

One module per op. Its ``CALLS`` maps a name to a function that draws arguments and returns a
:class:`Call`. A draw comes from a ``random.Random``: hypothesis's own (so that a failure is
shrunk) or a seeded one (so that a number repeats it).
"""

import dataclasses
import importlib
import math
import pkgutil
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
WILD = (math.nan, math.inf, -math.inf, 1e30, -1e30, 3.4e38, 1e-45, -0.0, 2.0**31, -(2.0**31), 0.5)


@dataclasses.dataclass
class Call:
    """A public function of d2proj.ops and arguments for it.

    Attributes:
        function: What is called.
        arguments: Positional arguments.
        sane: Whether the arguments are legal and finite: then the call must succeed.
        differentiable: Indices of the arguments that a gradient must flow to.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    sane: bool = True
    differentiable: tuple[int, ...] = ()

    def __call__(self) -> Any:
        return self.function(*self.arguments)


class Draw:
    """Draws sizes and tensors.

    Args:
        source: The randomness.
        sane: Only finite, well-formed values: no NaN, no wrong shapes.
    """

    def __init__(self, source: random.Random, sane: bool = False) -> None:
        self.source = source
        self.sane = sane

    #: What boxes may come in.
    box_dtypes = (torch.float32, torch.float64)

    def integer(self, low: int, high: int) -> int:
        """From ``low`` to ``high``, both included."""
        return self.source.randint(low, high)

    def number(self, low: float, high: float) -> float:
        """Between ``low`` and ``high``; sometimes wild (NaN, infinite, huge) unless sane."""
        return self.maybe_wild(low + (high - low) * self.source.random())

    def maybe_wild(self, value: float) -> float:
        """The value, or rarely one of WILD."""
        return self.choice(*WILD) if self.chance(0.03) else value

    def choice(self, *options: Any) -> Any:
        """One of them."""
        return options[self.source.randrange(len(options))]

    def chance(self, probability: float) -> bool:
        """True that often; never if sane. Guards whatever may make a call illegal."""
        return not self.sane and self.source.random() < probability

    def dtype(self) -> torch.dtype:
        """A floating dtype, rarely another."""
        return self.choice(torch.int64, torch.bool) if self.chance(0.02) else self.choice(*FLOATING)

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        """Normal values times ``scale``, some wild, in a drawn memory layout.

        Unless sane, the shape is rarely wrong.
        """
        if self.chance(0.02):
            shape = (*shape, 1) if self.choice(True, False) else shape[1:]
        g = torch.Generator().manual_seed(self.integer(0, 2**31))
        values = torch.randn(shape, generator=g, dtype=torch.float64) * scale
        for _ in range(self.integer(0, 3) if values.numel() and self.chance(0.3) else 0):
            values.view(-1)[self.integer(0, values.numel() - 1)] = self.choice(*WILD)
        return self.layout(values.to(dtype))

    def boxes(self, count: int, size: float, dtype: torch.dtype = torch.float32) -> Tensor:
        """(count, 4) corners about a ``size`` square; some inverted, empty, equal or wild."""
        g = torch.Generator().manual_seed(self.integer(0, 2**31))
        corner = torch.rand(count, 2, generator=g, dtype=torch.float64) * size
        side = torch.rand(count, 2, generator=g, dtype=torch.float64) ** 2 * size + 0.01
        boxes = torch.cat([corner, corner + side], 1)
        if count and self.chance(0.3):
            boxes[:: self.integer(1, 5)] = boxes[0].clone()
        if count and self.chance(0.2):
            boxes[0] = boxes[0, [2, 3, 0, 1]]
        for _ in range(self.integer(0, 4) if count and self.chance(0.3) else 0):
            boxes[self.integer(0, count - 1), self.integer(0, 3)] = self.choice(*WILD)
        return self.layout(boxes.to(dtype))

    def rois(
        self, count: int, images: int, size: float, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """(count, 5): image index, then corners; unless sane, an index is rarely out of range."""
        g = torch.Generator().manual_seed(self.integer(0, 2**31))
        index = torch.randint(max(images, 1), (count, 1), generator=g).to(dtype)
        if count and self.chance(0.05):
            index[0] = self.choice(-1.0, float(images), 1e30, math.nan)
        return self.layout(torch.cat([index, self.boxes(count, size, dtype)], 1))

    def layout(self, tensor: Tensor) -> Tensor:
        """The same values: contiguous, strided, transposed in memory, offset or channels-last."""
        kind = self.choice("plain", "plain", "strided", "transposed", "offset", "last")
        if tensor.dim() == 0:
            return tensor
        if kind == "strided":
            wide = tensor.new_zeros(*tensor.shape[:-1], tensor.shape[-1] * 2)
            wide[..., ::2] = tensor
            return wide[..., ::2]
        if kind == "transposed" and tensor.dim() > 1:
            return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
        if kind == "offset":
            flat = tensor.new_zeros(tensor.numel() + 1)
            flat[1:] = tensor.reshape(-1)
            return flat[1:].view(tensor.shape)
        if kind == "last" and tensor.dim() == 4:
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor


def find() -> dict[str, Callable[[Draw], Call]]:
    """Every op's calls, by name."""
    found: dict[str, Callable[[Draw], Call]] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(__path__)):
        found.update(importlib.import_module(f"{__name__}.{module}").CALLS)
    return found
