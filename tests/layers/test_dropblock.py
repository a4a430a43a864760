"""DropBlock: what it drops, against torchvision's, and its schedule."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import drop_block2d

from d2proj.engine.hooks import ModuleSchedules
from d2proj.layers import DropBlock


def expected_rates(height: int, width: int, prob: float, block: int) -> torch.Tensor:
    """How often each cell is dropped, by the paper's gamma: unless no square covers it."""
    valid = (height - block + 1, width - block + 1)
    gamma = prob / block**2 * height * width / (valid[0] * valid[1])
    covers = F.conv2d(torch.ones(1, 1, *valid), torch.ones(1, 1, block, block), padding=block - 1)
    return 1 - (1 - gamma) ** covers[0, 0]


@pytest.mark.parametrize(("prob", "block"), [(0.1, 7), (0.3, 5), (0.2, 4), (0.2, 1)])
def test_share_dropped(prob: float, block: int) -> None:
    torch.manual_seed(0)
    x = torch.ones(128, 64, 12, 15)
    expected = expected_rates(12, 15, prob, block)
    peers = [DropBlock(prob, block)(x)]
    if block % 2:  # torchvision takes no other
        peers.append(drop_block2d(x, prob, block))
    for y in peers:
        rates = (y == 0).float().mean((0, 1))
        torch.testing.assert_close(rates, expected, atol=0.02, rtol=0)
        assert float(rates.mean()) == pytest.approx(float(expected.mean()), rel=0.03)
        assert float(y.mean()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("block", [3, 4, 7])
def test_what_is_dropped_is_a_union_of_squares(block: int) -> None:
    torch.manual_seed(0)
    dropped = (DropBlock(0.15, block)(torch.ones(8, 4, 19, 17)) == 0).float()
    assert 0 < dropped.mean() < 0.3
    # Erosion finds the squares' corners; their dilation must give everything back.
    corners = -F.max_pool2d(-dropped, block, stride=1)
    squares = F.max_pool2d(F.pad(corners, (block - 1,) * 4), block, stride=1)
    assert torch.equal(squares, dropped)


def test_a_block_is_never_larger_than_the_map() -> None:
    torch.manual_seed(0)
    y = DropBlock(0.5, 7)(torch.ones(400, 1, 3, 3))
    whole = (y == 0).flatten(1).sum(1)
    assert set(whole.tolist()) == {0, 9}
    assert 0.4 < float((whole == 9).float().mean()) < 0.6


def test_evaluation_changes_nothing() -> None:
    x = torch.randn(2, 3, 9, 9)
    assert torch.equal(DropBlock(0.5, 3).eval()(x), x)


def test_schedule() -> None:
    blocks = nn.ModuleList([DropBlock(0.2), nn.ReLU(), DropBlock(0.2, ramp=0.85)])
    assert blocks[0].current_drop_prob == 0.2  # without a trainer
    for iteration, expected in ((0, (0.0, 0.0)), (50, (0.1, 0.2 * 50 / 85)), (90, (0.18, 0.2))):
        # A hook that starts at any iteration finds the same state: resumed runs are alike.
        hook = ModuleSchedules()
        hook.trainer = SimpleNamespace(plain_model=blocks, iter=iteration, max_iter=100)
        hook.before_train()
        hook.before_step()
        found = (blocks[0].current_drop_prob, blocks[2].current_drop_prob)
        assert found == pytest.approx(expected)
    blocks[0].set_progress(0.0)
    x = torch.randn(2, 3, 9, 9)
    assert torch.equal(blocks[0](x), x)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"drop_prob in \[0, 1\), a positive block_size and ramp"):
        DropBlock(1.0)
    with pytest.raises(ValueError, match=r"got 0\.1, 7 and 0"):
        DropBlock(ramp=0)
