"""roi_align_rotated against Detectron2, a transcription of its formula, roi_align, and its page."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from d2proj.ops import RoIAlignRotated, reference, roi_align, roi_align_rotated
from d2proj.utils.testing import FLOATING, TOLERANCE, devices, in_layout, run_python

NAN, INF = float("nan"), float("inf")
LAYOUTS = ("nchw", "nhwc", "sliced", "permuted")
twin = reference.roi_align_rotated.roi_align_rotated


def make(
    seed: int = 0,
    n: int = 2,
    c: int = 5,
    h: int = 17,
    w: int = 23,
    k: int = 9,
    size: float = 40.0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    index = torch.randint(n, (k, 1), generator=g)
    center = torch.rand(k, 2, generator=g) * size * 1.4 - 0.2 * size
    sides = torch.rand(k, 2, generator=g) ** 2 * size
    angle = torch.rand(k, 1, generator=g) * 800 - 400
    rois = torch.cat([index, center, sides, angle], 1)
    rois = rois.to(torch.float64 if dtype == torch.float64 else torch.float32)
    return torch.randn(n, c, h, w, generator=g).to(dtype), rois


def gradient(output: Tensor, input: Tensor, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    up = torch.randn(output.shape, generator=g).to(output)
    return torch.autograd.grad(output, input, up)[0]


def transcription(
    input: np.ndarray, rois: np.ndarray, size: tuple[int, int], scale: float, ratio: int
) -> np.ndarray:
    """The definition, sample by sample, in float64."""
    pooled_h, pooled_w = size
    _n, channels, height, width = input.shape
    output = np.zeros((len(rois), channels, pooled_h, pooled_w))
    for k, (image, cx, cy, box_w, box_h, degrees) in enumerate(rois):
        bin_h, bin_w = box_h * scale / pooled_h, box_w * scale / pooled_w
        grid_h = ratio if ratio > 0 else math.ceil(bin_h)
        grid_w = ratio if ratio > 0 else math.ceil(bin_w)
        theta = degrees * math.pi / 180
        for ph, pw, iy, ix in np.ndindex(pooled_h, pooled_w, grid_h, grid_w):
            v = -box_h * scale / 2 + ph * bin_h + (iy + 0.5) * bin_h / grid_h
            u = -box_w * scale / 2 + pw * bin_w + (ix + 0.5) * bin_w / grid_w
            y = v * math.cos(theta) - u * math.sin(theta) + cy * scale - 0.5
            x = v * math.sin(theta) + u * math.cos(theta) + cx * scale - 0.5
            if y < -1 or y > height or x < -1 or x > width:
                continue
            y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            ly, lx = y - y0, x - x0
            map = input[int(image)]
            above = (1 - lx) * map[:, y0, x0] + lx * map[:, y0, x1]
            below = (1 - lx) * map[:, y1, x0] + lx * map[:, y1, x1]
            output[k, :, ph, pw] += ((1 - ly) * above + ly * below) / max(grid_h * grid_w, 1)
    return output


@pytest.mark.parametrize("seed", range(8))
def test_equals_transcription(seed: int) -> None:
    input, rois = make(seed, c=3, k=6, h=(17, 1)[seed % 2], dtype=torch.float64)
    size, scale, ratio = ((3, 2), (1, 4))[seed % 2], (0.5, 1.0)[seed // 4], (0, 1, 2, 3)[seed % 4]
    got = roi_align_rotated(input, rois, size, scale, ratio)
    expected = transcription(input.numpy(), rois.numpy(), size, scale, ratio)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("seed", range(24))
def test_equals_detectron2(seed: int) -> None:
    """Forward and backward of its compiled op, where it is installed."""
    module = pytest.importorskip("detectron2.layers.roi_align_rotated")
    pick = torch.Generator().manual_seed(seed)

    def draw(*options):
        return options[int(torch.randint(len(options), (1,), generator=pick))]

    input, rois = make(
        seed,
        n=draw(1, 2, 3),
        c=draw(1, 3, 16, 21, 70),
        h=draw(1, 7, 33),
        w=draw(1, 9, 40),
        k=draw(1, 5, 70),
        dtype=draw(torch.float32, torch.float64),
    )
    input = in_layout(input, draw(*LAYOUTS)).requires_grad_()
    options = (draw((7, 7), (1, 1), (3, 5)), draw(1.0, 0.5, 0.75), draw(0, 1, 2, 3))
    got = roi_align_rotated(input, rois, *options)
    expected = module.ROIAlignRotated(*options)(input, rois)
    # It rounds the scale to float32 (hence the scales drawn) and the angle before its sine.
    tolerance = 1e-4 if input.dtype == torch.float32 else 1e-8
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(
        gradient(got, input), gradient(expected, input), atol=tolerance * 20, rtol=tolerance
    )


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("channels", [5, 70])
def test_equals_roi_align_at_multiples_of_90_degrees(
    layout: str, ratio: int, channels: int
) -> None:
    input, rois = make(c=channels, k=30, h=23, dtype=torch.float64)
    input = in_layout(input, layout).requires_grad_()
    for turns in range(-4, 5):
        rois[:, 5] = 90 * turns
        half = rois[:, 3:5] / 2 if turns % 2 == 0 else rois[:, [4, 3]] / 2
        upright = torch.cat([rois[:, :1], rois[:, 1:3] - half, rois[:, 1:3] + half], 1)
        got = roi_align_rotated(input, rois, 3, 0.5, ratio)
        expected = torch.rot90(roi_align(input, upright, 3, 0.5, ratio, True), -turns, (2, 3))
        torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(gradient(got, input), gradient(expected, input))


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_twin_in_every_dtype_and_layout(
    device: str, dtype: torch.dtype, layout: str
) -> None:
    input, rois = make(c=24, k=40, dtype=dtype)
    input = in_layout(input.to(device), layout).requires_grad_()
    rois = rois.to(device)
    for ratio in (0, 2):
        got = roi_align_rotated(input, rois, (3, 2), 0.7, ratio)
        expected = twin(input, rois, (3, 2), 0.7, ratio)
        assert got.dtype == dtype
        tolerance = 4 * TOLERANCE[dtype]
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
        mine, theirs = gradient(got, input), gradient(expected, input)
        torch.testing.assert_close(mine, theirs, atol=20 * tolerance, rtol=5 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_boxes_than_a_round_holds(dtype: torch.dtype) -> None:
    """Large boxes sampled densely: plans are made in rounds, and gradients add up over them."""
    g = torch.Generator().manual_seed(0)
    input = torch.randn(1, 3, 90, 90, generator=g).to(dtype).requires_grad_()
    rois = torch.tensor([[0, 45, 45, 80, 85, 0]]).repeat(200, 1).float()
    rois[:, 5] = torch.arange(200) * 7.3
    assert 200 * 80 * 85 > 2**20
    got = roi_align_rotated(input, rois, 2, 1.0, 0)
    expected = twin(input, rois, 2, 1.0, 0)
    tolerance = 2 * TOLERANCE[dtype]
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
    mine, theirs = gradient(got, input), gradient(expected, input)
    torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=10 * tolerance)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("channels", [1, 17])
def test_gradcheck(ratio: int, channels: int) -> None:
    input, rois = make(c=channels, h=5, w=6, k=4, n=1, size=6, dtype=torch.float64)
    input.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: roi_align_rotated(x, rois, 2, 1.0, ratio), (input,))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_opcheck(layout: str) -> None:
    input, rois = make()
    input = in_layout(input, layout)
    for requires_grad in (False, True):
        sample = (input.clone().requires_grad_(requires_grad), rois, 0.5, 3, 2, 2)
        torch.library.opcheck(torch.ops.d2proj.roi_align_rotated.default, sample)
    grad = torch.randn(len(rois), 5, 3, 2)
    sample = (grad, rois, 0.5, 3, 2, *input.shape, 2, layout == "nhwc", False)
    torch.library.opcheck(torch.ops.d2proj._roi_align_rotated_backward.default, sample)


def test_compiles_without_graph_breaks() -> None:
    input, rois = make()
    input.requires_grad_()

    def pool(x: Tensor, b: Tensor) -> Tensor:
        return roi_align_rotated(x * 2, b, 3, 0.5, 2).sum(1)

    compiled = torch.compile(pool, backend="aot_eager", fullgraph=True)
    got, expected = compiled(input, rois), pool(input, rois)
    assert torch.equal(got, expected)
    assert torch.equal(gradient(got, input), gradient(expected, input))
    assert compiled(input, rois[:4]).shape[0] == 4


def test_module_autocast_and_double_backward() -> None:
    input, rois = make()
    module = RoIAlignRotated((4, 3), 0.5, 2)
    assert torch.equal(module(input, rois), roi_align_rotated(input, rois, (4, 3), 0.5, 2))
    assert "sampling_ratio=2" in repr(module)
    half = input.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = roi_align_rotated(half, rois.bfloat16(), 3, 0.5, 2)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, roi_align_rotated(half, rois.bfloat16().float(), 3, 0.5, 2))
    input.requires_grad_()
    output = roi_align_rotated(input, rois, 2, 0.5, 2)
    (grad,) = torch.autograd.grad(output.square().sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="roi_align_rotated: double backward is not supported"):
        grad.sum().backward()


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("channels", [1, 20])
def test_empty_and_strange(device: str, ratio: int, channels: int) -> None:
    input = torch.rand(1, channels, 6, 6, device=device, requires_grad=True)
    none = torch.zeros(0, 6, device=device)
    assert roi_align_rotated(input, none, 2, 1.0, ratio).shape == (0, channels, 2, 2)
    zero = [
        [0, NAN, 3, 2, 2, 0],
        [0, 3, 3, INF, 2, 0],
        [0, 3, 3, 2, 2, NAN],
        [0, 3, 3, 2, 2, INF],
        [0, 3, 3, -2, 2, 30],
        [0, 99, 3, 2, 2, 45],
    ]
    huge = [[0, 3, 3, 1e9, 2, 30], [0, 0, 0, 1e30, 1e30, 45], [0, 1e30, 3, 1e30, 5, 10]]
    boxes = torch.tensor([*zero, *huge, [0, 3, 3, 0, 0, 10]], device=device)
    output = roi_align_rotated(input, boxes, 3, 1.0, ratio)
    assert output.isfinite().all()
    assert output[: len(zero)].eq(0).all()
    assert gradient(output, input).isfinite().all()
    assert roi_align_rotated(input[:, :, :0], boxes, 3, 1.0, ratio).eq(0).all()
    assert roi_align_rotated(input[:, :0], boxes, 3, 1.0, ratio).shape == (10, 0, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3, 5, 5), torch.ones(1, 6), 2), "input must have shape"),
        ((torch.ones(1, 3, 5, 5), torch.ones(1, 5), 2), r"rois must have shape \(K, 6\), got"),
        ((torch.ones(1, 3, 5, 5).int(), torch.ones(1, 6), 2), "input must be float16"),
        ((torch.ones(1, 3, 5, 5), torch.ones(1, 6).int(), 2), "rois must be float32 or float64"),
        ((torch.ones(1, 3, 5, 5), torch.zeros(1, 6), 0), "output_size must be positive"),
        ((torch.ones(1, 3, 5, 5), torch.ones(1, 6), 2), r"boxes\[0, 0\] must be an image index"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"roi_align_rotated: {message}"):
        roi_align_rotated(*arguments, 1.0, 2)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("k", [3, 100])
def test_bits_do_not_depend_on_threads(layout: str, k: int) -> None:
    input, rois = make(n=1, c=16, h=40, w=40, k=k)
    input = in_layout(input, layout).requires_grad_()
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            output = roi_align_rotated(input, rois, 3, 1.0, 2)
            results.append((output, gradient(output, input)))
    finally:
        torch.set_num_threads(before)
    for output, grad in results[1:]:
        assert torch.equal(output, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.parametrize("level", ["base", "avx2"])
def test_every_simd_level(level: str) -> None:
    code = """
import torch
from d2proj.ops import roi_align_rotated
from d2proj.utils.testing import TOLERANCE, in_layout
from tests.ops.test_roi_align_rotated import gradient, make, twin
for dtype in TOLERANCE:
    for layout in ("nchw", "nhwc"):
        input, rois = make(c=37, k=30, dtype=dtype)
        input = in_layout(input, layout).requires_grad_()
        got, expected = (f(input, rois, 2, 1.0, 2) for f in (roi_align_rotated, twin))
        tolerance = dict(atol=5 * TOLERANCE[dtype], rtol=5 * TOLERANCE[dtype])
        torch.testing.assert_close(got, expected, **tolerance)
        tolerance["atol"] *= 10
        torch.testing.assert_close(gradient(got, input), gradient(expected, input), **tolerance)
"""
    done = run_python(code, {"D2PROJ_SIMD": level})
    assert done.returncode == 0, done.stderr
