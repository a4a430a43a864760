"""Sums of maps with learned weights."""

import torch
from torch import Tensor, nn

NORMALIZATIONS = ("none", "relu", "softmax")


class WeightedSum(nn.Module):
    """Multi-input weighted residual connections (MiWRC; YOLOv4, section 3.3; BiFPN's fusion).

    ``weight`` is (inputs, channels or 1).

    Args:
        num_inputs: how many maps are added.
        channels: of the maps, for one weight a channel; 1: one weight a map.
        normalization: ``"relu"``: weights are relu(w) / (sum + 1e-4), ``"softmax"``: exp(w) /
            (sum + 1e-4), ``"none"``: as they are.
    """

    def __init__(self, num_inputs: int, *, channels: int = 1, normalization: str = "relu") -> None:
        super().__init__()
        if normalization not in NORMALIZATIONS:
            raise ValueError(
                f"normalization must be one of {', '.join(NORMALIZATIONS)}, got {normalization!r}"
            )
        self.normalization = normalization
        start = 1.0 if normalization == "none" else 1.0 / num_inputs
        self.weight = nn.Parameter(torch.full((num_inputs, channels), start))

    def shares(self) -> Tensor:
        """The normalised weights, (inputs, channels or 1)."""
        if self.normalization == "none":
            return self.weight
        if self.normalization == "relu":
            positive = self.weight.relu()
        else:
            positive = (self.weight - self.weight.max(0, keepdim=True).values).exp()
        return positive / (positive.sum(0, keepdim=True) + 1e-4)

    def forward(self, *maps: Tensor) -> Tensor:
        """(N, C, H, W) each -> (N, C, H, W).

        A later map with more channels than the first adds only as many; one with fewer adds to the
        first of them (darknet's ``[shortcut]``).
        """
        return add_maps(maps, self.shares())


def add_maps(maps: tuple[Tensor, ...], shares: Tensor | None = None) -> Tensor:
    """Sum of maps, each times its row of ``shares`` (inputs, C or 1), in the first one's shape."""
    first = maps[0]
    result = first if shares is None else first * shares[0].view(-1, 1, 1)
    for i, other in enumerate(maps[1:], start=1):
        common = min(first.shape[1], other.shape[1])
        added = other[:, :common]
        if shares is not None:
            share = shares[i].view(-1, 1, 1)
            added = added * (share if len(share) == 1 else share[:common])
        if common < first.shape[1]:
            added = nn.functional.pad(added, (0, 0, 0, 0, 0, first.shape[1] - common))
        result = result + added
    return result
