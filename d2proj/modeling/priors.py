"""Anchors: boxes of fixed shapes centred on the cells of feature maps."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class AnchorGenerator(nn.Module):
    """Anchors of every size and ratio at every cell, those of Detectron2's default generator.

    Args:
        sizes: for each level, square roots of anchor areas in pixels; one list serves all levels.
        aspect_ratios: height / width; one list serves all levels.
        strides: stride of each level, in pixels.
        offset: position of the first centre, in strides: 0 is the image's corner, 0.5 the cell's
            centre.
    """

    box_dim = 4

    def __init__(
        self,
        *,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[Sequence[float]],
        strides: Sequence[int],
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0.0 <= offset < 1.0:
            raise ValueError(f"anchor offset must be in [0, 1), got {offset}")
        self.strides = list(strides)
        self.offset = offset
        self._shapes = list(
            zip(
                _per_level("sizes", sizes, len(self.strides)),
                _per_level("aspect_ratios", aspect_ratios, len(self.strides)),
                strict=True,
            )
        )
        self._cache: tuple[object, list[Tensor]] | None = None

    @property
    def num_anchors(self) -> list[int]:
        """Anchors per cell of each level."""
        return [len(sizes) * len(ratios) for sizes, ratios in self._shapes]

    def cell_anchors(self, sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
        """Anchors of one cell around the origin, (len(sizes) * len(ratios), 4), sizes outermost."""
        anchors = []
        for size in sizes:
            for ratio in aspect_ratios:
                w = math.sqrt(size**2 / ratio)
                h = ratio * w
                anchors.append((-w / 2, -h / 2, w / 2, h / 2))
        return torch.tensor(anchors, dtype=torch.float32)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Anchors of each level's map (N, C, H, W): (H * W * A, 4) float32, A innermost.

        The last answer is kept: batches of one size, the common case, cost nothing.
        """
        sizes = [(int(x.shape[-2]), int(x.shape[-1])) for x in features]
        key = (sizes, features[0].device)
        if self._cache is None or self._cache[0] != key:
            if len(sizes) != len(self.strides):
                raise ValueError(f"anchors for {len(self.strides)} levels, got {len(sizes)} maps")
            # Outside inference mode, so that a later training step may use what is kept.
            with torch.inference_mode(False):
                grids = [
                    self._level(i, size).to(features[0].device) for i, size in enumerate(sizes)
                ]
            self._cache = (key, grids)
        return self._cache[1]

    def _level(self, level: int, size: tuple[int, int]) -> Tensor:
        stride = self.strides[level]
        y, x = (
            (torch.arange(n, dtype=torch.float32) + self.offset) * stride
            for n in (size[0], size[1])
        )
        y, x = torch.meshgrid(y, x, indexing="ij")
        shifts = torch.stack((x, y, x, y), dim=-1).view(-1, 1, 4)
        return (shifts + self.cell_anchors(*self._shapes[level])).view(-1, 4)


class RoundedAnchorGenerator(AnchorGenerator):
    """Anchors with corners rounded to whole pixels, as torchvision has them.

    For weights that were trained there: a shift of up to half a pixel is visible in small boxes.
    """

    def cell_anchors(self, sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
        """As in :class:`AnchorGenerator`, rounded."""
        return super().cell_anchors(sizes, aspect_ratios).round()


class DefaultBoxGenerator(AnchorGenerator):
    """SSD's default boxes, centred on the cells (Liu et al. 2016, section 2.2).

    A cell has a square of its level's size s, one of sqrt(s s'), s' being the next level's size,
    and for each ratio r a box of s sqrt(r) by s / sqrt(r), upright and lying, in this order.

    Args:
        sizes: s of each level and of the one that would follow the last, in pixels.
        aspect_ratios: r of each level; one list serves all.
        strides: of each level, in pixels.
        max_size: longest side in pixels; None: as long as the above makes it.
    """

    def __init__(
        self,
        *,
        sizes: Sequence[float],
        aspect_ratios: Sequence[Sequence[float]],
        strides: Sequence[int],
        max_size: float | None = None,
    ) -> None:
        if len(sizes) != len(strides) + 1:
            raise ValueError(
                f"default boxes of {len(strides)} levels take {len(strides) + 1} sizes, "
                f"got {len(sizes)}"
            )
        super().__init__(
            sizes=list(itertools.pairwise(sizes)),
            aspect_ratios=aspect_ratios,
            strides=strides,
            offset=0.5,
        )
        self.max_size = max_size

    @property
    def num_anchors(self) -> list[int]:
        """Default boxes per cell of each level."""
        return [2 + 2 * len(ratios) for _, ratios in self._shapes]

    def cell_anchors(self, sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
        """Default boxes of one cell around the origin, (2 + 2 * len(aspect_ratios), 4)."""
        size, following = sizes
        middle = math.sqrt(size * following)
        shapes = [(size, size), (middle, middle)]
        for ratio in aspect_ratios:
            long, short = size * math.sqrt(ratio), size / math.sqrt(ratio)
            shapes += [(long, short), (short, long)]
        half = 0.5 * torch.tensor(shapes, dtype=torch.float32).clamp(max=self.max_size or math.inf)
        return torch.cat((-half, half), dim=1)


def _per_level(
    name: str, values: Sequence[Sequence[float]], num_levels: int
) -> list[tuple[float, ...]]:
    if len(values) not in (1, num_levels):
        raise ValueError(f"anchor {name}: 1 or {num_levels} lists expected, got {len(values)}")
    lists = [tuple(level) for level in values]
    return lists * num_levels if len(lists) == 1 else lists
