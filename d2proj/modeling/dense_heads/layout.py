"""How predictions of a map are laid out."""

from torch import Tensor


def per_anchor(x: Tensor, size: int) -> Tensor:
    """(N, A * size, H, W) -> (N, H * W * A, size); no copy if ``x`` is channels-last."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, size)
