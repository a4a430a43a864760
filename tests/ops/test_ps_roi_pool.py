"""ps_roi_pool, ps_roi_align against torchvision, their twins, and docs/ops/ps_roi_pool.md."""

import pytest
import torch
import torchvision
from torch import Tensor

from d2proj import ops
from d2proj.ops import PSRoIAlign, PSRoIPool, ps_roi_align, ps_roi_pool, reference
from d2proj.utils.testing import (
    FLOATING,
    TOLERANCE,
    devices,
    in_layout,
    random_rois,
    run_python,
)

NAN, INF = float("nan"), float("inf")
LAYOUTS = ("nchw", "nhwc", "sliced", "permuted")
NAMES = ("ps_roi_pool", "ps_roi_align")


def make(seed: int = 0, n: int = 2, c: int = 5, h: int = 17, w: int = 23, k: int = 9, **kwargs):
    """`c` channels of the result, for 3 x 2 bins."""
    g = torch.Generator().manual_seed(seed)
    dtype = kwargs.get("dtype", torch.float32)
    bins = kwargs.get("bins", 6)
    box_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    rois = random_rois(k, n, 40.0, generator=g, dtype=box_dtype)
    return torch.randn(n, c * bins, h, w, generator=g).to(dtype), rois


def gradient(output: Tensor, input: Tensor, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    up = torch.randn(output.shape, generator=g).to(output)
    return torch.autograd.grad(output, input, up)[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(30))
def test_equals_torchvision_forward_and_backward(name: str, seed: int) -> None:
    """Random shapes, layouts, options; enough channels and boxes for each of the kernel's paths.

    The gradient of torchvision's ps_roi_pool is not its forward pass's where a bin ends at the
    map's last row or column (it adds to cells that were not read): compared elsewhere.
    """
    pick = torch.Generator().manual_seed(seed)

    def draw(*options):
        return options[int(torch.randint(len(options), (1,), generator=pick))]

    size = draw((7, 7), (1, 1), (3, 5))
    input, rois = make(
        seed,
        n=draw(1, 2, 3),
        c=draw(1, 3, 16, 21, 33),
        h=draw(1, 7, 33),
        w=draw(1, 9, 40),
        k=draw(0, 1, 5, 33, 65),
        dtype=draw(torch.float32, torch.float64),
        bins=size[0] * size[1],
    )
    input = in_layout(input, draw(*LAYOUTS)).requires_grad_()
    options = [size, draw(1.0, 0.5, 0.83)]
    if name == "ps_roi_align":
        options.append(draw(1, 2, 3))
    got = getattr(ops, name)(input, rois, *options)
    expected = getattr(torchvision.ops, name)(input, rois, *options)
    tolerance = TOLERANCE[input.dtype] * 10
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
    if name == "ps_roi_pool":
        inside = (rois[:, 3:] * options[1]).round() + 1
        inside = (inside < rois.new_tensor([input.shape[3] - 1, input.shape[2] - 1])).all(1)
        got, expected = got[inside], expected[inside]
    torch.testing.assert_close(
        gradient(got, input), gradient(expected, input), atol=tolerance * 10, rtol=tolerance
    )


def test_adaptive_sampling_equals_torchvision() -> None:
    """sampling_ratio -1, boxes that are not empty (torchvision divides by their zero samples)."""
    input, rois = make(k=40)
    rois[:, 3:] += 1
    got = ps_roi_align(input, rois, (3, 2), 0.7)
    torch.testing.assert_close(got, torchvision.ops.ps_roi_align(input, rois, (3, 2), 0.7))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_twin_in_every_dtype_and_layout(
    name: str, device: str, dtype: torch.dtype, layout: str
) -> None:
    for c, k in ((1, 9), (21, 60)):
        input, rois = make(c=c, k=k, dtype=dtype)
        input = in_layout(input.to(device), layout).requires_grad_()
        rois = rois.to(device)
        got = getattr(ops, name)(input, rois, (3, 2), 0.7)
        expected = getattr(reference.ps_roi_pool, name)(input, rois, (3, 2), 0.7)
        assert got.dtype == dtype
        torch.testing.assert_close(got, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
        got_grad, expected_grad = gradient(got, input), gradient(expected, input)
        tolerance = 10 * TOLERANCE[dtype]
        torch.testing.assert_close(got_grad, expected_grad, atol=tolerance, rtol=tolerance)
        if layout == "nhwc":
            assert got.is_contiguous(memory_format=torch.channels_last)
            assert got_grad.is_contiguous(memory_format=torch.channels_last)


def test_each_bin_reads_its_own_channels() -> None:
    """R-FCN, equation 1: a map of constant planes gives back the planes' numbers."""
    planes = torch.arange(2.0 * 6).view(1, 12, 1, 1).expand(1, 12, 20, 20)
    rois = torch.tensor([[0.0, 2, 2, 14, 14]])
    expected = torch.arange(12.0).view(1, 2, 3, 2)
    torch.testing.assert_close(ps_roi_pool(planes, rois, (3, 2)), expected)
    torch.testing.assert_close(ps_roi_align(planes, rois, (3, 2)), expected)


def test_the_last_row_and_column_are_never_read_by_ps_roi_pool() -> None:
    input = torch.zeros(1, 1, 6, 6)
    input[..., -1, :] = input[..., -1] = 1
    rois = torch.tensor([[0.0, 0, 0, 6, 6]])
    assert not ps_roi_pool(input, rois, 1).any()
    assert not torchvision.ops.ps_roi_pool(input, rois, 1).any()


def test_box_list_and_modules() -> None:
    input, rois = make(n=3, k=12)
    per_image = [rois[rois[:, 0] == i, 1:] for i in range(3)]
    rois = rois[rois[:, 0].argsort(stable=True)]
    module = PSRoIPool((3, 2), 0.5)
    assert torch.equal(module(input, per_image), ps_roi_pool(input, rois, (3, 2), 0.5))
    assert repr(module) == "PSRoIPool(output_size=(3, 2), spatial_scale=0.5)"
    module = PSRoIAlign((3, 2), 0.5, 2)
    assert torch.equal(module(input, per_image), ps_roi_align(input, rois, (3, 2), 0.5, 2))
    assert repr(module) == "PSRoIAlign(output_size=(3, 2), spatial_scale=0.5, sampling_ratio=2)"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 5])
def test_gradcheck(name: str, channels: int) -> None:
    """Of ps_roi_pool too, boxes at the map's end included."""
    input, rois = make(c=channels, h=4, w=5, k=12, n=1, dtype=torch.float64)
    rois = rois / 8
    rois[:, 0] = 0
    input.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: getattr(ops, name)(x, rois, (3, 2)), (input,), fast_mode=False
    )


@pytest.mark.parametrize("name", NAMES)
def test_double_backward_is_a_clear_error(name: str) -> None:
    input, rois = make()
    input.requires_grad_()
    output = getattr(ops, name)(input, rois, (3, 2))
    (grad,) = torch.autograd.grad(output.square().sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{name}: double backward is not supported"):
        grad.sum().backward()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_opcheck(name: str, layout: str) -> None:
    input, rois = make()
    input = in_layout(input, layout)
    ratio = (2,) if name == "ps_roi_align" else ()
    for requires_grad in (False, True):
        sample = (input.clone().requires_grad_(requires_grad), rois, 0.5, 3, 2, *ratio)
        torch.library.opcheck(getattr(torch.ops.d2proj, name).default, sample)
    grad = torch.randn(len(rois), 5, 3, 2)
    sample = (grad, rois, 0.5, 3, 2, *input.shape, *ratio, layout == "nhwc", False)
    torch.library.opcheck(getattr(torch.ops.d2proj, f"_{name}_backward").default, sample)


@pytest.mark.parametrize("name", NAMES)
def test_compiles_without_graph_breaks(name: str) -> None:
    input, rois = make()
    input.requires_grad_()
    op = getattr(ops, name)
    compiled = torch.compile(
        lambda x, b: op(x * 2, b, (3, 2), 0.5).sum(1), backend="aot_eager", fullgraph=True
    )
    expected = op(input * 2, rois, (3, 2), 0.5).sum(1)
    got = compiled(input, rois)
    assert torch.equal(got, expected)
    assert torch.equal(gradient(got, input), gradient(expected, input))
    assert compiled(input, rois[:4]).shape[0] == 4


@pytest.mark.parametrize("name", NAMES)
def test_autocast_keeps_features_and_raises_boxes(name: str) -> None:
    input, rois = make()
    half = input.bfloat16()
    ratio = (-1,) if name == "ps_roi_align" else ()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        direct = getattr(torch.ops.d2proj, name)(half, rois.bfloat16(), 1.0, 3, 2, *ratio)
    assert torch.equal(direct, getattr(ops, name)(half, rois.bfloat16().float(), (3, 2)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("device", devices())
def test_empty_inputs(name: str, device: str) -> None:
    op = getattr(ops, name)
    input = torch.randn(2, 8, 5, 5, device=device, requires_grad=True)
    output = op(input, torch.empty(0, 5, device=device), 2)
    assert output.shape == (0, 2, 2, 2)
    output.sum().backward()
    assert input.grad is not None
    assert not input.grad.any()
    rois = torch.tensor([[0.0, 0, 0, 4, 4]], device=device)
    assert op(input[:, :0], rois, 2).shape == (1, 0, 2, 2)
    no_rows = input[:, :, :0].detach().requires_grad_()
    output = op(no_rows, rois, 2)
    assert output.eq(0).all()
    output.sum().backward()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("channels", [1, 20])
def test_strange_boxes(name: str, device: str, channels: int) -> None:
    """Not finite: zero. Huge: no hang. Inverted or empty: finite, as the twin."""
    input = torch.rand(1, channels * 9, 6, 6, device=device, requires_grad=True)
    not_finite = [[NAN, 0, 4, 4], [0, 0, INF, 4], [-INF, 0, 4, 4], [-INF, -INF, INF, INF]]
    huge = [[-1e30, -1e30, 1e30, 1e30], [0, 0, 1e9, 3], [-1e9, 1, 1e9, 2], [3e38, 0, 3.2e38, 1]]
    inverted = [[5, 5, 1, 1], [4, 1, 1, 4], [3, 3, 3, 3]]
    boxes = torch.tensor(not_finite + huge + inverted, device=device)
    output = getattr(ops, name)(input, [boxes], 3)
    assert output.isfinite().all()
    assert output[: len(not_finite)].eq(0).all()
    expected = getattr(reference.ps_roi_pool, name)(input, [boxes[-3:]], 3)
    torch.testing.assert_close(output[-3:], expected)
    assert gradient(output, input).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 20])
def test_nan_cells_stay_in_their_bins(name: str, channels: int) -> None:
    """A mean that reads a NaN is NaN; no other one is."""
    input = torch.rand(1, channels * 4, 12, 12)
    input[..., 1, 1] = NAN
    output = getattr(ops, name)(input, torch.tensor([[0.0, 0, 0, 10, 10]]), 2)
    assert output[:, :, 0, 0].isnan().all()
    assert output.isnan().sum() == channels


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("index", [-1.0, 2.0, 1e30, NAN])
def test_image_index_out_of_range(name: str, index: float) -> None:
    input, rois = make(k=3)
    rois[1, 0] = index
    with pytest.raises(RuntimeError, match=rf"{name}: boxes\[1, 0\] must be an image index from"):
        getattr(ops, name)(input, rois, (3, 2))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(4, 5, 5), torch.ones(1, 5), 2), "input must have shape"),
        ((torch.ones(1, 4, 5, 5), torch.ones(1, 4), 2), r"boxes must have shape \(K, 5\)"),
        ((torch.ones(1, 4, 5, 5).int(), torch.ones(1, 5), 2), "input must be float16"),
        ((torch.ones(1, 4, 5, 5), torch.ones(1, 5).int(), 2), "boxes must be float32 or float64"),
        ((torch.ones(1, 4, 5, 5), torch.zeros(1, 5), 0), "output_size must be positive"),
        (
            (torch.ones(1, 5, 5, 5), torch.zeros(1, 5), 2),
            "input must have a multiple of 2 x 2 channels, got 5",
        ),
    ],
)
def test_wrong_arguments_are_named(name: str, arguments: tuple, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"{name}: {message}"):
        getattr(ops, name)(*arguments)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [3, 200])
def test_bits_do_not_depend_on_threads(name: str, k: int) -> None:
    input, rois = make(n=1, c=17, h=40, w=40, k=k)
    input.requires_grad_()
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            output = getattr(ops, name)(input, rois, (3, 2))
            results.append((output.detach(), gradient(output, input)))
    finally:
        torch.set_num_threads(before)
    for output, grad in results[1:]:
        assert torch.equal(output, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.parametrize("level", ["base", "avx2"])
def test_every_simd_level(level: str) -> None:
    code = """
import torch
from d2proj import ops
from d2proj.ops import reference
for name in ("ps_roi_pool", "ps_roi_align"):
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        x = torch.randn(2, 84, 20, 20).to(dtype).requires_grad_()
        b = torch.rand(30, 5) * 15
        b[:, 0], b[:, 3:] = b[:, 0] > 7, b[:, 1:3] + b[:, 3:]
        y = getattr(ops, name)(x, b, 2)
        z = getattr(reference.ps_roi_pool, name)(x, b, 2)
        up = torch.randn_like(z)
        tolerance = dict(rtol=1e-2, atol=1e-1 if dtype.itemsize == 2 else 1e-4)
        torch.testing.assert_close(y, z, **tolerance)
        torch.testing.assert_close(
            *(torch.autograd.grad(o, x, up)[0] for o in (y, z)), **tolerance)
"""
    done = run_python(code, {"D2PROJ_SIMD": level})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_deterministic_mode_is_accepted(name: str) -> None:
    input, rois = make()
    input.requires_grad_()
    op = getattr(ops, name)
    expected = gradient(op(input, rois, (3, 2)), input)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(gradient(op(input, rois, (3, 2)), input), expected)
    finally:
        torch.use_deterministic_algorithms(False)
