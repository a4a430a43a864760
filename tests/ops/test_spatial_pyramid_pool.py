"""spatial_pyramid_pool against its definition, torchvision's roi_pool and its page's promises."""

import math

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from d2proj.ops import SpatialPyramidPool, reference, spatial_pyramid_pool
from d2proj.utils.testing import FLOATING, devices, in_layout, random_rois, run_python

LAYOUTS = ("nchw", "nhwc", "sliced", "permuted")
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


def by_torchvision(input: Tensor, rois: Tensor, bins, scale: float) -> Tensor:
    return torch.cat([torchvision.ops.roi_pool(input, rois, b, scale).flatten(1) for b in bins], 1)


def window(maps: np.ndarray, bins) -> np.ndarray:
    """SPPNet, section 2.2: bin i of n over w cells is [floor((i - 1) w / n), ceil(i w / n))."""
    c, h, w = maps.shape
    rows = []
    for n in bins:
        for channel in range(c):
            for i in range(1, n + 1):
                for j in range(1, n + 1):
                    top, bottom = math.floor((i - 1) * h / n), math.ceil(i * h / n)
                    left, right = math.floor((j - 1) * w / n), math.ceil(j * w / n)
                    rows.append(maps[channel, top:bottom, left:right].max())
    return np.array(rows)


@pytest.mark.parametrize("bins", [(1, 2, 3, 6), (4, 2, 1), (7,)])
def test_equals_the_papers_definition(bins: tuple[int, ...]) -> None:
    """Windows of whole cells: their bins, in double precision, with no torch in it."""
    g = torch.Generator().manual_seed(0)
    input = torch.randn(1, 3, 24, 30, generator=g, dtype=torch.float64)
    for _ in range(20):
        x = sorted(torch.randint(0, 30, (2,), generator=g).tolist())
        y = sorted(torch.randint(0, 24, (2,), generator=g).tolist())
        rois = torch.tensor([[0, x[0], y[0], x[1], y[1]]], dtype=torch.float64)
        cells = input[0, :, y[0] : y[1] + 1, x[0] : x[1] + 1].numpy()
        got = spatial_pyramid_pool(input, rois, bins)[0].numpy()
        np.testing.assert_array_equal(got, window(cells, bins))


@pytest.mark.parametrize("seed", range(30))
def test_equals_torchvision_forward_and_backward(seed: int) -> None:
    pick = torch.Generator().manual_seed(seed)

    def draw(*options):
        return options[int(torch.randint(len(options), (1,), generator=pick))]

    input, rois = make(
        seed,
        n=draw(1, 3),
        c=draw(1, 3, 16, 21, 70),
        h=draw(1, 7, 33),
        w=draw(1, 9, 40),
        k=draw(0, 1, 5, 33, 65),
        dtype=draw(torch.float32, torch.float64),
    )
    if draw(True, False):
        input = (input * 2).round()
    input = in_layout(input, draw(*LAYOUTS)).requires_grad_()
    options = (draw((1, 2, 3, 6), (5,), (3, 1), tuple(range(1, 17))), draw(1.0, 0.5, 0.83))
    got = spatial_pyramid_pool(input, rois, *options)
    expected = by_torchvision(input, rois, *options)
    assert torch.equal(got, expected)
    assert torch.equal(spatial_pyramid_pool(input.detach(), rois, *options), expected)
    tolerance = 10 * GRADIENT_TOLERANCE[input.dtype]
    torch.testing.assert_close(
        gradient(got, input), gradient(expected, input), atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_twin_in_every_dtype_and_layout(
    device: str, dtype: torch.dtype, layout: str
) -> None:
    input, rois = make(c=21, k=20, dtype=dtype)
    input = in_layout(input.to(device), layout).requires_grad_()
    rois = rois.to(device)
    got = spatial_pyramid_pool(input, rois, (1, 3), 0.7)
    twin = reference.spatial_pyramid_pool.spatial_pyramid_pool(input, rois, (1, 3), 0.7)
    assert torch.equal(got, twin)
    tolerance = GRADIENT_TOLERANCE[dtype]
    found = gradient(got, input)
    torch.testing.assert_close(found, gradient(twin, input), atol=tolerance, rtol=tolerance)
    if layout == "nhwc":
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_box_list_and_module() -> None:
    input, rois = make(n=3, k=12)
    per_image = [rois[rois[:, 0] == i, 1:] for i in range(3)]
    order = rois[:, 0].argsort(stable=True)
    module = SpatialPyramidPool((2, 1), 0.5)
    expected = spatial_pyramid_pool(input, rois[order], (2, 1), 0.5)
    assert torch.equal(module(input, per_image), expected)
    assert repr(module) == "SpatialPyramidPool(bins=(2, 1), spatial_scale=0.5)"
    assert spatial_pyramid_pool(input, rois).shape == (12, 5 * 50)


def test_gradcheck() -> None:
    input, rois = make(c=3, h=5, w=6, k=4, n=1, dtype=torch.float64)
    rois = rois / 8
    rois[:, 0] = 0
    input.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: spatial_pyramid_pool(x, rois, (1, 3)), (input,), fast_mode=False
    )


def test_double_backward_is_a_clear_error() -> None:
    input, rois = make()
    input.requires_grad_()
    output = spatial_pyramid_pool(input, rois)
    (grad,) = torch.autograd.grad(output.square().sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="spatial_pyramid_pool: double backward"):
        grad.sum().backward()


def test_opcheck() -> None:
    input, rois = make()
    op = torch.ops.d2proj.spatial_pyramid_pool.default
    torch.library.opcheck(op, (input, rois, [1, 2], 0.5, False))
    torch.library.opcheck(op, (input.clone().requires_grad_(), rois, [1, 2], 0.5, True))
    output, argmax = op(input, rois, [1, 2], 0.5, True)
    sample = (output, rois, argmax, [1, 2], 0.5, *input.shape, True, False)
    torch.library.opcheck(torch.ops.d2proj._spatial_pyramid_pool_backward.default, sample)


def test_compiles_without_graph_breaks() -> None:
    input, rois = make()
    input.requires_grad_()
    compiled = torch.compile(
        lambda x, b: spatial_pyramid_pool(x * 2, b, (1, 2), 0.5),
        backend="aot_eager",
        fullgraph=True,
    )
    expected = spatial_pyramid_pool(input * 2, rois, (1, 2), 0.5)
    got = compiled(input, rois)
    assert torch.equal(got, expected)
    assert torch.equal(gradient(got, input), gradient(expected, input))
    assert compiled(input, rois[:4]).shape[0] == 4


def test_autocast_keeps_features_and_raises_boxes() -> None:
    input, rois = make()
    half = input.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        direct, _ = torch.ops.d2proj.spatial_pyramid_pool(half, rois.bfloat16(), [2], 1.0, False)
    assert torch.equal(direct, spatial_pyramid_pool(half, rois.bfloat16().float(), [2]))


@pytest.mark.parametrize("device", devices())
def test_empty_inputs_and_strange_boxes(device: str) -> None:
    input = torch.rand(1, 3, 5, 5, device=device, requires_grad=True)
    assert spatial_pyramid_pool(input, torch.empty(0, 5, device=device)).shape == (0, 150)
    rois = torch.tensor([[0.0, 0, 0, 4, 4]], device=device)
    assert spatial_pyramid_pool(input[:, :0], rois).shape == (1, 0)
    assert spatial_pyramid_pool(input[:, :, :0], rois).eq(0).all()
    nan, inf = float("nan"), float("inf")
    boxes = torch.tensor([[nan, 0, 4, 4], [0, 0, inf, 4], [-1e30, -1e30, 1e30, 1e30]])
    output = spatial_pyramid_pool(input, [boxes.to(device)])
    assert output[:2].eq(0).all()
    assert torch.equal(output[2, :3], input[0].amax((1, 2)))
    assert gradient(output, input).isfinite().all()


@pytest.mark.parametrize(
    ("bins", "message"),
    [
        ((), "bins must have 1 to 16 entries, got 0"),
        ([1] * 17, "bins must have 1 to 16 entries, got 17"),
        ((2, 0), "bins must be from 1 to 32767, got 0"),
    ],
)
def test_wrong_bins_are_named(bins, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"spatial_pyramid_pool: {message}"):
        spatial_pyramid_pool(torch.ones(1, 3, 5, 5), torch.zeros(1, 5), bins)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(RuntimeError, match="spatial_pyramid_pool: input must have shape"):
        spatial_pyramid_pool(torch.ones(3, 5, 5), torch.zeros(1, 5))
    with pytest.raises(RuntimeError, match=r"spatial_pyramid_pool: boxes\[0, 0\] must be an image"):
        spatial_pyramid_pool(torch.ones(1, 3, 5, 5), torch.ones(1, 5))


def test_bits_do_not_depend_on_threads() -> None:
    input, rois = make(n=1, c=16, h=60, w=60, k=50)
    input.requires_grad_()
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 5):
            torch.set_num_threads(threads)
            output = spatial_pyramid_pool(input, rois)
            results.append((output.detach(), gradient(output, input)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[1][0], results[0][0])
    assert torch.equal(results[1][1], results[0][1])


@pytest.mark.parametrize("level", ["base", "avx2"])
def test_every_simd_level(level: str) -> None:
    code = """
import torch
from d2proj.ops import spatial_pyramid_pool, reference
twin = reference.spatial_pyramid_pool.spatial_pyramid_pool
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    for fmt in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 70, 20, 20).to(dtype).contiguous(memory_format=fmt)
        b = torch.rand(20, 5) * 15
        b[:, 0], b[:, 3:] = b[:, 0] > 7, b[:, 1:3] + b[:, 3:]
        assert torch.equal(spatial_pyramid_pool(x, b, (1, 3)), twin(x, b, (1, 3)))
"""
    done = run_python(code, {"D2PROJ_SIMD": level})
    assert done.returncode == 0, done.stderr
