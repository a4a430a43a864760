"""Filter response normalisation: no statistics of the batch (Singh & Krishnan 2019)."""

import torch
from torch import Tensor, nn


class FRN(nn.Module):
    """``x / sqrt(mean of x² over the map + |eps|) * weight + bias`` (section 3.1).

    Each image and channel by itself. :class:`TLU` follows, in the place of the activation.

    Args:
        num_features: channels.
        eps: added to the mean of squares.
    """

    def __init__(self, num_features: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = abs(eps)
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        wide = x if x.dtype == torch.float64 else x.float()
        scale = (wide.square().mean((2, 3), keepdim=True) + self.eps).rsqrt()
        scale = scale * self.weight[:, None, None]
        return torch.addcmul(self.bias[:, None, None], wide, scale).to(x.dtype)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{len(self.weight)}, eps={self.eps}"


class TLU(nn.Module):
    """Thresholded linear unit: ``max(x, threshold)``, a learned threshold a channel, from 0.

    Args:
        num_features: channels.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        return x.maximum(self.threshold[:, None, None].to(x.dtype))


def frn_tlu(num_features: int) -> nn.Module:
    """:class:`FRN` and its :class:`TLU`: the activation after it is ``"linear"``."""
    return nn.Sequential(FRN(num_features), TLU(num_features))
