"""box_iou and its relatives against torchvision, their equations in numpy and the twin."""

import math

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from d2proj import ops
from d2proj.ops import reference
from d2proj.utils.testing import run_python

NAN, INF = float("nan"), float("inf")
NAMES = ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou")
DTYPES = (torch.float32, torch.float64)
# Values are of order one; gradients, of order one over the shortest side.
CLOSE = {torch.float32: {"atol": 2e-6, "rtol": 2e-5}, torch.float64: {"atol": 1e-13, "rtol": 1e-11}}


def random_boxes(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Boxes with sides of 1 to 60 in a square of 100."""
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=g, dtype=torch.float64) * 60
    side = torch.rand(*shape, 2, generator=g, dtype=torch.float64) * 59 + 1
    return torch.cat([corner, corner + side], -1).to(dtype)


def degenerate_boxes(dtype: torch.dtype = torch.float32) -> Tensor:
    """Points, lines, inverted in one direction or both, and two plain ones."""
    rows = [[5, 5, 5, 5], [5, 5, 9, 5], [5, 5, 5, 9], [9, 5, 5, 8], [5, 9, 8, 5], [9, 9, 5, 5]]
    return torch.tensor([*rows, [0, 0, 0, 0], [4, 4, 9, 9], [5, 5, 7, 8]], dtype=dtype)


def gradients(function, a: Tensor, b: Tensor, grad: Tensor, *rest) -> tuple[Tensor, ...]:
    a, b = a.detach().clone().requires_grad_(), b.detach().clone().requires_grad_()
    result = function(a, b, *rest)
    return (result.detach(), *torch.autograd.grad(result, (a, b), grad))


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype, factor: float = 1) -> None:
    close = CLOSE[dtype]
    torch.testing.assert_close(
        found, expected, atol=close["atol"] * factor, rtol=close["rtol"] * factor, equal_nan=True
    )


@pytest.fixture
def threads():
    """Sets the number of torch's threads; puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


SHAPES = [(1, 1), (3, 5), (16, 16), (33, 7), (65, 130), (5, 513), (200, 3), (0, 4), (4, 0), (0, 0)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_torchvision(shape: tuple[int, int], name: str, dtype: torch.dtype) -> None:
    n, m = shape
    a, b = random_boxes(n, dtype=dtype), random_boxes(m, seed=1, dtype=dtype)
    b[: min(n, m) // 2] = a[: min(n, m) // 2]  # ties of all coordinates
    b[min(n, m) // 2 :: 3, 0] = 7.0
    a[::2, 0] = 7.0  # ties of one
    grad = torch.randn(n, m, dtype=dtype, generator=torch.Generator().manual_seed(2))
    ours = gradients(getattr(ops, name), a, b, grad)
    theirs = gradients(getattr(torchvision.ops, name), a, b, grad)
    if name == "complete_box_iou":  # its arctangent is not torch's
        assert_close(ours[0], theirs[0], dtype)
    else:
        assert torch.equal(ours[0], theirs[0])
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert_close(mine, other, dtype, factor=5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fmt", ["xyxy", "xywh", "cxcywh"])
def test_formats_equal_torchvision(fmt: str, dtype: torch.dtype) -> None:
    a, b = (
        torchvision.ops.box_convert(random_boxes(n, seed=n), "xyxy", fmt).to(dtype) for n in (9, 40)
    )
    grad = torch.randn(9, 40, dtype=dtype, generator=torch.Generator().manual_seed(0))
    ours = gradients(ops.box_iou, a, b, grad, fmt)
    theirs = gradients(torchvision.ops.box_iou, a, b, grad, fmt)
    assert torch.equal(ours[0], theirs[0])
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert_close(mine, other, dtype, factor=5)
    with pytest.raises(ValueError, match="box_iou: fmt must be one of xyxy, xywh, cxcywh, got 'x'"):
        ops.box_iou(a, b, "x")


def equations(a: np.ndarray, b: np.ndarray, eps: float) -> tuple[float, ...]:
    """IoU, GIoU, DIoU and CIoU of two boxes as their papers write them."""
    side = [max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    union = area_a + area_b - side[0] * side[1]
    iou = side[0] * side[1] / union
    hull = [max(a[i + 2], b[i + 2]) - min(a[i], b[i]) for i in (0, 1)]
    rho = sum(((a[i] + a[i + 2]) / 2 - (b[i] + b[i + 2]) / 2) ** 2 for i in (0, 1))
    diou = iou - rho / (hull[0] ** 2 + hull[1] ** 2 + eps)
    angles = [math.atan2(x[2] - x[0], x[3] - x[1]) for x in (a, b)]
    v = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
    giou = iou - (hull[0] * hull[1] - union) / (hull[0] * hull[1])
    return iou, giou, diou, diou - v / (1 - iou + v + eps) * v


def test_equals_the_papers() -> None:
    a, b = random_boxes(6, dtype=torch.float64), random_boxes(20, seed=5, dtype=torch.float64)
    expected = np.array([[equations(x, y, 1e-7) for y in b.numpy()] for x in a.numpy()])
    for i, name in enumerate(NAMES):
        found = getattr(ops, name)(a, b).numpy()
        np.testing.assert_allclose(found, expected[..., i], atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_degenerate_boxes_are_finite_and_equal_the_twin(name: str, dtype: torch.dtype) -> None:
    a = torch.cat([degenerate_boxes(dtype), random_boxes(5, dtype=dtype)])
    grad = torch.ones(len(a), len(a), dtype=dtype)
    ours = gradients(getattr(ops, name), a, a, grad)
    twin = gradients(getattr(reference.box_iou, name), a, a, grad)
    # One part in 1e7 of an inverted pair's distance is divided by eps alone: large, but finite.
    for mine, other in zip(ours, twin, strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_nan_propagates_and_infinities_do_not_crash(name: str) -> None:
    function = getattr(ops, name)
    for column in range(4):
        a, b = random_boxes(3), random_boxes(20, seed=1)
        a[1, column] = NAN
        found = function(a, b)
        assert found[1].isnan().all()
        assert found[[0, 2]].isfinite().all()
        assert function(b, a)[:, 1].isnan().all()
        a[1, column] = INF
        function(a, b)


@pytest.mark.parametrize("name", NAMES[:3])
def test_gradcheck(name: str) -> None:
    a = random_boxes(4, dtype=torch.float64).requires_grad_()
    b = random_boxes(19, seed=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(getattr(ops, name), (a, b))
    assert torch.autograd.gradcheck(getattr(ops, name), (a, b.detach()))


def test_alpha_is_a_constant_of_the_gradient() -> None:
    a, b = random_boxes(5, dtype=torch.float64), random_boxes(7, seed=1, dtype=torch.float64)
    grad = torch.ones(5, 7, dtype=torch.float64)
    found = gradients(ops.complete_box_iou, a, b, grad)[1]
    iou, diou = ops.box_iou(a, b), ops.distance_box_iou(a, b)

    def aspect(x: Tensor) -> Tensor:
        angle = [torch.atan((t[:, 2] - t[:, 0]) / (t[:, 3] - t[:, 1])) for t in (x, b)]
        return 4 / math.pi**2 * (angle[0][:, None] - angle[1]) ** 2

    alpha = aspect(a) / (1 - iou + aspect(a) + 1e-7)
    torch.testing.assert_close(ops.complete_box_iou(a, b), diou - alpha * aspect(a))
    numeric = torch.zeros_like(a)
    for i in range(a.numel()):
        step = torch.zeros(a.numel(), dtype=torch.float64)
        step[i] = 1e-6
        step = step.view_as(a)
        high, low = (ops.distance_box_iou(x, b) - alpha * aspect(x) for x in (a + step, a - step))
        numeric.view(-1)[i] = (high - low).sum() / 2e-6
    torch.testing.assert_close(found, numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_batches_layouts_and_dtypes(name: str) -> None:
    function = getattr(ops, name)
    a, b = random_boxes(3, 1, 6), random_boxes(2, 9, seed=1)
    found = function(a, b)
    assert found.shape == (3, 2, 6, 9)
    for i in range(3):
        for j in range(2):
            assert torch.equal(found[i, j], function(a[i, 0], b[j]))
    grad = torch.randn_like(found)
    expected = gradients(getattr(torchvision.ops, name), a, b, grad)
    for mine, other in zip(gradients(function, a, b, grad), expected, strict=True):
        assert_close(mine, other, torch.float32, factor=5)
    flat = a[0, 0]
    expected = function(flat, b[0])
    for strided in (flat.t().contiguous().t(), torch.cat([flat, flat], 1)[:, :4]):
        assert torch.equal(function(strided, b[0]), expected)
    offset = torch.cat([torch.zeros(1), flat.flatten()])[1:].view(-1, 4)
    assert torch.equal(function(offset, b[0]), expected)
    for dtype in (torch.float16, torch.bfloat16, torch.int64):
        narrow = flat.to(dtype)
        assert torch.equal(function(narrow, b[0]), function(narrow.float(), b[0]))
    assert function(flat.double(), b[0]).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(function(flat, b[0]), expected)
        op = torch.ops.d2proj.pairwise_box_iou
        assert op(flat.bfloat16(), b[0], 0, 0, 0.0).dtype == torch.float32


def test_half_gradients_have_the_dtype_of_the_boxes() -> None:
    a = random_boxes(3).half().requires_grad_()
    ops.box_iou(a, random_boxes(4)).sum().backward()
    assert a.grad.dtype == torch.float16
    assert a.grad.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_result_does_not_depend_on_threads(name: str, threads) -> None:
    a, b = random_boxes(1500), random_boxes(90, seed=1)
    grad = torch.randn(1500, 90, generator=torch.Generator().manual_seed(0))
    threads(1)
    expected = gradients(getattr(ops, name), a, b, grad)
    for count in (2, 3, 8):
        threads(count)
        for mine, other in zip(gradients(getattr(ops, name), a, b, grad), expected, strict=True):
            assert torch.equal(mine, other)


_LEVEL = """
import torch, torchvision
from d2proj import ops
from tests.ops.test_box_iou import NAMES, CLOSE, gradients, random_boxes
for dtype in CLOSE:
    a, b = random_boxes(70, dtype=dtype), random_boxes(43, seed=1, dtype=dtype)
    b[:9] = a[:9]
    grad = torch.ones(70, 43, dtype=dtype)
    for name in NAMES:
        ours = gradients(getattr(ops, name), a, b, grad)
        theirs = gradients(getattr(torchvision.ops, name), a, b, grad)
        assert name == "complete_box_iou" or torch.equal(ours[0], theirs[0]), (name, dtype)
        for mine, other in zip(ours, theirs):
            torch.testing.assert_close(mine, other, **CLOSE[dtype])
print("equal")
"""


@pytest.mark.parametrize("level", ["base", "avx2"])  # the other tests run the highest
def test_every_instruction_set(level: str) -> None:
    run = run_python(_LEVEL, {"D2PROJ_SIMD": level, "OMP_NUM_THREADS": "1"})
    assert run.stdout.strip() == "equal", run.stderr


def test_arctangent_is_accurate() -> None:
    # Of two boxes at one place, one square, 1 - CIoU holds the angle alone.
    for dtype, step in ((torch.float32, 2.0**-23), (torch.float64, 2.0**-52)):
        w = torch.logspace(-4, 4, 20_001, dtype=torch.float64).to(dtype)
        box = torch.stack([-w / 2, torch.full_like(w, -0.5), w / 2, torch.full_like(w, 0.5)], 1)
        line = torch.tensor([[-0.5, 0.0, 0.5, 0.0]], dtype=dtype)  # of angle pi / 2
        # With a huge eps, CIoU = -v^2 / (v + eps) and DIoU = -d / eps = 0: solve for the angle.
        v2 = -ops.complete_box_iou(box, line, eps=1e18)[:, 0].double() * 1e18
        angle = math.pi / 2 - (v2.sqrt() * math.pi**2 / 4).sqrt()
        exact = torch.atan(w.double())
        # v's own rounding is divided by the distance from pi / 2, so only half the range is sharp.
        sharp = w < 1
        error = (angle - exact)[sharp].abs().max().item()
        assert error < 8 * step


@pytest.mark.parametrize("name", NAMES)
def test_opcheck_and_compile(name: str) -> None:
    kind = NAMES.index(name)
    a, b = random_boxes(5).requires_grad_(), random_boxes(3, seed=1).requires_grad_()
    torch.library.opcheck(torch.ops.d2proj.pairwise_box_iou.default, (a, b, kind, 0, 1e-7))
    args = (torch.ones(5, 3), a.detach(), b.detach(), kind, 0, 1e-7)
    torch.library.opcheck(torch.ops.d2proj._pairwise_box_iou_backward.default, args)
    function = getattr(ops, name)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for n, m in ((6, 9), (17, 4)):
        a, b = random_boxes(n), random_boxes(m, seed=1)
        grad = torch.ones(n, m)
        for mine, other in zip(
            gradients(compiled, a, b, grad), gradients(function, a, b, grad), strict=True
        ):
            assert torch.equal(mine, other)


def test_registered_and_direct_gradients_are_the_same() -> None:
    a, b = random_boxes(6), random_boxes(4, seed=1)
    grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    registered = gradients(torch.ops.d2proj.pairwise_box_iou, a, b, grad, 3, 0, 1e-7)
    for mine, other in zip(gradients(ops.complete_box_iou, a, b, grad), registered, strict=True):
        assert torch.equal(mine, other)


def test_double_backward_is_refused_in_words() -> None:
    a = random_boxes(3).requires_grad_()
    (grad,) = torch.autograd.grad(ops.box_iou(a, random_boxes(4)).sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


@pytest.mark.parametrize("name", NAMES)
def test_errors_name_argument_and_what_came(name: str) -> None:
    function = getattr(ops, name)
    with pytest.raises(RuntimeError, match=rf"^{name}: boxes1 must have shape .* got \(4, 5\)"):
        function(torch.rand(4, 5), torch.rand(4, 4))
    with pytest.raises(RuntimeError, match=rf"^{name}: boxes2 must have shape .* got \(4\)"):
        function(torch.rand(4, 4), torch.rand(4))
    half = torch.rand(2, 4).bfloat16()
    with pytest.raises(RuntimeError, match="float32 or float64, got BFloat16"):
        torch.ops.d2proj.pairwise_box_iou(half, half, NAMES.index(name), 0, 0.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_cuda_equals_cpu(name: str, dtype: torch.dtype) -> None:
    for n, m in ((1, 1), (33, 7), (100, 300), (5000, 3), (3, 5000)):
        a, b = random_boxes(n, dtype=dtype), random_boxes(m, seed=1, dtype=dtype)
        grad = torch.randn(n, m, dtype=dtype)
        cpu = gradients(getattr(ops, name), a, b, grad)
        found = gradients(getattr(ops, name), a.cuda(), b.cuda(), grad.cuda())
        for mine, other in zip(found, cpu, strict=True):
            assert_close(mine.cpu(), other, dtype, factor=50)
