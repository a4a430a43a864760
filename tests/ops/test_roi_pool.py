"""roi_pool against torchvision, the plain-torch twin, and what docs/ops/roi_pool.md promises."""

import pytest
import torch
import torchvision
from torch import Tensor

from d2proj.ops import RoIPool, reference, roi_pool
from d2proj.utils.testing import FLOATING, devices, in_layout, random_rois, run_python

NAN, INF = float("nan"), float("inf")
LAYOUTS = ("nchw", "nhwc", "sliced", "permuted")
#: For sums of a few gradients; maxima are equal to the bit.
GRADIENT_TOLERANCE = {
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
    torch.float32: 1e-5,
    torch.float64: 1e-12,
}


def make(seed: int = 0, n: int = 2, c: int = 5, h: int = 17, w: int = 23, k: int = 9, **kwargs):
    g = torch.Generator().manual_seed(seed)
    dtype = kwargs.get("dtype", torch.float32)
    box_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    rois = random_rois(k, n, 40.0, generator=g, dtype=box_dtype)
    return torch.randn(n, c, h, w, generator=g).to(dtype), rois


def gradient(output: Tensor, input: Tensor, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    up = torch.randn(output.shape, generator=g).to(output)
    return torch.autograd.grad(output, input, up)[0]


@pytest.mark.parametrize("seed", range(60))
def test_equals_torchvision_forward_and_backward(seed: int) -> None:
    """Random shapes, layouts, options; values with ties; each of the kernel's paths."""
    pick = torch.Generator().manual_seed(seed)

    def draw(*options):
        return options[int(torch.randint(len(options), (1,), generator=pick))]

    input, rois = make(
        seed,
        n=draw(1, 2, 3),
        c=draw(1, 3, 8, 16, 21, 64, 70, 130),
        h=draw(1, 7, 33),
        w=draw(1, 9, 40),
        k=draw(0, 1, 5, 33, 65),
        dtype=draw(torch.float32, torch.float64),
    )
    if draw(True, False):
        input = (input * 2).round()
    input = in_layout(input, draw(*LAYOUTS)).requires_grad_()
    options = (draw((7, 7), (1, 1), (3, 5)), draw(1.0, 0.5, 0.83))
    got = roi_pool(input, rois, *options)
    expected = torchvision.ops.roi_pool(input, rois, *options)
    assert torch.equal(got, expected)
    assert torch.equal(roi_pool(input.detach(), rois, *options), expected)  # without argmax
    # Sums of small integers and of few terms in the same order.
    tolerance = GRADIENT_TOLERANCE[input.dtype]
    torch.testing.assert_close(
        gradient(got, input), gradient(expected, input), atol=tolerance, rtol=tolerance
    )


def test_argmax_is_torchvisions() -> None:
    """The first maximum in scan order, int32, -1 where nothing is pooled."""
    input, rois = make(c=20, k=40)
    input = input.mul(1.5).round()
    for layout in ("nchw", "nhwc"):
        _, argmax = torch.ops.d2proj.roi_pool(in_layout(input, layout), rois, 0.7, 3, 2, True)
        _, expected = torch.ops.torchvision.roi_pool(input, rois, 0.7, 3, 2)
        assert argmax.dtype == torch.int32
        assert torch.equal(argmax, expected)
        assert expected.eq(-1).any()


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_twin_in_every_dtype_and_layout(
    device: str, dtype: torch.dtype, layout: str
) -> None:
    for c in (3, 24, 70):
        input, rois = make(c=c, k=30, dtype=dtype)
        input = in_layout(input.to(device), layout).requires_grad_()
        rois = rois.to(device)
        got = roi_pool(input, rois, (3, 2), 0.7)
        expected = reference.roi_pool.roi_pool(input, rois, (3, 2), 0.7)
        assert got.dtype == dtype
        assert torch.equal(got, expected)
        tolerance = GRADIENT_TOLERANCE[dtype]
        torch.testing.assert_close(
            gradient(got, input), gradient(expected, input), atol=tolerance, rtol=tolerance
        )


def test_large_map_reads_one_row_at_a_time() -> None:
    """A map above the packing limit, and a gradient that is laid out unlike the result."""
    input, rois = make(n=1, c=3, h=1500, w=1500, k=3)
    rois = rois * torch.tensor([1, 30, 30, 30, 30])
    rois = torch.cat([rois, torch.tensor([[0.0, 0, 0, 1499, 1499]])])
    input.requires_grad_()
    got, expected = roi_pool(input, rois, 4), torchvision.ops.roi_pool(input, rois, 4)
    assert torch.equal(got, expected)
    up = torch.randn_like(got).contiguous(memory_format=torch.channels_last)
    a, b = (torch.autograd.grad(o, input, up)[0] for o in (got, expected))
    torch.testing.assert_close(a, b)
    (a,) = torch.autograd.grad(roi_pool(input, rois, 4).sum(), input)  # a gradient of stride 0
    (b,) = torch.autograd.grad(torchvision.ops.roi_pool(input, rois, 4).sum(), input)
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", FLOATING)
def test_channels_last_in_channels_last_out(dtype: torch.dtype) -> None:
    input, rois = make(c=20, dtype=dtype)
    input = in_layout(input, "nhwc").requires_grad_()
    output, argmax = torch.ops.d2proj.roi_pool(input.detach(), rois, 1.0, 3, 3, True)
    assert output.is_contiguous(memory_format=torch.channels_last)
    grad = torch.ops.d2proj._roi_pool_backward(
        output, rois, argmax, 1.0, 3, 3, *input.shape, True, False
    )
    assert grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("feature_dtype", FLOATING)
@pytest.mark.parametrize("box_dtype", [torch.float32, torch.float64])
def test_box_dtype_is_free(feature_dtype: torch.dtype, box_dtype: torch.dtype) -> None:
    """Half features keep full coordinates."""
    input, _ = make(dtype=feature_dtype, h=4, w=3000)
    rois = torch.tensor([[0, 2049.75, 0.0, 2053.75, 3.0]], dtype=box_dtype)
    expected = torchvision.ops.roi_pool(input.double(), rois.double(), 2)
    assert torch.equal(roi_pool(input, rois, 2).double(), expected)


def test_box_list_and_module() -> None:
    input, rois = make(n=3, k=12)
    per_image = [rois[rois[:, 0] == i, 1:] for i in range(3)]
    order = rois[:, 0].argsort(stable=True)
    expected = roi_pool(input, rois[order], (4, 3), 0.5)
    assert torch.equal(roi_pool(input, per_image, (4, 3), 0.5), expected)
    module = RoIPool((4, 3), 0.5)
    assert torch.equal(module(input, per_image), expected)
    assert repr(module) == "RoIPool(output_size=(4, 3), spatial_scale=0.5)"


@pytest.mark.parametrize("channels", [1, 17])
def test_gradcheck(channels: int) -> None:
    input, rois = make(c=channels, h=5, w=6, k=4, n=1, dtype=torch.float64)
    rois = rois / 8
    rois[:, 0] = 0
    input.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: roi_pool(x, rois, 2), (input,), fast_mode=False)


def test_double_backward_is_a_clear_error() -> None:
    input, rois = make()
    input.requires_grad_()
    output = roi_pool(input, rois, 2)
    (grad,) = torch.autograd.grad(output.square().sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="roi_pool: double backward is not supported"):
        grad.sum().backward()


def test_backward_without_argmax_is_a_clear_error() -> None:
    input, rois = make()
    output, _ = torch.ops.d2proj.roi_pool(input.requires_grad_(), rois, 1.0, 2, 2, False)
    with pytest.raises(RuntimeError, match="argmax is kept only if"):
        output.sum().backward()


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_opcheck(layout: str) -> None:
    input, rois = make()
    input = in_layout(input, layout)
    op = torch.ops.d2proj.roi_pool.default
    torch.library.opcheck(op, (input, rois, 0.5, 3, 2, False))
    for requires_grad in (False, True):
        sample = (input.clone().requires_grad_(requires_grad), rois, 0.5, 3, 2, True)
        torch.library.opcheck(op, sample)
    output, argmax = op(input, rois, 0.5, 3, 2, True)
    sample = (output, rois, argmax, 0.5, 3, 2, *input.shape, layout == "nhwc", False)
    torch.library.opcheck(torch.ops.d2proj._roi_pool_backward.default, sample)


def test_compiles_without_graph_breaks() -> None:
    """With the eager-like backend: no C++ compiler is run, the graph is what is tested."""
    input, rois = make()
    compiled = torch.compile(
        lambda x, b: roi_pool(x * 2, b, 3, 0.5).sum(1), backend="aot_eager", fullgraph=True
    )
    assert torch.equal(compiled(input, rois), roi_pool(input * 2, rois, 3, 0.5).sum(1))
    input.requires_grad_()
    expected = roi_pool(input * 2, rois, 3, 0.5).sum(1)
    got = compiled(input, rois)
    assert torch.equal(got, expected)
    assert torch.equal(gradient(got, input), gradient(expected, input))
    assert compiled(input, rois[:4]).shape[0] == 4  # another number of boxes: dynamic shapes


def test_autocast_keeps_features_and_raises_boxes() -> None:
    input, rois = make()
    half = input.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert roi_pool(input, rois, 3).dtype == torch.float32
        assert roi_pool(half, rois, 3).dtype == torch.bfloat16
        direct, _ = torch.ops.d2proj.roi_pool(half, rois.bfloat16(), 1.0, 3, 3, False)
    assert torch.equal(direct, roi_pool(half, rois.bfloat16().float(), 3))


@pytest.mark.parametrize("device", devices())
def test_empty_inputs(device: str) -> None:
    input = torch.randn(2, 3, 5, 5, device=device, requires_grad=True)
    none = torch.empty(0, 5, device=device)
    output = roi_pool(input, none, 4)
    assert output.shape == (0, 3, 4, 4)
    output.sum().backward()
    assert input.grad is not None
    assert not input.grad.any()
    rois = torch.tensor([[0.0, 0, 0, 4, 4]], device=device)
    assert roi_pool(input[:, :0], rois, 4).shape == (1, 0, 4, 4)
    no_rows = input[:, :, :0].detach().requires_grad_()
    output = roi_pool(no_rows, rois, 4)
    assert output.eq(0).all()
    output.sum().backward()
    assert roi_pool(input, [none[:, 1:], none[:, 1:]], 2).shape == (0, 3, 2, 2)


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_strange_boxes(device: str, layout: str) -> None:
    """Not finite: zero. Huge: no hang. Inverted or empty: one cell, as in torchvision."""
    input = in_layout(torch.rand(1, 20, 6, 6, device=device), layout).requires_grad_()
    not_finite = [[NAN, 0, 4, 4], [0, 0, INF, 4], [-INF, 0, 4, 4], [-INF, -INF, INF, INF]]
    huge = [[-1e30, -1e30, 1e30, 1e30], [0, 0, 1e9, 3], [-1e9, 1, 1e9, 2], [3e38, 0, 3.2e38, 1]]
    inverted = [[5, 5, 1, 1], [4, 1, 1, 4], [3, 3, 3, 3], [-9, -9, -5, -5], [2.5, 0.5, 3.5, 1.5]]
    boxes = torch.tensor(not_finite + huge + inverted, device=device)
    output = roi_pool(input, [boxes], 3)
    assert output.isfinite().all()
    assert output[: len(not_finite)].eq(0).all()
    # All the map's cells are in the middle bin of the first huge box.
    assert torch.equal(output[4, :, 1, 1], input[0].amax((1, 2)))
    expected = torchvision.ops.roi_pool(input, [boxes[-5:]], 3)
    assert torch.equal(output[-5:], expected)
    assert gradient(output, input).isfinite().all()


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_nan_and_infinite_cells(device: str, layout: str) -> None:
    """NaN is never the maximum; a bin of nothing above -FLT_MAX gives that, and no gradient."""
    input = torch.randn(1, 20, 4, 4)
    input[0, :, 0, 0] = NAN
    input[0, :, 2, 2] = INF
    input[0, :, :2, 2:] = NAN
    input[0, :, 2:, :2] = -INF
    input = in_layout(input, layout).to(device).requires_grad_()
    rois = torch.tensor([[0.0, 0, 0, 3, 3]], device=device)
    output = roi_pool(input, rois, 2)
    if device == "cpu":
        assert torch.equal(output, torchvision.ops.roi_pool(input, rois, 2))
    lowest = torch.finfo(torch.float32).min
    assert output[0, :, 0, 1].eq(lowest).all()
    assert output[0, :, 1, 0].eq(lowest).all()
    assert output[0, :, 1, 1].eq(INF).all()
    grad = torch.autograd.grad(output.sum(), input)[0]
    assert not grad[0, :, :2, 2:].any()
    assert not grad[0, :, 2:, :2].any()
    assert grad.sum() == 2 * 20


@pytest.mark.parametrize("index", [-1.0, 2.0, 1e30, NAN])
def test_image_index_out_of_range(index: float) -> None:
    input, rois = make(k=3)
    rois[1, 0] = index
    with pytest.raises(RuntimeError, match=r"roi_pool: boxes\[1, 0\] must be an image index from"):
        roi_pool(input, rois, 2)


def test_wild_argmax_is_ignored() -> None:
    """An index that is no cell of the map is not written to."""
    input, rois = make(c=20)
    output, argmax = torch.ops.d2proj.roi_pool(input, rois, 1.0, 2, 2, True)
    wild = torch.full_like(argmax, 17 * 23)
    wild[::2] = -(2**31)
    grad = torch.ops.d2proj._roi_pool_backward(
        output, rois, wild, 1.0, 2, 2, *input.shape, False, False
    )
    assert not grad.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3, 5, 5), torch.ones(1, 5), 2), "input must have shape"),
        (
            (torch.ones(1, 3, 5, 5), torch.ones(1, 4), 2),
            r"boxes must have shape \(K, 5\), got \(1, 4\)",
        ),
        ((torch.ones(1, 3, 5, 5), [torch.ones(1, 5)], 2), r"boxes\[0\] must have shape \(K, 4\)"),
        ((torch.ones(1, 3, 5, 5), [], 2), "boxes must be a"),
        ((torch.ones(1, 3, 5, 5).int(), torch.ones(1, 5), 2), "input must be float16"),
        ((torch.ones(1, 3, 5, 5), torch.ones(1, 5).int(), 2), "boxes must be float32 or float64"),
        ((torch.ones(1, 3, 5, 5), torch.zeros(1, 5), 0), "output_size must be positive"),
        (
            (torch.ones(1).expand(1, 1, 2**16, 2**16), torch.zeros(1, 5), 2),
            r"a map must have fewer than 2\^31 cells, got 65536 x 65536",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"roi_pool: {message}"):
        roi_pool(*arguments)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("k", [3, 200])
def test_bits_do_not_depend_on_threads(layout: str, k: int) -> None:
    """Forward and backward, also where there are fewer images and channels than threads."""
    input, rois = make(n=1, c=16, h=60, w=60, k=k)
    input = in_layout(input, layout).requires_grad_()
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            output = roi_pool(input, rois, 7)
            results.append((output.detach(), gradient(output, input)))
    finally:
        torch.set_num_threads(before)
    for output, grad in results[1:]:
        assert torch.equal(output, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.parametrize("level", ["base", "avx2"])
def test_every_simd_level(level: str) -> None:
    """The paths of older CPUs, on the CPU at hand (whose own path every other test takes)."""
    code = """
import torch
from d2proj.ops import roi_pool, reference
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    for c in (200, 21):
        for fmt in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(2, c, 20, 20).to(dtype).contiguous(memory_format=fmt).requires_grad_()
            b = torch.rand(20, 5) * 15
            b[:, 0], b[:, 3:] = b[:, 0] > 7, b[:, 1:3] + b[:, 3:]
            y, z = roi_pool(x, b, 3), reference.roi_pool.roi_pool(x, b, 3)
            assert torch.equal(y, z)
            assert torch.equal(roi_pool(x.detach(), b, 3), z)
            up = torch.randn_like(z)
            tolerance = dict(rtol=1e-2, atol=1e-1 if dtype.itemsize == 2 else 1e-4)
            torch.testing.assert_close(
                *(torch.autograd.grad(o, x, up)[0] for o in (y, z)), **tolerance)
"""
    done = run_python(code, {"D2PROJ_SIMD": level})
    assert done.returncode == 0, done.stderr


def test_deterministic_mode_is_accepted() -> None:
    input, rois = make()
    input.requires_grad_()
    expected = gradient(roi_pool(input, rois, 3), input)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(gradient(roi_pool(input, rois, 3), input), expected)
    finally:
        torch.use_deterministic_algorithms(False)
