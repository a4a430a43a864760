"""Normalisation layers against torch's own."""

import pytest
import torch
from torch import nn

from d2proj.layers import FrozenBatchNorm2d, PerLevelBatchNorm2d, get_norm
from d2proj.layers.norm import freeze


def trained_batch_norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(6, eps=1e-3)
    for _ in range(3):
        norm(torch.randn(4, 6, 5, 5) * 3 + 1)
    nn.init.normal_(norm.weight)
    return norm


def test_frozen_equals_batch_norm_in_evaluation() -> None:
    norm = trained_batch_norm().eval()
    x = torch.randn(2, 6, 4, 4)
    torch.testing.assert_close(FrozenBatchNorm2d.from_batch_norm(norm)(x), norm(x))


def test_freeze() -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Sequential(trained_batch_norm(), nn.ReLU()))
    x = torch.randn(2, 3, 4, 4)
    expected = module.eval()(x)
    frozen = freeze(module).train()
    torch.testing.assert_close(frozen(x), expected)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())


def test_levels_have_their_own_statistics() -> None:
    norm = PerLevelBatchNorm2d(2, 6)
    fine, coarse = torch.randn(2, 6, 8, 8) + 5, torch.randn(2, 6, 4, 4) - 5
    for _ in range(100):
        for level, x in enumerate((fine, coarse)):
            torch.testing.assert_close(norm(x, level), nn.BatchNorm2d(6)(x), rtol=1e-4, atol=1e-4)
    norm.eval()
    for level, x in enumerate((fine, coarse)):
        assert norm(x, level).mean().abs() < 0.05


def test_a_single_value_is_normalised_by_running_statistics() -> None:
    norm = PerLevelBatchNorm2d(1, 6)
    y = norm(torch.full((1, 6, 1, 1), 3.0), 0)
    torch.testing.assert_close(y, torch.full_like(y, 3.0), rtol=1e-4, atol=1e-4)


def test_get_norm() -> None:
    assert get_norm("", 8) is None
    assert isinstance(get_norm("GN", 64), nn.GroupNorm)
    assert isinstance(get_norm(nn.InstanceNorm2d, 8), nn.InstanceNorm2d)
    with pytest.raises(ValueError, match=r"norm must be one of .*, got 'bn'"):
        get_norm("bn", 8)


def test_batch_norm_of_one_value_takes_running_statistics() -> None:
    norm = get_norm("BN", 6)
    for _ in range(3):
        norm(torch.randn(4, 6, 5, 5) * 3 + 1)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    x = torch.randn(1, 6, 1, 1)
    trained = norm(x)
    trained.sum().backward()
    assert bool(norm.bias.grad.eq(1).all())
    torch.testing.assert_close(trained, norm.eval()(x))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    peer = nn.BatchNorm2d(6)
    peer.load_state_dict(norm.state_dict())
    x = torch.randn(1, 6, 1, 2)
    torch.testing.assert_close(norm.train()(x), peer(x))
