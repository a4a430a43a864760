"""Batch normalisation with statistics from more than one mini-batch."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable


class CmBN(nn.BatchNorm2d):
    """Cross mini-batch normalisation (Bochkovskiy et al. 2020, "YOLOv4", section 3.3, figure 4).

    A batch consists of ``subdivisions`` mini-batches, one image after the other. Mini-batch j is
    normalised with the means, over mini-batches 1 to j, of E[x] and of max(E[x²], E[x]²): what
    darknet does with ``cbn=1``, whose divisor of E[x²] is n - 1. Gradients are those of ordinary
    batch normalisation of the mini-batch with these statistics: none flows to the images before.
    Running statistics take in each mini-batch's accumulated ones. Evaluation is ordinary batch
    normalisation.

    darknet sees one mini-batch at a time; here the whole batch is in memory.

    Args:
        num_features: channels.
        subdivisions: mini-batches of a batch; a batch of fewer images has as many as images. Where
            they do not divide the batch, the first mini-batches have one image more.
        eps: as ``torch.nn.BatchNorm2d``.
        momentum: share of a mini-batch in the running statistics.
    """

    def __init__(
        self,
        num_features: int,
        subdivisions: int = 4,
        *,
        eps: float = 1e-5,
        momentum: float = 0.01,
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        if subdivisions < 1:
            raise ValueError(f"subdivisions must be positive, got {subdivisions}")
        self.subdivisions = subdivisions

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        if not self.training or len(x) == 0:
            return super().forward(x)
        with torch.no_grad():
            parts = x.tensor_split(min(self.subdivisions, len(x)))
            mean, var = _accumulated(parts)
            self._update(mean, var)
        return _Normalize.apply(x, self.weight, self.bias, mean, var, self.eps)

    def _update(self, mean: Tensor, var: Tensor) -> None:
        momentum = cast(float, self.momentum)
        for running, values in ((self.running_mean, mean), (self.running_var, var)):
            for value in values:
                cast(Tensor, running).lerp_(value.to(running), momentum)
        cast(Tensor, self.num_batches_tracked).add_(len(mean))

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{super().extra_repr()}, subdivisions={self.subdivisions}"


def _accumulated(parts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Mean and variance, each (mini-batches, C), that each mini-batch is normalised with."""
    means, squares = [], []
    for part in parts:
        part = _wide(part)
        mean = part.mean((0, 2, 3))
        # darknet's n - 1 has no meaning for a single value.
        count = max(part.numel() // part.shape[1] - 1, 1)
        means.append(mean)
        squares.append((part.square().sum((0, 2, 3)) / count).maximum(mean.square()))
    number = torch.arange(1, len(parts) + 1, device=parts[0].device)[:, None]
    mean = torch.stack(means).cumsum(0) / number
    square = torch.stack(squares).cumsum(0) / number
    return mean, (square - mean.square()).clamp(min=0)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class _Normalize(torch.autograd.Function):
    """Scale and shift of mini-batches with given statistics, batch normalisation's gradient."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        eps: float,
    ) -> Tensor:
        scale = torch.rsqrt(var + eps)
        ctx.save_for_backward(x, weight, mean, scale)
        parts = x.tensor_split(len(mean))
        outputs = [
            torch.addcmul(_row(bias), _wide(part) - _row(m), _row(s * weight)).to(x.dtype)
            for part, m, s in zip(parts, mean, scale, strict=True)
        ]
        return torch.cat(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        parts = zip(
            x.tensor_split(len(mean)), grad.tensor_split(len(mean)), mean, scale, strict=True
        )
        grad_x = []
        grad_weight = torch.zeros_like(mean[0])
        grad_bias = torch.zeros_like(mean[0])
        for part, dy, m, s in parts:
            dy, normal = _wide(dy), (_wide(part) - _row(m)) * _row(s)
            sum_dy, sum_normal = dy.sum((0, 2, 3)), (dy * normal).sum((0, 2, 3))
            count = part.numel() // part.shape[1]
            dx = dy - _row(sum_dy / count) - normal * _row(sum_normal / count)
            grad_x.append((dx * _row(s * weight)).to(x.dtype))
            grad_weight += sum_normal
            grad_bias += sum_dy
        return (
            torch.cat(grad_x),
            grad_weight.to(weight.dtype),
            grad_bias.to(weight.dtype),
            None,
            None,
            None,
        )


def _row(values: Tensor) -> Tensor:
    return values[:, None, None]
