"""DropBlock (Ghiasi, Lin & Le 2018): dropout of squares of a map."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DropBlock(nn.Module):
    """Sets squares of each channel to zero in training and scales what is left.

    Args:
        drop_prob: share of the values that are dropped, about (1 - keep_prob of the paper).
        block_size: side of the squares, in cells; at most the map's shorter side.
    """

    def __init__(self, drop_prob: float = 0.1, block_size: int = 7) -> None:
        super().__init__()
        if not 0 <= drop_prob < 1 or block_size < 1:
            raise ValueError(
                "DropBlock takes drop_prob in [0, 1) and a positive block_size, "
                f"got {drop_prob} and {block_size}"
            )
        self.drop_prob = drop_prob
        self.block_size = block_size

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        if not self.training or self.drop_prob == 0:
            return x
        h, w = x.shape[2:]
        block = min(self.block_size, h, w)
        seeds = self.drop_prob * h * w / (block**2 * (h - block + 1) * (w - block + 1))
        mask = torch.zeros_like(x)
        inner = mask[:, :, block // 2 : h - (block - 1) // 2, block // 2 : w - (block - 1) // 2]
        inner.bernoulli_(min(seeds, 1.0))
        dropped = F.max_pool2d(F.pad(mask, ((block - 1) // 2, block // 2) * 2), block, stride=1)
        kept = 1 - dropped
        return x * kept * (kept.numel() / kept.sum().clamp(min=1))

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"drop_prob={self.drop_prob}, block_size={self.block_size}"
