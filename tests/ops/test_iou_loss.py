"""The IoU losses against torchvision, fvcore, their equations in numpy and the twin."""

import math

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from d2proj import ops
from d2proj.ops import reference
from d2proj.utils.testing import run_python
from tests.ops.test_box_iou import (
    DTYPES,
    assert_close,
    degenerate_boxes,
    equations,
    gradients,
    random_boxes,
    threads,  # noqa: F401
)

NAN, INF = float("nan"), float("inf")
PEERS = ("generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss")
NAMES = ("iou_loss", *PEERS)


def pairs(count: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Half of them overlap well, a few are equal, a few share one side."""
    a, b = random_boxes(count, dtype=dtype), random_boxes(count, seed=1, dtype=dtype)
    b[::2] += (a - b)[::2] * 0.8
    b[: count // 8] = a[: count // 8]
    b[count // 8 : count // 4, 2] = a[count // 8 : count // 4, 2]
    return a, b


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("count", [0, 1, 15, 16, 33, 2048, 5001])
def test_equals_torchvision(count: int, name: str, reduction: str, dtype: torch.dtype) -> None:
    a, b = pairs(count, dtype)
    grad = torch.randn(count if reduction == "none" else (), dtype=dtype)
    ours = gradients(getattr(ops, name), a, b, grad, reduction)
    theirs = gradients(getattr(torchvision.ops, name), a, b, grad, reduction)
    if reduction == "none" and name != "complete_box_iou_loss":
        assert torch.equal(ours[0], theirs[0])
    factor = count + 1 if reduction == "sum" and dtype == torch.float32 else 1
    assert_close(ours[0], theirs[0], dtype, factor)
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert_close(mine, other, dtype, factor=5)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_equals_fvcore(reduction: str) -> None:
    from fvcore.nn import giou_loss  # slow to import

    a, b = pairs(100, torch.float64)
    grad = torch.ones(100 if reduction == "none" else (), dtype=torch.float64)
    ours = gradients(ops.generalized_box_iou_loss, a, b, grad, reduction)
    theirs = gradients(giou_loss, a, b, grad, reduction)
    for mine, other in zip(ours, theirs, strict=True):
        assert_close(mine, other, torch.float64)


def test_equals_the_papers() -> None:
    a, b = pairs(50, torch.float64)
    expected = np.array([equations(x, y, 1e-7) for x, y in zip(a.numpy(), b.numpy(), strict=True)])
    for i, name in enumerate(NAMES):
        found = getattr(ops, name)(a, b).numpy()
        np.testing.assert_allclose(found, 1 - expected[:, i], atol=1e-7)
    iou = np.maximum(expected[:, 0], 1e-7)
    np.testing.assert_allclose(ops.iou_loss(a, b, mode="log"), -np.log(iou), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["linear", "log"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_iou_loss_equals_the_twin(reduction: str, mode: str, dtype: torch.dtype) -> None:
    a, b = pairs(100, dtype)
    a[7] += 500  # apart
    grad = torch.ones(100 if reduction == "none" else (), dtype=dtype)
    ours = gradients(ops.iou_loss, a, b, grad, reduction, 1e-7, mode)
    twin = gradients(reference.iou_loss.iou_loss, a, b, grad, reduction, 1e-7, mode)
    assert_close(ours[0], twin[0], dtype, factor=100 if reduction == "sum" else 1)
    for i in (1, 2):
        kept = torch.ones(100, dtype=torch.bool)
        kept[: 100 // 8] = False  # equal boxes: the twin's clamp lets other ties pass
        assert_close(ours[i][kept], twin[i][kept], dtype, factor=5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_degenerate_boxes_are_finite_and_equal_the_twin(name: str, dtype: torch.dtype) -> None:
    boxes = torch.cat([degenerate_boxes(dtype), random_boxes(5, dtype=dtype)])
    n = len(boxes)
    a, b = boxes.repeat_interleave(n, 0), boxes.repeat(n, 1)
    a, b = torch.cat([a, boxes]), torch.cat([b, boxes.clone()])
    grad = torch.ones(len(a), dtype=dtype)
    ours = gradients(getattr(ops, name), a, b, grad)
    assert all(t.isfinite().all() for t in ours)
    twin = getattr(reference.iou_loss, name)(a, b)
    torch.testing.assert_close(ours[0], twin, rtol=1e-4, atol=1e-4)
    mode = {"mode": "log"} if name == "iou_loss" else {}
    assert getattr(ops, name)(a, b, **mode).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_nan_propagates(name: str) -> None:
    for column in range(4):
        a, b = pairs(20)
        a[3, column] = NAN
        grad = torch.ones(20)
        loss, grad1, grad2 = gradients(getattr(ops, name), a, b, grad)
        rest = torch.arange(20) != 3
        assert loss.isnan().tolist() == (~rest).tolist()
        assert grad1[3].isnan().any()
        assert grad1[rest].isfinite().all()
        assert grad2[rest].isfinite().all()
        assert getattr(ops, name)(a, b, "mean").isnan()
        a[3, column] = INF
        getattr(ops, name)(a, b)
    assert ops.iou_loss(a.fill_(NAN), b, mode="log").isnan().all()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("name", NAMES[:3])
def test_gradcheck(name: str, reduction: str) -> None:
    a, b = random_boxes(18, dtype=torch.float64), random_boxes(18, seed=1, dtype=torch.float64)
    a, b = a.requires_grad_(), (b + (a.detach() - b) * 0.7).requires_grad_()
    function = getattr(ops, name)
    for x, y in ((a, b), (a, b.detach()), (a.detach(), b)):
        assert torch.autograd.gradcheck(lambda x, y: function(x, y, reduction), (x, y))
    if name == "iou_loss":
        log = lambda x, y: function(x, y, reduction, mode="log")  # noqa: E731
        assert torch.autograd.gradcheck(log, (a, b))


@pytest.mark.parametrize("name", NAMES)
def test_shapes_layouts_and_dtypes(name: str) -> None:
    function = getattr(ops, name)
    a, b = pairs(24)
    expected = function(a, b)
    assert function(a[0], b[0]).shape == ()
    assert torch.equal(function(a.view(2, 3, 4, 4), b.view(2, 3, 4, 4)), expected.view(2, 3, 4))
    assert torch.equal(function(a, b[0]), function(a, b[:1].repeat(24, 1)))
    strided = torch.cat([a, b], 1)
    assert torch.equal(function(strided[:, :4], strided[:, 4:]), expected)
    assert torch.equal(function(a.t().contiguous().t(), b), expected)
    for dtype in (torch.float16, torch.bfloat16, torch.int64):
        narrow = a.to(dtype)
        assert torch.equal(function(narrow, b), function(narrow.float(), b))
    assert function(a, b.double()).dtype == torch.float64
    x = a.half().requires_grad_()
    function(x, b, "sum").backward()
    assert x.grad.dtype == torch.float16
    empty = a[:0].requires_grad_()
    loss = function(empty, b[:0], "mean")
    loss.backward()
    assert loss.item() == 0
    assert empty.grad.shape == (0, 4)


@pytest.mark.parametrize("name", NAMES)
def test_result_does_not_depend_on_threads(name: str, threads) -> None:  # noqa: F811
    a, b = pairs(30_000)
    found = []
    for count in (1, 2, 3, 8):
        threads(count)
        found.append([*gradients(getattr(ops, name), a, b, torch.tensor(1.0), "mean")])
    for others in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], others, strict=True))


def test_a_long_mean_is_accurate() -> None:
    a, b = pairs(300_000)
    exact = ops.complete_box_iou_loss(a, b).double().mean()
    assert abs(ops.complete_box_iou_loss(a, b, "mean").double() / exact - 1) < 1e-6


_LEVEL = """
import torch, torchvision
from d2proj import ops
from tests.ops.test_box_iou import CLOSE, gradients
from tests.ops.test_iou_loss import PEERS, pairs
for dtype in CLOSE:
    a, b = pairs(77, dtype)
    for name in PEERS:
        ours = gradients(getattr(ops, name), a, b, torch.ones(77, dtype=dtype))
        theirs = gradients(getattr(torchvision.ops, name), a, b, torch.ones(77, dtype=dtype))
        assert name == PEERS[2] or torch.equal(ours[0], theirs[0]), (name, dtype)
        for mine, other in zip(ours, theirs):
            torch.testing.assert_close(mine, other, **CLOSE[dtype])
print("equal")
"""


@pytest.mark.parametrize("level", ["base", "avx2"])  # the other tests run the highest
def test_every_instruction_set(level: str) -> None:
    run = run_python(_LEVEL, {"D2PROJ_SIMD": level, "OMP_NUM_THREADS": "1"})
    assert run.stdout.strip() == "equal", run.stderr


@pytest.mark.parametrize("name", NAMES)
def test_opcheck_and_compile(name: str) -> None:
    kind = NAMES.index(name)
    a, b = pairs(9)
    x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
    for reduction in (0, 1):
        args = (x, y, kind, kind == 0, reduction, 1e-7)
        torch.library.opcheck(torch.ops.d2proj.box_iou_loss.default, args)
        grad = torch.ones(()) if reduction else torch.ones(9)
        args = (grad, a, b, kind, False, reduction, 1e-7, True, False)
        torch.library.opcheck(torch.ops.d2proj._box_iou_loss_backward.default, args)
    function = getattr(ops, name)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (7, 40):
        a, b = pairs(count)
        found = gradients(compiled, a, b, torch.tensor(1.0), "mean")
        expected = gradients(function, a, b, torch.tensor(1.0), "mean")
        assert all(torch.equal(p, q) for p, q in zip(found, expected, strict=True))


def test_double_backward_is_refused_in_words() -> None:
    a, b = pairs(3)
    a.requires_grad_()
    (grad,) = torch.autograd.grad(ops.iou_loss(a, b, "sum"), a, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


@pytest.mark.parametrize("name", NAMES)
def test_errors_name_argument_and_what_came(name: str) -> None:
    function = getattr(ops, name)
    with pytest.raises(ValueError, match=rf"^{name}: reduction must be none, mean or sum, got 'x'"):
        function(torch.rand(4, 4), torch.rand(4, 4), "x")
    with pytest.raises(RuntimeError, match=rf"^{name}: boxes1 must have shape .* got \(4, 5\)"):
        function(torch.rand(4, 5), torch.rand(4, 5))
    half = torch.rand(2, 4).bfloat16()
    with pytest.raises(RuntimeError, match=rf"^{name}: boxes1 must be float32 or .* got BFloat16"):
        torch.ops.d2proj.box_iou_loss(half, half, NAMES.index(name), False, 0, 0.0)
    if name == "iou_loss":
        with pytest.raises(ValueError, match="mode must be linear or log, got 'square'"):
            function(torch.rand(4, 4), torch.rand(4, 4), mode="square")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("name", NAMES)
def test_cuda_equals_cpu(name: str, reduction: str, dtype: torch.dtype) -> None:
    for count in (0, 1, 33, 300_001):
        a, b = pairs(count, dtype)
        grad = torch.ones(count if reduction == "none" else (), dtype=dtype)
        cpu = gradients(getattr(ops, name), a, b, grad, reduction)
        found = gradients(getattr(ops, name), a.cuda(), b.cuda(), grad.cuda(), reduction)
        for mine, other in zip(found, cpu, strict=True):
            assert_close(mine.cpu(), other, dtype, factor=10)
        again = gradients(getattr(ops, name), a.cuda(), b.cuda(), grad.cuda(), reduction)
        assert torch.equal(found[0], again[0])


def test_unit_box_loss_of_known_boxes() -> None:
    a, b = torch.tensor([[0.0, 0, 2, 1]]), torch.tensor([[1.0, 0, 3, 1]])
    assert ops.iou_loss(a, b).item() == pytest.approx(2 / 3)
    assert ops.iou_loss(a, b, mode="log").item() == pytest.approx(math.log(3))
    apart = ops.iou_loss(a, b + 10, mode="log")
    assert apart.item() == pytest.approx(-math.log(1e-7))
