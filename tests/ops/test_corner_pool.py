"""corner_pool against flip + cummax, numpy loops and the plain-torch twin."""

import numpy as np
import pytest
import torch
from torch import Tensor

from d2proj import ops
from d2proj.ops import corner_pool, corner_pool_pair, reference
from d2proj.utils.testing import FLOATING, TOLERANCE, devices, in_layout, run_python

NAN, INF = float("nan"), float("inf")
SCANS = {"top": (2, True), "bottom": (2, False), "left": (3, True), "right": (3, False)}
PAIRS = {"top_left": ("top", "left"), "bottom_right": ("bottom", "right")}
LAYOUTS = ("nchw", "nhwc", "sliced", "permuted")
#: Vectors, their remainders, chunks of rows, blocks of columns, batches.
SHAPES = (
    (2, 5, 17, 23), (1, 20, 20, 33), (2, 70, 9, 8), (1, 1, 1, 1), (3, 4, 40, 2), (1, 1, 2, 270),
    (33, 1, 3, 5), (65, 2, 1, 9), (1, 3, 30, 1), (2, 130, 4, 5),
)  # fmt: skip


def draw(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Half of them zero, as behind a ReLU: ties everywhere."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu().to(dtype)


def by_cummax(x: Tensor, direction: str) -> Tensor:
    dim, from_end = SCANS[direction]
    return (x.flip(dim).cummax(dim)[0].flip(dim)) if from_end else x.cummax(dim)[0]


def by_loops(x: np.ndarray, grad: np.ndarray, direction: str) -> tuple[np.ndarray, np.ndarray]:
    """CornerNet's code, an element at a time: values and gradient."""
    dim, from_end = SCANS[direction]
    lines, ups = np.moveaxis(x, dim, -1), np.moveaxis(grad, dim, -1)
    out, back = np.empty_like(lines), np.zeros_like(ups)
    length = lines.shape[-1]
    order = range(length - 1, -1, -1) if from_end else range(length)
    for line in np.ndindex(lines.shape[:-1]):
        best = None
        for i in order:
            if best is None or lines[line][i] > lines[line][best]:
                best = i
            out[line][i] = lines[line][best]
            back[line][best] += ups[line][i]
    return np.moveaxis(out, -1, dim), np.moveaxis(back, -1, dim)


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("direction", SCANS)
def test_values_equal_cummax_and_gradient_equals_twin(
    device: str, dtype: torch.dtype, layout: str, direction: str
) -> None:
    for seed, shape in enumerate(SHAPES):
        x = in_layout(draw(shape, seed, dtype).to(device), layout).requires_grad_()
        got = corner_pool(x, direction)
        assert torch.equal(got, by_cummax(x, direction))
        up = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(got)
        wide = x.detach().double().requires_grad_()
        expected = reference.corner_pool.corner_pool(wide, direction)
        (got_grad,) = torch.autograd.grad(got, x, up)
        (expected_grad,) = torch.autograd.grad(expected, wide, up.double())
        tolerance = 10 * TOLERANCE[dtype]
        torch.testing.assert_close(got_grad.double(), expected_grad, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("direction", SCANS)
def test_ties_go_to_the_first_met(direction: str) -> None:
    """Where torch.cummax gives the gradient to the last (mmdetection#3008)."""
    for shape in ((2, 3, 9, 20), (1, 2, 33, 40)):
        g = torch.Generator().manual_seed(1)
        x = torch.randint(3, shape, generator=g).double().requires_grad_()
        up = torch.randn(shape, generator=g, dtype=torch.float64)
        value, expected = by_loops(x.detach().numpy(), up.numpy(), direction)
        got = corner_pool(x, direction)
        assert torch.equal(got, torch.from_numpy(value))
        (grad,) = torch.autograd.grad(got, x, up)
        torch.testing.assert_close(grad, torch.from_numpy(expected))
    zeros = torch.zeros(1, 1, 1, 4, requires_grad=True)
    corner_pool(zeros, "right").sum().backward()
    assert zeros.grad is not None
    assert zeros.grad.flatten().tolist() == [4, 0, 0, 0]


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("corner", PAIRS)
def test_pair_is_the_sum(device: str, dtype: torch.dtype, layout: str, corner: str) -> None:
    for seed, shape in enumerate(SHAPES):
        inputs = [
            in_layout(draw(shape, seed + i, dtype).to(device), layout).requires_grad_()
            for i in range(2)
        ]
        got = corner_pool_pair(*inputs, corner)
        parts = [corner_pool(x, d) for x, d in zip(inputs, PAIRS[corner], strict=True)]
        assert torch.equal(got, parts[0] + parts[1])
        up = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(got)
        grads = torch.autograd.grad(got, inputs, up)
        for grad, part, x in zip(grads, parts, inputs, strict=True):
            assert torch.equal(grad, torch.autograd.grad(part, x, up)[0])


@pytest.mark.parametrize("wanted", [0, 1])
def test_pair_with_one_gradient(wanted: int) -> None:
    inputs = [draw((2, 3, 5, 6), i) for i in range(2)]
    inputs[wanted].requires_grad_()
    corner_pool_pair(*inputs, "top_left").sum().backward()
    alone = inputs[wanted].detach().requires_grad_()
    corner_pool(alone, PAIRS["top_left"][wanted]).sum().backward()
    assert torch.equal(inputs[wanted].grad, alone.grad)


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("direction", SCANS)
def test_nan_and_infinity(device: str, direction: str) -> None:
    """As torch.cummax; the gradient of what a NaN spread to goes to the first NaN met."""
    x = torch.randn(2, 20, 19, 21, generator=torch.Generator().manual_seed(0))
    x.view(-1)[::37], x.view(-1)[::41], x.view(-1)[::43] = NAN, INF, -INF
    x[0, 0] = -INF
    for layout in ("nchw", "nhwc"):
        y = in_layout(x.to(device), layout).requires_grad_()
        got = corner_pool(y, direction)
        torch.testing.assert_close(got, by_cummax(y, direction), equal_nan=True, rtol=0, atol=0)
        (grad,) = torch.autograd.grad(got.nan_to_num().sum(), y)
        expected = reference.corner_pool.corner_pool(y, direction)
        (expected_grad,) = torch.autograd.grad(expected.nan_to_num().sum(), y)
        assert torch.equal(grad, expected_grad)
        ones = torch.autograd.grad(corner_pool(y, direction), y, torch.ones_like(y))[0]
        assert ones.sum() == y.numel()  # every cell's gradient arrives somewhere


@pytest.mark.parametrize("dtype", FLOATING)
def test_layout_is_kept(dtype: torch.dtype) -> None:
    x = in_layout(draw((2, 20, 7, 9), 0, dtype), "nhwc").requires_grad_()
    got = corner_pool(x, "left")
    pair = corner_pool_pair(x, x.detach().contiguous(), "top_left")
    assert got.stride() == x.stride()
    assert pair.stride() == x.stride()
    assert torch.autograd.grad(got.sum(), x)[0].stride() == x.stride()


def test_modules() -> None:
    x = draw((1, 2, 5, 6))
    for direction in SCANS:
        module = getattr(ops, f"{direction.capitalize()}Pool")()
        assert torch.equal(module(x), corner_pool(x, direction))
        assert torch.equal(ops.CornerPool(direction)(x), corner_pool(x, direction))
    assert "mode='top'" in repr(ops.TopPool())


@pytest.mark.parametrize("direction", SCANS)
def test_gradcheck(direction: str) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, generator=g, requires_grad=True)
    y = torch.randn(1, 2, 4, 5, dtype=torch.float64, generator=g, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: corner_pool(a, direction), (x,))
    assert torch.autograd.gradcheck(lambda a, b: corner_pool_pair(a, b, "top_left"), (x, y))


def test_double_backward_is_a_clear_error() -> None:
    x = draw((1, 2, 4, 5)).requires_grad_()
    (grad,) = torch.autograd.grad(corner_pool(x, "top").square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="corner_pool: double backward is not supported"):
        grad.sum().backward()


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "sliced"])
def test_opcheck(layout: str) -> None:
    a, b = (in_layout(draw((2, 3, 5, 6), i), layout) for i in range(2))
    for wanted in (False, True):
        a, b = a.detach().requires_grad_(wanted), b.detach().requires_grad_(wanted)
        torch.library.opcheck(torch.ops.d2proj.corner_pool.default, (a, 2, True))
        torch.library.opcheck(torch.ops.d2proj.corner_pool_pair.default, (a, b, True))
    a, b = a.detach(), b.detach()
    torch.library.opcheck(torch.ops.d2proj._corner_pool_backward.default, (a, b, 3, False))
    torch.library.opcheck(torch.ops.d2proj._corner_pool_pair_backward.default, (a, a, b, True))


def test_compiles_without_graph_breaks() -> None:
    def f(a: Tensor, b: Tensor) -> Tensor:
        return corner_pool_pair(a * 2, b, "top_left") + corner_pool(a, "right")

    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    a, b = (draw((2, 3, 5, 6), i).requires_grad_() for i in range(2))
    got, expected = compiled(a, b), f(a, b)
    assert torch.equal(got, expected)
    for x, y in zip(
        torch.autograd.grad(got.sum(), (a, b)),
        torch.autograd.grad(expected.sum(), (a, b)),
        strict=True,
    ):
        assert torch.equal(x, y)


def test_autocast_keeps_the_dtype() -> None:
    x = draw((1, 2, 4, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert corner_pool(x, "top").dtype == torch.float32
        assert corner_pool_pair(x.bfloat16(), x.bfloat16(), "top_left").dtype == torch.bfloat16


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0)])
def test_empty_inputs(device: str, shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, device=device, requires_grad=True)
    output = corner_pool_pair(x, x, "top_left") + corner_pool(x, "left")
    assert output.shape == shape
    output.sum().backward()
    assert x.grad is not None


def test_wrong_arguments_are_named() -> None:
    x = torch.ones(1, 2, 3, 4)
    with pytest.raises(RuntimeError, match=r"corner_pool: input must have shape \(N, C, H, W\)"):
        corner_pool(x[0], "top")
    with pytest.raises(RuntimeError, match="corner_pool: input must be float16"):
        corner_pool(x.int(), "top")
    with pytest.raises(ValueError, match=r"direction must be one of top, .*, got 'up'"):
        corner_pool(x, "up")
    with pytest.raises(ValueError, match="CornerPool: mode must be"):
        ops.CornerPool("up")
    with pytest.raises(ValueError, match="corner must be one of top_left, bottom_right"):
        corner_pool_pair(x, x, "top")
    with pytest.raises(RuntimeError, match="x_b must have the shape of x_a"):
        corner_pool_pair(x, x[:, :1], "top_left")
    with pytest.raises(RuntimeError, match="x_b must have the dtype of x_a"):
        corner_pool_pair(x, x.double(), "top_left")


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", [(1, 2, 300, 200), (2, 70, 60, 50)])
def test_bits_do_not_depend_on_threads(layout: str, shape: tuple[int, ...]) -> None:
    a, b = (in_layout(draw(shape, i), layout).requires_grad_() for i in range(2))
    up = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            outputs = [corner_pool_pair(a, b, "top_left"), *(corner_pool(a, d) for d in SCANS)]
            grads = [
                g for o in outputs for g in torch.autograd.grad(o, (a, b), up, allow_unused=True)
            ]
            results.append([t for t in (*outputs, *grads) if t is not None])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.parametrize("level", ["base", "avx2"])
def test_every_simd_level(level: str) -> None:
    """The paths of older CPUs, on the CPU at hand (whose own path every other test takes)."""
    code = """
import torch
from tests.ops import test_corner_pool as t
for dtype in (torch.float32, torch.bfloat16, torch.float64):
    for layout in ("nchw", "nhwc"):
        t.test_pair_is_the_sum("cpu", dtype, layout, "top_left")
        for direction in ("top", "right"):
            t.test_values_equal_cummax_and_gradient_equals_twin("cpu", dtype, layout, direction)
t.test_nan_and_infinity("cpu", "left")
"""
    done = run_python(code, {"D2PROJ_SIMD": level})
    assert done.returncode == 0, done.stderr
