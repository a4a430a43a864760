"""deform_conv2d against torchvision, conv2d, the twin, and what docs/ops/deform_conv2d.md says."""

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from d2proj.ops import (
    DeformConv2d,
    DeformConv2dPack,
    ModulatedDeformConv2dPack,
    deform_conv2d,
    reference,
)
from d2proj.utils.testing import FLOATING, TOLERANCE, devices, in_layout, run_python

NAN, INF = float("nan"), float("inf")


def make(
    seed: int = 0,
    n: int = 2,
    c: int = 12,
    out: int = 8,
    h: int = 9,
    w: int = 11,
    kernel: tuple[int, int] = (3, 3),
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    offset_groups: int = 1,
    dtype: torch.dtype = torch.float32,
    mask: bool = True,
    bias: bool = True,
) -> tuple[dict[str, Any], tuple[tuple[int, int], ...]]:
    """Tensor arguments by name, and stride, padding, dilation."""
    g = torch.Generator().manual_seed(seed)
    size = [
        (s + 2 * p - d * (k - 1) - 1) // t + 1
        for s, p, d, k, t in zip((h, w), padding, dilation, kernel, stride, strict=True)
    ]
    taps = offset_groups * kernel[0] * kernel[1]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    depth = c // groups * kernel[0] * kernel[1]
    tensors = {
        "input": normal(n, c, h, w),
        "offset": normal(n, 2 * taps, *size) * 3,
        "weight": normal(out, c // groups, *kernel) / depth**0.5,
        "bias": normal(out) if bias else None,
        "mask": normal(n, taps, *size).sigmoid() if mask else None,
    }
    return tensors, (stride, padding, dilation)


def call(function, tensors: dict[str, Any], steps: tuple) -> Tensor:
    stride, padding, dilation = steps
    return function(**tensors, stride=stride, padding=padding, dilation=dilation)


def with_grads(function, tensors: dict[str, Any], steps: tuple) -> list[Tensor]:
    """The result and every argument's gradient."""
    leaves = {k: t if t is None else t.detach().requires_grad_() for k, t in tensors.items()}
    output = call(function, leaves, steps)
    g = torch.Generator().manual_seed(1)
    up = torch.randn(output.shape, generator=g, dtype=torch.float64).to(output)
    wanted = [t for t in leaves.values() if t is not None]
    return [output.detach(), *torch.autograd.grad(output, wanted, up)]


def assert_close(got: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """To ``tolerance`` of the largest value: sums are taken in another order."""
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a.double(), b.double(), atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("seed", range(40))
def test_equals_torchvision_forward_and_every_gradient(seed: int) -> None:
    pick = torch.Generator().manual_seed(seed)

    def draw(*options):
        return options[int(torch.randint(len(options), (1,), generator=pick))]

    groups, offset_groups = draw(1, 1, 2, 4, 12), draw(1, 1, 2, 3)
    dtype = draw(torch.float32, torch.float64)
    tensors, steps = make(
        seed,
        n=draw(1, 2, 33, 65),
        c=12 * draw(1, 2, 11),
        out=groups * draw(1, 3, 8, 17),
        h=draw(7, 12),
        w=draw(6, 13),
        kernel=draw((3, 3), (1, 1), (2, 5)),
        stride=(draw(1, 2), draw(1, 3)),
        padding=(draw(0, 1, 3), draw(0, 2)),
        dilation=(draw(1, 2), 1),
        groups=groups,
        offset_groups=offset_groups,
        dtype=dtype,
        mask=draw(True, False),
        bias=draw(True, False),
    )
    tensors["input"] = in_layout(tensors["input"], draw("nchw", "nhwc", "sliced", "permuted"))
    tensors["offset"] = in_layout(tensors["offset"], draw("nchw", "nhwc"))
    if draw(True, False):
        tensors["offset"] = tensors["offset"].round()  # on the pixels, and on the very border
    got = with_grads(deform_conv2d, tensors, steps)
    expected = with_grads(torchvision.ops.deform_conv2d, tensors, steps)
    assert_close(got, expected, 1e-4 if dtype == torch.float32 else 1e-11)


def transcription(x, offset, weight, bias, stride, padding, dilation, mask) -> np.ndarray:
    """Equations 2 to 4 of the papers as loops, one offset group: y(p) = sum w_k x(p + p_k + d) m.

    x(q) = sum over the map of G(q, r) x(r), with G(q, r) the product of max(0, 1 - |q - r|).
    """
    images, _, height, width = x.shape
    outputs, _, kernel_h, kernel_w = weight.shape
    out_h, out_w = offset.shape[2:]
    result = np.zeros((images, outputs, out_h, out_w))
    rows, columns = np.arange(height), np.arange(width)
    for n, i, j in np.ndindex(images, out_h, out_w):
        for t in range(kernel_h * kernel_w):
            y = i * stride[0] - padding[0] + t // kernel_w * dilation[0] + offset[n, 2 * t, i, j]
            z = j * stride[1] - padding[1] + t % kernel_w * dilation[1] + offset[n, 2 * t + 1, i, j]
            kernel = np.outer(np.maximum(0, 1 - abs(y - rows)), np.maximum(0, 1 - abs(z - columns)))
            value = (x[n] * kernel).sum((1, 2)) * mask[n, t, i, j]
            result[n, :, i, j] += weight[:, :, t // kernel_w, t % kernel_w] @ value
    return result + bias[:, None, None]


def test_equals_the_papers_equation() -> None:
    tensors, steps = make(
        h=6, w=5, n=1, kernel=(3, 2), stride=(2, 1), dilation=(1, 2), dtype=torch.float64
    )
    arrays = {name: t.numpy() for name, t in tensors.items()}
    expected = transcription(
        arrays["input"],
        arrays["offset"],
        arrays["weight"],
        arrays["bias"],
        *steps,
        arrays["mask"],
    )
    for function in (deform_conv2d, reference.deform_conv2d.deform_conv2d):
        np.testing.assert_allclose(call(function, tensors, steps).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("layout", ["nchw", "nhwc", "sliced"])
@pytest.mark.parametrize(("groups", "offset_groups"), [(1, 1), (4, 2)])
def test_equals_twin_in_every_dtype_and_layout(
    device: str, dtype: torch.dtype, layout: str, groups: int, offset_groups: int
) -> None:
    tensors, steps = make(c=32, out=20, groups=groups, offset_groups=offset_groups, dtype=dtype)
    tensors = {k: t.to(device) for k, t in tensors.items()}
    tensors["input"] = in_layout(tensors["input"], layout)
    got = with_grads(deform_conv2d, tensors, steps)
    expected = with_grads(reference.deform_conv2d.deform_conv2d, tensors, steps)
    assert all(a.dtype == dtype for a in got)
    assert_close(got, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_offsets_are_conv2d(device: str, dtype: torch.dtype) -> None:
    for groups, steps in ((1, ((1, 1), (1, 1), (1, 1))), (3, ((2, 1), (0, 2), (1, 2)))):
        stride, padding, dilation = steps
        tensors, steps = make(
            groups=groups,
            out=9,
            stride=stride,
            padding=padding,
            dilation=dilation,
            dtype=dtype,
        )
        tensors = {k: t.to(device) for k, t in tensors.items()}
        tensors["offset"] *= 0
        tensors["mask"] = torch.ones_like(tensors["mask"])
        expected = nn.functional.conv2d(
            tensors["input"], tensors["weight"], tensors["bias"], *steps, groups
        )
        assert_close([call(deform_conv2d, tensors, steps)], [expected], TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", FLOATING)
def test_channels_last_in_channels_last_out(dtype: torch.dtype) -> None:
    tensors, steps = make(dtype=dtype)
    tensors["input"] = in_layout(tensors["input"], "nhwc")
    output, grad, *_ = with_grads(deform_conv2d, tensors, steps)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_features_with_float32_offsets(dtype: torch.dtype) -> None:
    """A place far from the origin needs more digits than half has."""
    tensors, steps = make(dtype=dtype, h=3, w=3000)
    for name in ("offset", "mask"):
        # Not on a row or column of pixels, where the slope jumps.
        tensors[name] = 0.1 + 0.8 * torch.rand(tensors[name].shape)
    got = with_grads(deform_conv2d, tensors, steps)
    assert [t.dtype for t in got] == [dtype, dtype, torch.float32, dtype, dtype, torch.float32]
    double = {k: t.double() for k, t in tensors.items()}
    expected = with_grads(torchvision.ops.deform_conv2d, double, steps)
    # Gradients of weight and bias are sums of thousands of terms.
    assert_close(got, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize(("groups", "offset_groups"), [(1, 1), (2, 2), (4, 1)])
def test_gradcheck(mask: bool, groups: int, offset_groups: int) -> None:
    tensors, steps = make(
        n=2,
        c=4,
        out=4,
        h=4,
        w=3,
        kernel=(2, 2),
        groups=groups,
        offset_groups=offset_groups,
        dtype=torch.float64,
        mask=mask,
    )
    # Away from the kinks on the pixels' rows and columns.
    offset = tensors["offset"]
    tensors["offset"] = offset.floor() + 0.1 + 0.8 * (offset - offset.floor())
    names = [k for k, t in tensors.items() if t is not None]
    assert torch.autograd.gradcheck(
        lambda *a: call(deform_conv2d, {**tensors, **dict(zip(names, a, strict=True))}, steps),
        [tensors[k].requires_grad_() for k in names],
    )


@pytest.mark.parametrize("wanted", ["input", "offset", "weight", "bias", "mask"])
def test_each_gradient_alone_is_the_same(wanted: str) -> None:
    tensors, steps = make(c=20, dtype=torch.float64)
    _, *every = with_grads(deform_conv2d, tensors, steps)
    expected = dict(zip(tensors, every, strict=True))[wanted]
    leaves = {k: t.detach() for k, t in tensors.items()}
    leaves[wanted].requires_grad_()
    output = call(deform_conv2d, leaves, steps)
    g = torch.Generator().manual_seed(1)
    up = torch.randn(output.shape, generator=g, dtype=torch.float64)
    assert torch.equal(torch.autograd.grad(output, leaves[wanted], up)[0], expected)


def test_double_backward_is_a_clear_error() -> None:
    tensors, steps = make()
    tensors["input"].requires_grad_()
    output = call(deform_conv2d, tensors, steps)
    (grad,) = torch.autograd.grad(output.square().sum(), tensors["input"], create_graph=True)
    with pytest.raises(RuntimeError, match="deform_conv2d: double backward is not supported"):
        grad.sum().backward()


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_opcheck(layout: str) -> None:
    for mask in (True, False):
        tensors, steps = make(mask=mask, bias=mask, h=5, w=4)
        tensors["input"] = in_layout(tensors["input"], layout)
        flat = [v for step in steps for v in step]
        order = [tensors[k] for k in ("input", "weight", "offset", "mask", "bias")]
        sample = [t if t is None else t.clone().requires_grad_() for t in order]
        torch.library.opcheck(torch.ops.d2proj.deform_conv2d.default, (*sample, *flat))
        grad = torch.randn(call(deform_conv2d, tensors, steps).shape)
        needed = (mask, True, True, mask)
        sample = (grad, *order[:4], *flat, *needed, False)
        torch.library.opcheck(torch.ops.d2proj._deform_conv2d_backward.default, sample)


def test_compiles_without_graph_breaks() -> None:
    compiled = torch.compile(
        lambda **a: deform_conv2d(**a, padding=1).sum(1), backend="aot_eager", fullgraph=True
    )
    for n in (2, 3):  # dynamic shapes
        tensors, _ = make(n=n)
        tensors["input"].requires_grad_()
        got, expected = compiled(**tensors), deform_conv2d(**tensors, padding=1).sum(1)
        assert torch.equal(got, expected)
        grads = [torch.autograd.grad(o.sum(), tensors["input"])[0] for o in (got, expected)]
        assert torch.equal(*grads)


def test_autocast_is_conv2ds() -> None:
    """Features and weights go down, offsets and mask stay."""
    tensors, steps = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = call(deform_conv2d, tensors, steps)
    lowered = {k: tensors[k].bfloat16() for k in ("input", "weight", "bias")}
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, call(deform_conv2d, {**tensors, **lowered}, steps))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer = ModulatedDeformConv2dPack(12, 8, 3, padding=1)
        output = layer(tensors["input"])
        assert output.dtype == torch.bfloat16
        output.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("device", devices())
def test_empty_inputs(device: str) -> None:
    for change in ({"n": 0}, {"out": 0}):
        tensors, steps = make(**change)
        tensors = {k: t.to(device) for k, t in tensors.items()}
        output, *grads = with_grads(deform_conv2d, tensors, steps)
        assert output.numel() == 0
        assert all(not g.any() for g in grads)
    tensors, _ = make(h=1, w=1, kernel=(1, 1), padding=(2, 2))
    tensors["input"] = tensors["input"][:, :, :0]
    tensors["offset"], tensors["mask"] = tensors["offset"][:, :, :4], tensors["mask"][:, :, :4]
    tensors = {k: t.to(device) for k, t in tensors.items()}
    output = call(deform_conv2d, tensors, ((1, 1), (2, 2), (1, 1)))
    assert torch.equal(output, tensors["bias"][:, None, None].expand_as(output))


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e30, -1e30, 3e9])
def test_offsets_that_are_no_place_read_zero(device: str, value: float) -> None:
    """A NaN offset ends torchvision with a segmentation fault."""
    tensors, steps = make(bias=False)
    tensors = {k: t if t is None else t.to(device) for k, t in tensors.items()}
    moved = {**tensors, "offset": tensors["offset"].clone(), "mask": tensors["mask"].clone()}
    moved["offset"][1, 4, 2:5], moved["offset"][1, 7, 3] = value, value  # y of tap 2, x of tap 3
    expected = {**tensors, "mask": tensors["mask"].clone()}
    expected["mask"][1, 2, 2:5], expected["mask"][1, 3, 3] = 0, 0
    got, want = with_grads(deform_conv2d, moved, steps), with_grads(deform_conv2d, expected, steps)
    assert_close(got[:2] + got[3:4], want[:2] + want[3:4], 1e-6)
    assert not got[2][1, 4, 2:5].any()  # of the offset
    assert not got[4][1, 2, 2:5].any()  # of the mask


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.ones(12, 9, 11)}, "input must have shape"),
        ({"input": torch.ones(2, 12, 9, 11).int()}, "input must be float16"),
        ({"offset": torch.ones(2, 17, 9, 11)}, r"offset.size\(1\) must be a positive multiple"),
        ({"offset": torch.ones(2, 18, 9, 10)}, r"offset must have shape \(2, 18, 9, 11\)"),
        ({"offset": torch.ones(2, 18 * 5, 9, 11)}, "5 offset groups must divide"),
        ({"weight": torch.ones(8, 5, 3, 3)}, r"weight.size\(1\) must divide"),
        ({"weight": torch.ones(8, 5, 3, 3).double()}, "weight must have the dtype of input"),
        ({"weight": torch.ones(7, 6, 3, 3)}, "must be a multiple of the 2 groups"),
        ({"bias": torch.ones(7)}, "bias must have shape"),
        ({"mask": torch.ones(2, 8, 9, 11)}, r"mask must have shape \(2, 9, 9, 11\)"),
        ({"stride": 0}, "stride must be positive"),
        ({"dilation": 0}, "dilation must be positive"),
        ({"padding": -1}, "padding must not be negative"),
        ({"dilation": 9}, "the kernel is larger than the padded input"),
    ],
)
def test_wrong_arguments_are_named(change: dict, message: str) -> None:
    tensors, _ = make()
    with pytest.raises(RuntimeError, match=f"deform_conv2d: .*{message}"):
        deform_conv2d(**{**tensors, "padding": 1, **change})


def test_bits_do_not_depend_on_threads() -> None:
    before = torch.get_num_threads()
    for change in ({"n": 1, "c": 70, "out": 33, "h": 40, "w": 40}, {"n": 9, "groups": 4}):
        tensors, steps = make(**change)
        results = []
        try:
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                results.append(with_grads(deform_conv2d, tensors, steps))
        finally:
            torch.set_num_threads(before)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_a_batch_is_its_images() -> None:
    """Images are packed a few at a time; here more than at once, and a batch of any size."""
    tensors, steps = make(n=5, c=70, out=3, h=130, w=120, kernel=(1, 1), padding=(0, 0))
    per_image = ("input", "offset", "mask")
    whole = with_grads(deform_conv2d, tensors, steps)
    for i in range(5):
        one = {k: t[i : i + 1] if k in per_image else t for k, t in tensors.items()}
        assert torch.equal(call(deform_conv2d, one, steps)[0], whole[0][i])


@pytest.mark.parametrize("level", ["base", "avx2"])
def test_every_simd_level(level: str) -> None:
    code = """
import torch
from tests.ops.test_deform_conv2d import *
for groups, offset_groups in ((1, 1), (4, 2)):
    for dtype in FLOATING:
        tensors, steps = make(
            c=48, out=40, groups=groups, offset_groups=offset_groups, dtype=dtype)
        got = with_grads(deform_conv2d, tensors, steps)
        tensors = {k: t.double() for k, t in tensors.items()}
        expected = with_grads(torchvision.ops.deform_conv2d, tensors, steps)
        assert_close(got, expected, max(TOLERANCE[dtype], 1e-11))
"""
    done = run_python(code, {"D2PROJ_SIMD": level})
    assert done.returncode == 0, done.stderr


def test_module_is_torchvisions() -> None:
    torch.manual_seed(0)
    ours = DeformConv2d(8, 6, (3, 1), stride=2, padding=(1, 0), dilation=1, groups=2)
    torch.manual_seed(0)
    theirs = torchvision.ops.DeformConv2d(8, 6, (3, 1), stride=2, padding=(1, 0), groups=2)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(
        torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
    )
    x, offset, mask = torch.randn(1, 8, 9, 9), torch.randn(1, 6, 5, 5), torch.rand(1, 3, 5, 5)
    torch.testing.assert_close(ours(x, offset, mask), theirs(x, offset, mask))
    assert "kernel_size=(3, 1)" in repr(ours)
    with pytest.raises(ValueError, match="in_channels must be a multiple of groups, 3, got 8"):
        DeformConv2d(8, 6, 3, groups=3)


@pytest.mark.parametrize("kind", [DeformConv2dPack, ModulatedDeformConv2dPack])
def test_pack_starts_as_a_convolution_and_learns_offsets(kind: type) -> None:
    layer = kind(8, 6, 3, stride=2, padding=1, groups=2, deform_groups=2)
    x = torch.randn(2, 8, 9, 9)
    factor = 0.5 if kind is ModulatedDeformConv2dPack else 1.0
    plain = nn.functional.conv2d(x, layer.weight * factor, layer.bias, 2, 1, 1, 2)
    torch.testing.assert_close(layer(x), plain)
    layer(x).square().sum().backward()
    assert layer.conv_offset.weight.grad.any()
    keys = {"weight", "conv_offset.weight", "conv_offset.bias"}
    assert keys <= set(layer.state_dict()) <= keys | {"bias"}
    assert "deform_groups=2" in repr(layer)


def test_modulated_pack_splits_as_detectron2_and_mmcv() -> None:
    """Three equal parts of the channels: the first two together are offsets, the last the mask."""
    layer = ModulatedDeformConv2dPack(
        4, 5, 3, padding=1, norm=nn.BatchNorm2d(5), activation=torch.relu
    )
    nn.init.normal_(layer.conv_offset.weight)
    x = torch.randn(1, 4, 6, 6)
    first, second, mask = layer.conv_offset(x).chunk(3, 1)
    offset = torch.cat([first, second], 1)
    expected = torchvision.ops.deform_conv2d(
        x, offset, layer.weight, layer.bias, padding=1, mask=mask.sigmoid()
    )
    torch.testing.assert_close(layer(x), layer.norm(expected).relu(), atol=1e-4, rtol=1e-4)
