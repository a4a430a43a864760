"""More than 2^31 elements: the last are found. Memory is claimed, nearly none of it touched."""

import pytest
import torch
from torch import Tensor

from d2proj import ops

HEIGHT, WIDTH = 32_800, 65_536  # 2.15e9 cells
SIDE = 24


def sparse(*shape: int) -> Tensor:
    """A bfloat16 tensor whose pages nobody has written: they take no memory, and read as zero."""
    try:
        return torch.empty(shape, dtype=torch.bfloat16)
    except RuntimeError as error:
        pytest.skip(f"no address space for {shape}: {error}")


def corner(layout: str) -> tuple[Tensor, Tensor]:
    """A map of more than 2^31 elements, and its last SIDE x SIDE cells by themselves."""
    if layout == "nchw":
        input = sparse(1, 1, HEIGHT, WIDTH)
    else:  # many channels: the offset of a channel, not of a row, is what grows
        input = sparse(1, WIDTH, HEIGHT, 1).transpose(1, 3)
    small = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0)).bfloat16()
    input[0, 0, -SIDE:, -SIDE:] = small
    return input, small[None, None]


BOX = torch.tensor([[0.0, 3.2, 2.1, 17.7, 21.3], [0.0, 0.0, 1.0, 22.0, 9.0]])
MOVED = BOX + torch.tensor([0.0, WIDTH - SIDE, HEIGHT - SIDE, WIDTH - SIDE, HEIGHT - SIDE])


@pytest.mark.parametrize("layout", ["nchw", "transposed"])
def test_roi_align_reads_past_2_31(layout: str) -> None:
    input, small = corner(layout)
    assert input.numel() > 2**31
    got = ops.roi_align(input, MOVED, 5, sampling_ratio=2, aligned=True)
    expected = ops.roi_align(small, BOX, 5, sampling_ratio=2, aligned=True)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(got, expected, atol=1e-2, rtol=1e-2)
