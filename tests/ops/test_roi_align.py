"""roi_align against torchvision, the plain-torch twin, and what docs/ops/roi_align.md promises."""

import pytest
import torch
import torchvision
from torch import Tensor

from d2proj.ops import RoIAlign, _ext, reference, roi_align
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


@pytest.mark.parametrize("seed", range(40))
def test_equals_torchvision_forward_and_backward(seed: int) -> None:
    """Random shapes, layouts, options; enough channels and boxes for each of the kernel's paths."""
    pick = torch.Generator().manual_seed(seed)

    def draw(*options):
        return options[int(torch.randint(len(options), (1,), generator=pick))]

    input, rois = make(
        seed,
        n=draw(1, 2, 3),
        c=draw(1, 3, 8, 16, 21, 64, 70),
        h=draw(1, 7, 33),
        w=draw(1, 9, 40),
        k=draw(0, 1, 5, 70),
        dtype=draw(torch.float32, torch.float64),
    )
    input = in_layout(input, draw(*LAYOUTS)).requires_grad_()
    size = draw((7, 7), (1, 1), (3, 5))
    options = (size, draw(1.0, 0.5, 0.83), draw(-1, 0, 1, 2, 3), draw(True, False))
    got = roi_align(input, rois, *options)
    expected = torchvision.ops.roi_align(input, rois, *options)
    # Sums in another order; a sample within an ulp of a map's edge may fall on its other side.
    tolerance = TOLERANCE[input.dtype] * 10
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(
        gradient(got, input), gradient(expected, input), atol=tolerance * 10, rtol=tolerance
    )


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_twin_in_every_dtype_and_layout(
    device: str, dtype: torch.dtype, layout: str
) -> None:
    input, rois = make(c=24, k=40, dtype=dtype)
    input = in_layout(input.to(device), layout).requires_grad_()
    rois = rois.to(device)
    got = roi_align(input, rois, (3, 2), 0.7, 2, True)
    expected = reference.roi_align.roi_align(input, rois, (3, 2), 0.7, 2, True)
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    got_grad, expected_grad = gradient(got, input), gradient(expected, input)
    tolerance = 5 * TOLERANCE[dtype]
    torch.testing.assert_close(got_grad, expected_grad, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", FLOATING)
def test_channels_last_in_channels_last_out(dtype: torch.dtype) -> None:
    input, rois = make(c=20, dtype=dtype)
    input = in_layout(input, "nhwc").requires_grad_()
    output = roi_align(input, rois, 3)
    assert output.is_contiguous(memory_format=torch.channels_last)
    grad = torch.ops.d2proj._roi_align_backward(
        output.detach(), rois, 1.0, 3, 3, *input.shape, -1, False, True, False
    )
    assert grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("feature_dtype", FLOATING)
@pytest.mark.parametrize("box_dtype", [torch.float32, torch.float64])
def test_box_dtype_is_free(feature_dtype: torch.dtype, box_dtype: torch.dtype) -> None:
    """Half features keep full coordinates (open-mmlab and torchvision round them, vision#3371)."""
    input, _ = make(dtype=feature_dtype, h=4, w=3000)
    rois = torch.tensor([[0, 2049.25, 0.0, 2053.75, 3.0]], dtype=box_dtype)
    got = roi_align(input, rois, 2, sampling_ratio=2)
    expected = torchvision.ops.roi_align(input.double(), rois.double(), 2, sampling_ratio=2)
    tolerance = max(TOLERANCE[feature_dtype], 1e-3)
    torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)


def test_box_list_and_module() -> None:
    input, rois = make(n=3, k=12)
    per_image = [rois[rois[:, 0] == i, 1:] for i in range(3)]
    order = rois[:, 0].argsort(stable=True)
    expected = roi_align(input, rois[order], (4, 3), 0.5, 2, True)
    assert torch.equal(roi_align(input, per_image, (4, 3), 0.5, 2, True), expected)
    module = RoIAlign((4, 3), 0.5, 2, aligned=True)
    assert torch.equal(module(input, per_image), expected)
    assert "output_size=(4, 3)" in repr(module)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [-1, 2])
@pytest.mark.parametrize("channels", [1, 17])
def test_gradcheck(aligned: bool, ratio: int, channels: int) -> None:
    input, rois = make(c=channels, h=5, w=6, k=4, n=1, dtype=torch.float64)
    rois = rois / 8
    rois[:, 0] = 0
    input.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: roi_align(x, rois, 2, 1.0, ratio, aligned), (input,), fast_mode=False
    )


def test_double_backward_is_a_clear_error() -> None:
    input, rois = make()
    input.requires_grad_()
    output = roi_align(input, rois, 2)
    (grad,) = torch.autograd.grad(output.square().sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="roi_align: double backward is not supported"):
        grad.sum().backward()


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_opcheck(layout: str) -> None:
    input, rois = make()
    input = in_layout(input, layout)
    for requires_grad in (False, True):
        sample = (input.clone().requires_grad_(requires_grad), rois, 0.5, 3, 2, 2, True)
        torch.library.opcheck(torch.ops.d2proj.roi_align.default, sample)
    grad = torch.randn(len(rois), 5, 3, 2)
    sample = (grad, rois, 0.5, 3, 2, *input.shape, 2, True, layout == "nhwc", False)
    torch.library.opcheck(torch.ops.d2proj._roi_align_backward.default, sample)


def test_compiles_without_graph_breaks() -> None:
    """With the eager-like backend: no C++ compiler is run, the graph is what is tested."""
    input, rois = make()
    compiled = torch.compile(
        lambda x, b: roi_align(x * 2, b, 3, 0.5, 2, True).sum(1),
        backend="aot_eager",
        fullgraph=True,
    )
    input.requires_grad_()
    expected = roi_align(input * 2, rois, 3, 0.5, 2, True).sum(1)
    got = compiled(input, rois)
    assert torch.equal(got, expected)
    assert torch.equal(gradient(got, input), gradient(expected, input))
    assert compiled(input, rois[:4]).shape[0] == 4  # another number of boxes: dynamic shapes


def test_autocast_keeps_features_and_raises_boxes() -> None:
    input, rois = make()
    half = input.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert roi_align(input, rois, 3).dtype == torch.float32
        assert roi_align(half, rois, 3).dtype == torch.bfloat16
        direct = torch.ops.d2proj.roi_align(half, rois.bfloat16(), 1.0, 3, 3, -1, False)
    expected = roi_align(half, rois.bfloat16().float(), 3)
    assert torch.equal(direct, expected)


@pytest.mark.parametrize("device", devices())
def test_empty_inputs(device: str) -> None:
    input = torch.randn(2, 3, 5, 5, device=device, requires_grad=True)
    none = torch.empty(0, 5, device=device)
    output = roi_align(input, none, 4)
    assert output.shape == (0, 3, 4, 4)
    output.sum().backward()
    assert input.grad is not None
    assert not input.grad.any()
    rois = torch.tensor([[0.0, 0, 0, 4, 4]], device=device)
    assert roi_align(input[:, :0], rois, 4).shape == (1, 0, 4, 4)
    assert roi_align(input[:, :, :0], rois, 4).eq(0).all()
    assert roi_align(input, [none[:, 1:], none[:, 1:]], 2).shape == (0, 3, 2, 2)


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("ratio", [-1, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_strange_boxes_pool_to_finite_values(device: str, ratio: int, aligned: bool) -> None:
    """Not finite: zero. Huge: no hang, no crash. Inverted: as the twin (torchvision throws)."""
    input = torch.rand(1, 20, 6, 6, device=device, requires_grad=True)
    not_finite = [[NAN, 0, 4, 4], [0, 0, INF, 4], [-INF, 0, 4, 4], [-INF, -INF, INF, INF]]
    huge = [[-1e30, -1e30, 1e30, 1e30], [0, 0, 1e9, 3], [-1e9, 1, 1e9, 2], [3e38, 0, 3.2e38, 1]]
    inverted = [[5, 5, 1, 1], [4, 1, 1, 4], [3, 3, 3, 3]]
    boxes = torch.tensor(not_finite + huge + inverted, device=device)
    output = roi_align(input, [boxes], 3, 1.0, ratio, aligned)
    assert output.isfinite().all()
    assert output[: len(not_finite)].eq(0).all()
    expected = reference.roi_align.roi_align(input, [boxes[-3:]], 3, 1.0, ratio, aligned)
    torch.testing.assert_close(output[-3:], expected)
    assert gradient(output, input).isfinite().all()


@pytest.mark.parametrize("index", [-1.0, 2.0, 1e30, NAN])
def test_image_index_out_of_range(index: float) -> None:
    input, rois = make(k=3)
    rois[1, 0] = index
    with pytest.raises(
        RuntimeError, match=r"roi_align: boxes\[1, 0\] must be an image index from 0"
    ):
        roi_align(input, rois, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_image_index_out_of_range_is_masked_on_cuda() -> None:
    input, rois = make(k=3)
    rois[1, 0] = 7
    output = roi_align(input.cuda(), rois.cuda(), 2)
    assert output[1].eq(0).all()


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
    ],
)
def test_wrong_arguments_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"roi_align: {message}"):
        roi_align(*arguments)


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
            output = roi_align(input, rois, 7, 1.0, 2)
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
import torch, torchvision
from d2proj.ops import roi_align
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for c in (64, 21):
        for fmt in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(2, c, 20, 20).to(dtype).contiguous(memory_format=fmt).requires_grad_()
            b = torch.rand(50, 5) * 15
            b[:, 0], b[:, 3:] = b[:, 0] > 7, b[:, 1:3] + b[:, 3:]
            y = roi_align(x, b, 7, 1.0, 2, True)
            z = torchvision.ops.roi_align(x.float(), b, 7, 1.0, 2, True)
            up = torch.randn_like(z).to(dtype)
            tolerance = dict(rtol=1e-2, atol=5e-2 if dtype != torch.float32 else 1e-4)
            torch.testing.assert_close(y.float(), z, **tolerance)
            torch.testing.assert_close(
                *(torch.autograd.grad(o, x, up.to(o.dtype))[0] for o in (y, z)), **tolerance)
"""
    done = run_python(code, {"D2PROJ_SIMD": level})
    assert done.returncode == 0, done.stderr


def test_deterministic_mode_is_accepted() -> None:
    input, rois = make()
    input.requires_grad_()
    expected = gradient(roi_align(input, rois, 3), input)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(gradient(roi_align(input, rois, 3), input), expected)
    finally:
        torch.use_deterministic_algorithms(False)


def test_library_is_there() -> None:
    assert _ext.AVAILABLE, _ext.ERROR
