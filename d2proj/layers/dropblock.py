"""DropBlock (Ghiasi, Lin & Le 2018): dropout of squares of a map."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DropBlock(nn.Module):
    """Sets squares of each channel to zero in training and scales what is left.

    Under d2proj's trainer the share that is dropped grows linearly from 0 to ``drop_prob``
    (section 3.2, "scheduled DropBlock"), by way of :meth:`set_progress`.

    Args:
        drop_prob: share of the values that are dropped, about (1 - keep_prob of the paper).
        block_size: side of the squares, in cells; at most the map's shorter side.
        ramp: share of the training after which ``drop_prob`` is reached (darknet: 0.85).
    """

    def __init__(self, drop_prob: float = 0.1, block_size: int = 7, *, ramp: float = 1.0) -> None:
        super().__init__()
        if not 0 <= drop_prob < 1 or block_size < 1 or not 0 < ramp <= 1:
            raise ValueError(
                "DropBlock takes drop_prob in [0, 1), a positive block_size and ramp in (0, 1], "
                f"got {drop_prob}, {block_size} and {ramp}"
            )
        self.drop_prob = drop_prob
        self.block_size = block_size
        self.ramp = ramp
        self._progress = 1.0

    def set_progress(self, fraction: float) -> None:
        """Say how much of the training is done, 0 to 1; until then it counts as complete."""
        self._progress = fraction

    @property
    def current_drop_prob(self) -> float:
        """What the progress of the training makes of ``drop_prob``."""
        return self.drop_prob * min(1.0, self._progress / self.ramp)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        drop_prob = self.current_drop_prob
        if not self.training or drop_prob == 0:
            return x
        h, w = x.shape[2:]
        block = min(self.block_size, h, w)
        seeds = drop_prob * h * w / (block**2 * (h - block + 1) * (w - block + 1))
        mask = torch.zeros_like(x)
        inner = mask[:, :, block // 2 : h - (block - 1) // 2, block // 2 : w - (block - 1) // 2]
        inner.bernoulli_(min(seeds, 1.0))
        dropped = F.max_pool2d(F.pad(mask, ((block - 1) // 2, block // 2) * 2), block, stride=1)
        kept = 1 - dropped
        return x * kept * (kept.numel() / kept.sum(dtype=torch.float32).clamp(min=1)).to(x.dtype)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"drop_prob={self.drop_prob}, block_size={self.block_size}, ramp={self.ramp}"
