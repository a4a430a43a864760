"""Fused convolutions compute what torch computes in float64, and leave the model as it was."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.darknet import network as darknet_network
from d2proj.evaluation import evaluating
from d2proj.layers import Conv2d, FrozenBatchNorm2d, conv_norm_act, fused, fused_inference
from d2proj.layers.activation import ACTIVATIONS
from d2proj.ops import _ext
from d2proj.utils.testing import run_python

pytestmark = pytest.mark.skipif(not _ext.AVAILABLE, reason="the ops are not built")

FUSED = ["linear", "leaky", "relu", "relu6", "logistic", "swish", "mish"]
# Bounds of the error, of the largest value of the result: a direct sum and Winograd's.
DIRECT, WINOGRAD = 2e-6, 2e-5


def random_layer(channels: int, outputs: int, kernel: int, **options: Any) -> Conv2d:
    torch.manual_seed(0)
    options.setdefault("norm", "BN")
    layer = conv_norm_act(channels, outputs, kernel, **options).eval()
    if isinstance(layer.norm, nn.BatchNorm2d | FrozenBatchNorm2d):
        layer.norm.weight.data.uniform_(0.5, 2)
        layer.norm.bias.data.uniform_(-1, 1)
        layer.norm.running_mean.uniform_(-1, 1)
        layer.norm.running_var.uniform_(0.5, 2)
    if layer.bias is not None:
        layer.bias.data.uniform_(-1, 1)
    return layer


def exact(layer: Conv2d, x: Tensor) -> Tensor:
    """The layer in float64, normalisation and activation as separate steps."""
    layer = copy.deepcopy(layer).double()
    y = F.conv2d(
        x.double(),
        layer.weight,
        layer.bias,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
    )
    if layer.norm is not None:
        n = layer.norm
        y = F.batch_norm(y, n.running_mean, n.running_var, n.weight, n.bias, eps=n.eps)
    return (y if layer.activation is None else layer.activation(y)).detach()


def run(layer: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """The layer fused; fails if the kernel was not used."""
    calls = []
    original = fused.run
    fused.run = lambda *args: calls.append(0) or original(*args)  # type: ignore[func-returns-value]
    try:
        with torch.inference_mode(), fused_inference():
            result = layer(*inputs)
    finally:
        fused.run = original
    assert calls, "the layer did not run fused"
    return result


def error(result: Tensor, expected: Tensor) -> float:
    assert result.shape == expected.shape
    return ((result - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("activation", FUSED)
@pytest.mark.parametrize("kernel", [1, 3])
def test_every_activation(activation: str, kernel: int) -> None:
    layer = random_layer(20, 37, kernel, activation=activation)
    x = 3 * torch.randn(2, 20, 9, 14)
    assert error(run(layer, x), exact(layer, x)) < (WINOGRAD if kernel == 3 else DIRECT)


@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "options"),
    [
        (3, 32, 3, {}),  # a first layer
        (3, 16, 3, {"stride": 2}),
        (33, 64, 3, {"stride": 2}),
        (300, 70, 3, {"stride": 2}),  # taps in several goes
        (1100, 17, 1, {}),
        (64, 255, 1, {"norm": None, "activation": "linear"}),
        (24, 24, 3, {"dilation": 2}),
        (24, 24, 5, {}),
        (24, 24, 3, {"groups": 24}),  # depthwise: whole and partial vectors, borders
        (37, 37, 3, {"groups": 37, "stride": 2}),
        (16, 16, 5, {"groups": 16}),
        (16, 33, 3, {"norm": "FrozenBN"}),
        (16, 33, 3, {"norm": None}),
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (6, 7), (40, 33), (7, 211)])
def test_every_shape(
    channels: int, outputs: int, kernel: int, options: dict[str, Any], size: tuple[int, int]
) -> None:
    layer = random_layer(channels, outputs, kernel, **options)
    for batch in (1, 3):
        x = torch.randn(batch, channels, *size)
        assert error(run(layer, x), exact(layer, x)) < WINOGRAD


def test_rectangular_kernels_strides_and_paddings() -> None:
    torch.manual_seed(0)
    layer = Conv2d(
        18, 20, (3, 5), stride=(2, 1), padding=(0, 3), dilation=(1, 2), activation=F.relu
    )
    x = torch.randn(2, 18, 11, 17)
    assert error(run(layer, x), exact(layer, x)) < DIRECT


def test_winograd_without_padding_and_with_more_than_it_needs() -> None:
    for padding in (0, 2, 3):
        torch.manual_seed(0)
        layer = Conv2d(16, 16, 3, padding=padding, activation=F.mish)
        x = torch.randn(2, 16, 10, 15)
        assert error(run(layer, x), exact(layer, x)) < WINOGRAD


@pytest.mark.parametrize("kernel", [1, 3])
def test_residual_is_added_after_the_activation(kernel: int) -> None:
    layer = random_layer(16, 40, kernel)
    x, residual = torch.randn(2, 16, 13, 6), torch.randn(2, 40, 13, 6)
    expected = exact(layer, x) + residual
    assert error(run(layer, x, residual), expected) < WINOGRAD
    with torch.no_grad():
        assert error(layer(x, residual), expected) < DIRECT  # the plain way


def test_layouts_of_the_input_do_not_matter_and_the_result_is_channels_last() -> None:
    layer = random_layer(16, 32, 3)
    x = torch.randn(2, 16, 8, 12)
    views = [x, x.contiguous(memory_format=torch.channels_last)]
    views.append(torch.randn(2, 16, 16, 12)[:, :, ::2].copy_(x))
    views.append(torch.randn(2, 40, 8, 12)[:, 8:24].copy_(x))  # one group of a route
    results = [run(layer, view) for view in views]
    for result in results:
        assert torch.equal(result, results[0])
        assert result.is_contiguous(memory_format=torch.channels_last)


def test_an_empty_batch() -> None:
    for kernel in (1, 3):
        assert run(random_layer(16, 32, kernel), torch.randn(0, 16, 5, 6)).shape == (0, 32, 5, 6)


def test_nan_and_infinity_reach_the_output() -> None:
    for kernel in (1, 3):
        layer = random_layer(16, 16, kernel, activation="mish")
        for bad in (math.nan, math.inf):
            x = torch.zeros(1, 16, 8, 8)
            x[0, 0, 3, 3] = bad
            assert not run(layer, x).isfinite().all()


def test_activations_at_the_ends_of_the_range() -> None:
    values = torch.tensor([-1e30, -200, -50, -20, -1e-3, 0, 1e-3, 20, 50, 200, 1e30])
    x = values.view(1, 1, 1, -1).contiguous()
    for name in FUSED:
        layer = Conv2d(1, 1, 1, activation=ACTIVATIONS[name])
        layer.weight.data.fill_(1)
        nn.init.zeros_(layer.bias)
        result = run(layer, x).flatten()
        expected = values if name == "linear" else ACTIVATIONS[name](values)  # type: ignore[misc]
        torch.testing.assert_close(result, expected, rtol=3e-6, atol=1e-20)


def test_threads_change_no_bit() -> None:
    threads = torch.get_num_threads()
    for channels, outputs, kernel in ((16, 40, 3), (20, 300, 1), (20, 20, 3)):
        x = torch.randn(2, channels, 30, 31)
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(run(random_layer(channels, outputs, kernel), x))
        torch.set_num_threads(threads)
        assert torch.equal(*results)


@pytest.mark.parametrize("level", ["base", "avx2"])
def test_lower_simd_levels(level: str) -> None:
    code = """
from tests.layers.test_fused import *
for args, options in (((20, 37, 3), {}), ((20, 37, 1), {}), ((20, 20, 3), {"groups": 20})):
    for activation in FUSED:
        layer = random_layer(*args, activation=activation, **options)
        x = torch.randn(1, 20, 9, 14)
        assert error(run(layer, x), exact(layer, x)) < WINOGRAD, (args, activation)
"""
    done = run_python(code, {"D2PROJ_SIMD": level})
    assert done.returncode == 0, done.stderr


def test_changed_weights_are_packed_anew() -> None:
    layer = random_layer(16, 16, 3)
    x = torch.randn(1, 16, 8, 8)
    run(layer, x)
    layer.weight.data.mul_(2)  # leaves no trace, but train() forgets
    layer.train().eval()
    assert error(run(layer, x), exact(layer, x)) < WINOGRAD
    with torch.no_grad():
        assert layer.norm is not None
        layer.norm.running_mean.add_(1)
        layer.weight.add_(0.1)
    assert error(run(layer, x), exact(layer, x)) < WINOGRAD
    layer.load_state_dict(random_layer(16, 16, 3).state_dict())
    assert error(run(layer, x), exact(layer, x)) < WINOGRAD


def test_the_model_stays_as_it_was() -> None:
    layer = random_layer(16, 16, 3)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    x = torch.randn(1, 16, 8, 8)
    result = run(layer, x)
    after = layer.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(run(copy.deepcopy(layer), x), result)
    layer.train()
    assert layer._packed is None
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()


def test_what_is_not_fused_runs_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = random_layer(16, 16, 3)
    x = torch.randn(1, 16, 8, 8)
    with torch.no_grad():
        plain = layer(x)

    def refuse(*args: Any) -> Tensor:
        raise AssertionError("fused")

    monkeypatch.setattr(fused, "run", refuse)
    with torch.no_grad():
        assert torch.equal(layer(x), plain)  # outside
        with fused_inference(False):
            assert torch.equal(layer(x), plain)
    with fused_inference():
        layer(x).sum().backward()  # gradients
        with torch.no_grad():
            layer.double()(x.double())
            layer.bfloat16()(x.bfloat16())
            layer.float()
            with torch.autocast("cpu", torch.bfloat16):
                assert layer(x).dtype == torch.bfloat16
            random_layer(16, 16, 3, groups=2)(x)
            random_layer(16, 16, 3, activation="gelu")(x)
            Conv2d(16, 16, 3, padding=1, padding_mode="reflect")(x)
            Conv2d(16, 16, 3, padding="same")(x)
            layer.train()(torch.randn(2, 16, 4, 4))
    assert not fused.is_fused()


def test_evaluating_switches_it_on_and_off() -> None:
    model = nn.Sequential(random_layer(16, 16, 3))
    with evaluating(model):
        assert fused.is_fused()
    with evaluating(model, fuse=False):
        assert not fused.is_fused()


def test_opcheck() -> None:
    for options in ({"stride": 2}, {"groups": 20}, {}):
        layer, x = random_layer(20, 20, 3, **options), torch.randn(2, 20, 9, 7)
        with torch.no_grad():
            packed = layer._pack()
        sizes = (20, 3, 3, *layer.stride, *layer.padding, 1, 1)
        call = (
            x,
            packed.weight,
            packed.bias,
            None,
            *sizes,
            packed.winograd,
            layer.groups > 1,
            1,
            0.1,
        )
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(torch.ops.d2proj._fused_conv2d, call, test_utils=tests)


def test_wrong_arguments_are_worded() -> None:
    layer = random_layer(16, 16, 3)
    with pytest.raises(RuntimeError, match="fused_conv2d: weight must be packed"):
        run(layer, torch.randn(1, 17, 8, 8))
    with pytest.raises(RuntimeError, match="fused_conv2d: residual must have"):
        run(layer, torch.randn(1, 16, 8, 8), torch.randn(1, 16, 8, 9))
    with pytest.raises(RuntimeError, match="kernel is larger"):
        run(Conv2d(16, 16, 5), torch.randn(1, 16, 4, 4))


CFG = """
[net]
height=64
width=64
channels=3

[convolutional]
filters=32
size=3
stride=2
pad=1
batch_normalize=1
activation=mish

[convolutional]
filters=16
size=1
batch_normalize=1
activation=leaky

[convolutional]
filters=32
size=3
pad=1
batch_normalize=1
activation=leaky

[dropout]
probability=0.5

[shortcut]
from=-4
activation=linear

[convolutional]
filters=32
size=3
pad=1
activation=leaky

[shortcut]
from=-2
activation=leaky

[convolutional]
filters=32
size=3
pad=1
activation=linear

[route]
layers=-1,-2

[shortcut]
from=-2
activation=linear

[maxpool]
size=2
stride=2

[convolutional]
filters=18
size=1
activation=linear

[yolo]
mask=0,1,2
anchors=10,13, 16,30, 33,23
classes=1
num=3
"""


def test_networks_of_cfg_files_with_sums_in_their_convolutions() -> None:
    torch.manual_seed(0)
    net = darknet_network.DarknetNetwork(CFG).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    # Only the first sum can go into the convolution before it: the second has an activation of its
    # own, and the third adds what is no convolution.
    assert net._residuals == {2: 0}
    assert net._folded_sums == {4}
    x = torch.randn(2, 3, 64, 64)
    expected = copy.deepcopy(net).double()(x.double())[0].detach()
    assert error(run(lambda y: net(y)[0], x), expected) < WINOGRAD


def test_eval_drops_what_a_write_through_data_made_stale() -> None:
    layer = conv_norm_act(4, 8, 3).eval()
    x = torch.rand(1, 4, 6, 6)
    with torch.inference_mode(), fused_inference():
        before = layer(x)
        layer.weight.data.mul_(2)
        layer.eval()
        after = layer(x)
    assert not torch.allclose(before, after)
