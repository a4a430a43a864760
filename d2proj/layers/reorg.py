"""Maps of fewer, deeper cells: YOLOv2's passthrough."""

from torch import Tensor, nn


def space_to_depth(x: Tensor, stride: int) -> Tensor:
    """(N, C, H, W) -> (N, stride² C, H / stride, W / stride), offset (row, column) before channel.

    ``torch.pixel_unshuffle`` has the channel first.
    """
    n, c, h, w = x.shape
    x = x.unflatten(3, (-1, stride)).unflatten(2, (-1, stride))  # N, C, H', sh, W', sw
    return x.permute(0, 3, 5, 1, 2, 4).reshape(n, c * stride**2, h // stride, w // stride)


class SpaceToDepth(nn.Module):
    """:func:`space_to_depth` (darknet's ``[reorg3d]``)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, stride² C, H / stride, W / stride)."""
        return space_to_depth(x, self.stride)


class Reorg(nn.Module):
    """darknet's ``[reorg]``, which YOLOv2's published weights were trained with.

    It takes the map's memory for one of C / stride² channels and stride times the sides, does
    :func:`space_to_depth` to that, and takes the result's memory for the map that it should be.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), stride² dividing C -> (N, stride² C, H / stride, W / stride)."""
        n, c, h, w = x.shape
        s = self.stride
        deep = space_to_depth(x.reshape(n, c // s**2, h * s, w * s), s)
        return deep.reshape(n, c * s**2, h // s, w // s)
