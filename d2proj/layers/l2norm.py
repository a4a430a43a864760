"""Normalisation of the vector at each cell (Liu et al. 2015, "ParseNet", section 3.3)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class L2Norm(nn.Module):
    """Divides each cell's channels by their Euclidean length and multiplies by learnt scales.

    Maps from shallow layers have larger values than those from deep ones; SSD brings conv4_3 to the
    others' magnitude so (Liu et al. 2016, section 3.1).

    Args:
        num_channels: of the map.
        scale: initial value of every channel's scale.
    """

    def __init__(self, num_channels: int, scale: float = 20.0) -> None:
        super().__init__()
        self.out_channels = num_channels
        self.scale = nn.Parameter(torch.full((num_channels,), float(scale)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W); a cell of zeros stays 0."""
        # The sum of squares of 512 channels needs more range and digits than half formats have.
        full = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        return (F.normalize(full, dim=1) * self.scale.view(1, -1, 1, 1)).to(x.dtype)
