"""Elements past 2^31 are found. Memory is claimed for them, and nearly none of it touched."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from d2proj import ops

HEIGHT, WIDTH = 32_800, 65_536  # 2.15e9 cells
SIDE = 24
FAR = 2**31 + 8


def sparse(*shape: int) -> Tensor:
    """A bfloat16 tensor whose pages nobody has written: they take no memory, and read as zero."""
    try:
        return torch.empty(shape, dtype=torch.bfloat16)
    except RuntimeError as error:
        pytest.skip(f"no address space for {shape}: {error}")


def values() -> Tensor:
    """(1, 1, SIDE, SIDE)."""
    return torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).bfloat16()


def large_map() -> tuple[Tensor, int, tuple[int, int]]:
    """The values in the far corner of one map."""
    input = sparse(1, 1, HEIGHT, WIDTH)
    input[:, :, -SIDE:, -SIDE:] = values()
    return input, 0, (HEIGHT - SIDE, WIDTH - SIDE)


def far_image() -> tuple[Tensor, int, tuple[int, int]]:
    """The values in the second of two images that lie 2^31 elements apart."""
    storage = sparse(FAR + SIDE * SIDE)
    input = storage.as_strided((2, 1, SIDE, SIDE), (FAR, SIDE * SIDE, SIDE, 1))
    input[0] = 0
    input[1] = values()[0]
    return input, 1, (0, 0)


def far_row() -> tuple[Tensor, int, tuple[int, int]]:
    """Rows and columns that lie far apart: the last of them past 2^31."""
    step = FAR // (SIDE - 1) + 1
    input = sparse((SIDE - 1) * (step + 1) + 1).as_strided((1, 1, SIDE, SIDE), (1, 1, step, 1))
    input.copy_(values())
    return input, 0, (0, 0)


BOX = torch.tensor([[0.0, 3.2, 2.1, 17.7, 21.3], [0.0, 0.0, 1.0, 22.0, 9.0]])
TURNED = torch.tensor([[0.0, 11.2, 12.1, 9.0, 13.0, 25.0]])
OFFSET = torch.full((2, 2, 5, 5), 0.3)
POOLS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "roi_align": lambda x, b, t: ops.roi_align(x, b, 5, 1.0, 2, True),
    "multilevel_roi_align": lambda x, b, t: ops.multilevel_roi_align([x], b, 5, [1.0], 2),
    "roi_align_rotated": lambda x, b, t: ops.roi_align_rotated(x, t, 5, 1.0, 2),
    "roi_pool": lambda x, b, t: ops.roi_pool(x, b, 5),
    "ps_roi_pool": lambda x, b, t: ops.ps_roi_pool(x, b, 1),
    "ps_roi_align": lambda x, b, t: ops.ps_roi_align(x, b, 1, 1.0, 2),
    "spatial_pyramid_pool": lambda x, b, t: ops.spatial_pyramid_pool(x, b),
    "deform_roi_pool": lambda x, b, t: ops.deform_roi_pool(x, b, OFFSET, 5, 1.0, 2),
    "deform_ps_roi_pool": lambda x, b, t: ops.deform_ps_roi_pool(x, b, OFFSET[:, :, :1, :1], 1),
}
# Their argmax is an int32 cell number, or their plan counts cells in 32 bits.
FEWER_CELLS = ("roi_pool", "ps_roi_pool", "ps_roi_align", "spatial_pyramid_pool")


def at(boxes: Tensor, image: int, corner: tuple[int, int], *columns: int) -> Tensor:
    """The boxes in another image, moved; ``columns`` are those of x and y."""
    moved = boxes.clone()
    moved[:, 0] = image
    for i, column in enumerate(columns):
        moved[:, column] += corner[1 - i % 2]
    return moved


@pytest.mark.parametrize("place", [large_map, far_image, far_row])
@pytest.mark.parametrize("name", POOLS)
def test_pooling_reads_past_2_31(name: str, place: Callable) -> None:
    input, image, corner = place()
    boxes, turned = at(BOX, image, corner, 1, 2, 3, 4), at(TURNED, image, corner, 1, 2)
    if place is large_map and name in FEWER_CELLS:
        message = f"{name}: a map must have fewer than 2^31 cells, got {HEIGHT} x {WIDTH}"
        with pytest.raises(RuntimeError, match=re.escape(message)):
            POOLS[name](input, boxes, turned)
        return
    expected = POOLS[name](values(), BOX, TURNED)
    assert expected.abs().max() > 0.05
    got = POOLS[name](input, boxes, turned)
    torch.testing.assert_close(got, expected, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("place", [far_image, far_row])
def test_deform_conv2d_reads_past_2_31(place: Callable) -> None:
    input, image, _ = place()
    g = torch.Generator().manual_seed(1)
    offset = torch.randn(1, 18, SIDE, SIDE, generator=g)
    weight = torch.randn(4, 1, 3, 3, generator=g).bfloat16()
    expected = ops.deform_conv2d(values(), offset, weight, padding=1)
    many = offset.expand(len(input), -1, -1, -1)
    got = ops.deform_conv2d(input, many, weight, padding=1)[image : image + 1]
    torch.testing.assert_close(got, expected, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("place", [far_image, far_row])
@pytest.mark.parametrize("direction", ["top", "bottom", "left", "right"])
def test_corner_pool_reads_past_2_31(direction: str, place: Callable) -> None:
    input, image, _ = place()
    got = ops.corner_pool(input, direction)[image : image + 1]
    assert torch.equal(got, ops.corner_pool(values(), direction))
