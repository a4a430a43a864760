"""Convolutions with folded normalisation equal the two steps done one after the other."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.layers import Conv2d, FrozenBatchNorm2d, get_norm


def randomise(norm: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean"):
            getattr(norm, name).normal_()
        norm.running_var.uniform_(0.5, 2.0)
    return norm


def make(norm: Callable[[int], nn.Module], bias: bool = False) -> Conv2d:
    torch.manual_seed(0)
    layer = Conv2d(
        5, 8, 3, stride=2, padding=1, bias=bias, norm=randomise(norm(8)), activation=F.relu_
    )
    return layer.double()


def unfolded(layer: Conv2d, x: Tensor) -> Tensor:
    norm = layer.norm
    y = F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)
    y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    return y.relu()


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.BatchNorm2d])
@pytest.mark.parametrize("bias", [False, True])
def test_fold_in_evaluation(norm: Callable[[int], nn.Module], bias: bool) -> None:
    layer = make(norm, bias).eval()
    x = torch.randn(2, 5, 9, 11, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), unfolded(layer, x), rtol=1e-12, atol=1e-12)


def test_gradients_through_the_fold() -> None:
    layer = make(FrozenBatchNorm2d, bias=True).train()
    x = torch.randn(2, 5, 9, 11, dtype=torch.float64, requires_grad=True)
    inputs = (x, layer.weight, layer.bias)
    expected = torch.autograd.grad(unfolded(layer, x).square().sum(), inputs)
    found = torch.autograd.grad(layer(x).square().sum(), inputs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_trained_batch_norm_is_not_folded() -> None:
    layer = make(nn.BatchNorm2d).train()
    x = torch.randn(4, 5, 9, 11, dtype=torch.float64)
    before = layer.norm.running_mean.clone()
    with torch.no_grad():
        y = layer(x)
    assert y.mean() != unfolded(layer, x).mean()
    assert not torch.equal(before, layer.norm.running_mean)


@torch.no_grad()
@pytest.mark.parametrize("tensor", ["weight", "norm.running_var", "norm.bias"])
def test_fold_follows_its_tensors(tensor: str) -> None:
    layer = make(FrozenBatchNorm2d).eval()
    x = torch.randn(1, 5, 6, 6, dtype=torch.float64)
    layer(x)
    state = layer.state_dict()
    state[tensor] = state[tensor] * 1.5
    layer.load_state_dict(state)
    torch.testing.assert_close(layer(x), unfolded(layer, x))
    layer.get_parameter(tensor).mul_(2) if tensor == "weight" else layer.get_buffer(tensor).mul_(2)
    torch.testing.assert_close(layer(x), unfolded(layer, x))
    layer.float()
    assert layer(x.float()).dtype == torch.float32


def test_fold_is_of_use_after_inference_mode() -> None:
    layer = make(FrozenBatchNorm2d).requires_grad_(False)  # a frozen stage
    x = torch.randn(1, 5, 6, 6, dtype=torch.float64)
    with torch.inference_mode():
        layer(x)
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None


def test_copies_leave_the_fold_behind() -> None:
    layer = make(FrozenBatchNorm2d).eval()
    x = torch.randn(1, 5, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        expected = layer(x)
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert twin._fold is None
            assert torch.equal(twin(x), expected)


def test_state_dict_names() -> None:
    names = set(Conv2d(3, 4, 1, bias=False, norm=get_norm("FrozenBN", 4)).state_dict())
    norm = {"norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"}
    assert names == {"weight"} | norm
