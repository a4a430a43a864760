"""sigmoid_focal_loss against torchvision, the formula in float64, and the plain-torch twin."""

import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

from d2proj.ops import reference, sigmoid_focal_loss
from d2proj.utils.testing import FLOATING, devices, in_layout, run_python

INF = float("inf")
#: Relative tolerance of a loss and of a gradient.
CLOSE = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 2e-6, torch.float64: 1e-13}


def draw(shape: tuple[int, ...], seed: int = 0, scale: float = 4.0, hard: bool = False):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=g, dtype=torch.float64) * scale
    targets = torch.rand(shape, generator=g, dtype=torch.float64)
    return logits, targets.round() if hard else targets


def gradient(output: Tensor, input: Tensor, seed: int = 1) -> Tensor:
    up = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed))
    return torch.autograd.grad(output, input, up.to(output))[0]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 1.5, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [0.25, 1.0, -1])
def test_equals_torchvision(alpha: float, gamma: float, reduction: str) -> None:
    for seed, shape in enumerate([(50, 7), (3,), (), (2, 3, 4, 5), (1500, 9)]):
        logits, targets = draw(shape, seed, hard=bool(seed % 2))
        logits.requires_grad_()
        arguments = (logits, targets, alpha, gamma, reduction)
        got = sigmoid_focal_loss(*arguments)
        expected = torchvision.ops.sigmoid_focal_loss(*arguments)
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(
            gradient(got, logits), gradient(expected, logits), rtol=1e-9, atol=1e-10
        )


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_digits_over_the_whole_range(device: str, dtype: torch.dtype, gamma: float) -> None:
    """Against float64: relative error of losses and gradients, of right and wrong answers."""
    for hard in (False, True):
        logits, targets = draw((5000,), scale=25.0, hard=hard)
        x = logits.to(device, dtype).requires_grad_()
        t = targets.to(device, dtype)
        wide = x.detach().double().requires_grad_()
        got = sigmoid_focal_loss(x, t, 0.25, gamma)
        expected = reference.sigmoid_focal_loss.sigmoid_focal_loss(wide, t.double(), 0.25, gamma)
        tiny = {torch.float16: 1e-7, torch.float64: 1e-300}.get(dtype, 1e-36)
        # A soft target's gradient is a difference of its two sides: absolute there.
        for a, b, absolute in (
            (got, expected, tiny),
            (
                gradient(got.sum(), x),
                gradient(expected.sum(), wide),
                tiny if hard else CLOSE[dtype],
            ),
        ):
            torch.testing.assert_close(
                a.double(), b, rtol=CLOSE[dtype] * (5 if gamma == 0.3 else 1), atol=absolute
            )


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("columns", [1, 3, 80])
def test_classes_equal_one_hot(
    device: str, dtype: torch.dtype, reduction: str, columns: int
) -> None:
    g = torch.Generator().manual_seed(columns)
    x = torch.randn(700, columns, generator=g).to(device, dtype).requires_grad_()
    classes = torch.randint(-1, columns + 2, (700,), generator=g).to(device)
    got = sigmoid_focal_loss(x, classes, reduction=reduction)
    one_hot = F.one_hot(classes.clamp(0, columns), columns + 1)[:, :columns].to(dtype)
    each = sigmoid_focal_loss(x.double() if reduction == "sum" else x, one_hot)
    each = torch.where(classes[:, None] >= 0, each, 0)
    expected = each if reduction == "none" else getattr(each.double(), reduction)().to(dtype)
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12}.get(dtype, 1e-2)
    torch.testing.assert_close(got, expected.to(dtype), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        gradient(got, x), gradient(expected, x), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_extreme_logits(device: str, dtype: torch.dtype, gamma: float) -> None:
    """Finite up to 1e4 and beyond; infinite logits cost nothing if right, all if wrong."""
    x = torch.tensor([1e4, -1e4, 100, -100, 0.0], dtype=dtype, device=device).requires_grad_()
    for t, expected in ((0.0, [1e4, 0, 100, 0]), (1.0, [0, 1e4, 0, 100])):
        loss = sigmoid_focal_loss(x, torch.full_like(x, t), -1, gamma)
        torch.testing.assert_close(loss[:4], x.new_tensor(expected))
        (grad,) = torch.autograd.grad(loss.sum(), x)
        torch.testing.assert_close(grad[:4].abs(), x.new_tensor([bool(e) for e in expected]) * 1)
    infinite = torch.tensor([INF, -INF], dtype=dtype, device=device)
    zeros = torch.zeros_like(infinite)
    assert sigmoid_focal_loss(infinite, zeros, gamma=gamma).tolist() == [INF, 0]
    assert sigmoid_focal_loss(infinite, zeros + 1, gamma=gamma).tolist() == [0, INF]
    assert sigmoid_focal_loss(infinite * 0, zeros, gamma=gamma).isnan().all()


@pytest.mark.parametrize("gamma", [0.0, 1.3, 2.0])
def test_gradcheck(gamma: float) -> None:
    x, t = draw((4, 3))
    x.requires_grad_()
    for reduction in ("none", "mean", "sum"):
        assert torch.autograd.gradcheck(
            lambda a, r=reduction: sigmoid_focal_loss(a, t, 0.25, gamma, r), (x,)
        )
    classes = torch.tensor([2, -1, 3, 0])
    assert torch.autograd.gradcheck(lambda a: sigmoid_focal_loss(a, classes, 0.25, gamma), (x,))


def test_double_backward_is_a_clear_error() -> None:
    x, t = draw((4, 3))
    x.requires_grad_()
    (grad,) = torch.autograd.grad(sigmoid_focal_loss(x, t).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="sigmoid_focal_loss: double backward is not supported"):
        grad.sum().backward()


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "sliced", "permuted"])
def test_layouts(layout: str) -> None:
    x, t = draw((2, 5, 4, 6))
    expected = sigmoid_focal_loss(x, t)
    y = in_layout(x, layout).requires_grad_()
    got = sigmoid_focal_loss(y, t)
    torch.testing.assert_close(got, expected)
    if layout == "nhwc":
        assert got.stride() == y.stride()
        assert torch.autograd.grad(got.sum(), y)[0].stride() == y.stride()
    x.requires_grad_()
    torch.testing.assert_close(
        gradient(sigmoid_focal_loss(y, t, reduction="sum"), y),
        gradient(sigmoid_focal_loss(x, t, reduction="sum"), x),
    )


def test_opcheck() -> None:
    x, t = (a.float() for a in draw((6, 3)))
    classes = torch.tensor([0, 1, 2, 3, -1, 0])
    for reduction in range(3):
        for targets in (t, classes):
            for wanted in (False, True):
                sample = (x.clone().requires_grad_(wanted), targets, 0.25, 2.0, reduction)
                torch.library.opcheck(torch.ops.d2proj.sigmoid_focal_loss.default, sample)
            grad = torch.ones(()) if reduction else torch.ones(6, 3)
            sample = (grad, x, targets, 0.25, 2.0, reduction)
            torch.library.opcheck(torch.ops.d2proj._sigmoid_focal_loss_backward.default, sample)


def test_compiles_without_graph_breaks() -> None:
    x, t = draw((6, 3))
    x.requires_grad_()

    def f(a: Tensor, b: Tensor) -> Tensor:
        return sigmoid_focal_loss(a * 2, b, reduction="sum")

    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, t), f(x, t))
    assert torch.equal(gradient(compiled(x, t), x), gradient(f(x, t), x))


def test_autocast_computes_in_float32() -> None:
    """As torch's own losses: a sum of many may exceed what half can hold."""
    x, t = (a.half() for a in draw((40_000,), scale=20.0))
    with torch.autocast("cpu", dtype=torch.float16):
        loss = sigmoid_focal_loss(x, t, reduction="sum")
    assert loss.dtype == torch.float32
    assert 65504 < loss < INF


@pytest.mark.parametrize("device", devices())
def test_empty_inputs(device: str) -> None:
    x = torch.empty(0, 4, device=device, requires_grad=True)
    for targets in (torch.empty(0, 4, device=device), torch.empty(0, device=device).long()):
        assert sigmoid_focal_loss(x, targets).shape == (0, 4)
        assert sigmoid_focal_loss(x, targets, reduction="sum") == 0
        assert sigmoid_focal_loss(x, targets, reduction="mean").isnan()
        sigmoid_focal_loss(x, targets, reduction="sum").backward()
    none = torch.empty(3, 0, device=device)
    assert sigmoid_focal_loss(none, torch.zeros(3, device=device).long()).shape == (3, 0)


def test_targets_of_another_dtype() -> None:
    x, t = draw((6, 3), hard=True)
    for kind in (torch.bool, torch.int64, torch.float32, torch.float16):
        assert torch.equal(sigmoid_focal_loss(x, t.to(kind)), sigmoid_focal_loss(x, t))


def test_wrong_arguments_are_named() -> None:
    x = torch.zeros(4, 3)
    with pytest.raises(RuntimeError, match="sigmoid_focal_loss: inputs must be float16"):
        sigmoid_focal_loss(x.int(), x.int())
    with pytest.raises(RuntimeError, match="targets must have the shape of inputs"):
        sigmoid_focal_loss(x, x[:2])
    with pytest.raises(RuntimeError, match="classes in targets must have the shape of inputs"):
        sigmoid_focal_loss(x, torch.zeros(3).long())
    with pytest.raises(RuntimeError, match="gamma must be 0 or more"):
        sigmoid_focal_loss(x, x, gamma=-1.0)
    with pytest.raises(RuntimeError, match="targets must not require a gradient"):
        sigmoid_focal_loss(x, x.clone().requires_grad_())
    with pytest.raises(ValueError, match="alpha must be at most 1"):
        sigmoid_focal_loss(x, x, alpha=2.0)
    with pytest.raises(ValueError, match="reduction must be none, mean or sum, got 'all'"):
        sigmoid_focal_loss(x, x, reduction="all")


def test_bits_do_not_depend_on_threads() -> None:
    x, t = (a.float() for a in draw((50_000, 3)))
    x.requires_grad_()
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            loss = sigmoid_focal_loss(x, t, reduction="sum")
            results.append((loss.detach(), gradient(loss, x)))
    finally:
        torch.set_num_threads(before)
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.parametrize("level", ["base", "avx2"])
def test_every_simd_level(level: str) -> None:
    code = """
import torch
from tests.ops import test_sigmoid_focal_loss as t
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    for gamma in (2.0, 0.3):
        t.test_digits_over_the_whole_range("cpu", dtype, gamma)
    t.test_classes_equal_one_hot("cpu", dtype, "sum", 3)
"""
    done = run_python(code, {"D2PROJ_SIMD": level})
    assert done.returncode == 0, done.stderr
