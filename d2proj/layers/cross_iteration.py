"""Convolution with cross-iteration batch normalisation (Yao et al. 2020, "CBN")."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from d2proj.layers.conv import Conv2d


class CBNConv2d(Conv2d):
    """A convolution whose batch norm takes the last iterations' statistics in, too.

    The weights have changed since: E[x] and E[x²] of iteration t - τ are moved to the present
    weights by their gradient with respect to this layer's own, ``m + <dm/dw, w_t - w_{t-τ}>``
    (equations 8 and 9; gradients with respect to layers before are left out, as in the paper). The
    means over the window of E[x] and of max(E[x²], E[x]²) are what the map is normalised with
    (equations 10 to 12). Gradients flow through the present iteration's share.

    ``norm`` is an ordinary ``BatchNorm2d``, which evaluation folds and checkpoints name as always;
    the window is kept in buffers of ``3 (window - 1)`` times the weight's size, so that a resumed
    training continues as it was.

    Args:
        *args, **kwargs: as :class:`Conv2d`, without ``bias``; ``norm`` is made here.
        window: iterations that count, the present one among them.
        burn_in: share of the training that uses ordinary batch norm, until weights change slowly.
    """

    past_mean: Tensor
    past_square: Tensor
    past_mean_grad: Tensor
    past_square_grad: Tensor
    past_weight: Tensor
    past_valid: Tensor

    def __init__(self, *args: Any, window: int = 8, burn_in: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, bias=False, **kwargs)
        if window < 2 or not 0 <= burn_in <= 1:
            raise ValueError(
                f"window must be at least 2 and burn_in in [0, 1], got {window} and {burn_in}"
            )
        self.norm: nn.Module = nn.BatchNorm2d(self.out_channels)
        self.window = window
        self.burn_in = burn_in
        self._progress = 1.0
        past = window - 1
        for name in ("past_mean", "past_square"):
            self.register_buffer(name, torch.zeros(past, self.out_channels))
        for name in ("past_mean_grad", "past_square_grad", "past_weight"):
            self.register_buffer(name, torch.zeros(past, *self.weight.shape))
        self.register_buffer("past_valid", torch.zeros(past))

    def set_progress(self, fraction: float) -> None:
        """Say how much of the training is done, 0 to 1; until then it counts as complete."""
        self._progress = fraction

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        if not self._uses_window():
            return super().forward(x)
        norm = cast(nn.BatchNorm2d, self.norm)
        y = self._conv_forward(x, self.weight, None)
        wide = y if y.dtype == torch.float64 else y.float()
        mean, square = wide.mean((0, 2, 3)), wide.square().mean((0, 2, 3))
        present = (mean, square, *self._gradients(mean, square))
        past_mean, past_square = self._moved()
        count = 1 + self.past_valid.sum()
        mean = (mean + past_mean) / count
        var = (square.maximum(present[0].square()) + past_square) / count - mean.square()
        self._remember(*present)
        self._update(norm, mean.detach(), var.detach())
        scale = norm.weight * torch.rsqrt(var.clamp(min=0) + norm.eps)
        y = torch.addcmul(
            norm.bias[:, None, None], wide - mean[:, None, None], scale[:, None, None]
        ).to(y.dtype)
        return y if self.activation is None else self.activation(y)

    def _uses_window(self) -> bool:
        return (
            isinstance(self.norm, nn.BatchNorm2d)
            and self.norm.training
            and self._progress >= self.burn_in
            and torch.is_grad_enabled()
            and self.weight.requires_grad
        )

    def _gradients(self, mean: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
        """Of each channel's statistics with respect to the weights of its own filter."""
        ones = torch.ones_like(mean)
        found = [
            torch.autograd.grad(s, self.weight, ones, retain_graph=True)[0] for s in (mean, square)
        ]
        return found[0], found[1]

    @torch.no_grad()
    def _moved(self) -> tuple[Tensor, Tensor]:
        """Sums over the past of E[x] and of max(E[x²], E[x]²), for the present weights."""
        step = self.weight - self.past_weight
        mean = self.past_mean + (self.past_mean_grad * step).sum((2, 3, 4))
        square = self.past_square + (self.past_square_grad * step).sum((2, 3, 4))
        square = square.maximum(mean.square())
        valid = self.past_valid[:, None]
        return (mean * valid).sum(0), (square * valid).sum(0)

    @torch.no_grad()
    def _remember(self, mean: Tensor, square: Tensor, d_mean: Tensor, d_square: Tensor) -> None:
        batches = cast(Tensor, cast(nn.BatchNorm2d, self.norm).num_batches_tracked)
        oldest = batches.remainder(self.window - 1).reshape(1)
        for past, value in (
            (self.past_mean, mean),
            (self.past_square, square),
            (self.past_mean_grad, d_mean),
            (self.past_square_grad, d_square),
            (self.past_weight, self.weight),
        ):
            past.index_copy_(0, oldest, value[None].to(past.dtype))
        self.past_valid.index_fill_(0, oldest, 1.0)

    @torch.no_grad()
    def _update(self, norm: nn.BatchNorm2d, mean: Tensor, var: Tensor) -> None:
        momentum = cast(float, norm.momentum)
        for running, value in ((norm.running_mean, mean), (norm.running_var, var)):
            cast(Tensor, running).lerp_(value.to(cast(Tensor, running).dtype), momentum)
        cast(Tensor, norm.num_batches_tracked).add_(1)
