"""deform_roi_pool and deform_ps_roi_pool against numpy transcriptions of their sources' equations,
against torchvision where the definitions coincide, and against the plain-torch twin."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from d2proj import ops
from d2proj.ops import deform_ps_roi_pool, deform_roi_pool, reference
from d2proj.utils.testing import FLOATING, TOLERANCE, devices, in_layout, random_rois, run_python

NAN, INF = float("nan"), float("inf")
LAYOUTS = ("nchw", "nhwc", "sliced", "permuted")
TWIN = reference.deform_roi_pool


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(
    seed: int = 0,
    n: int = 2,
    c: int = 5,
    h: int = 11,
    w: int = 14,
    k: int = 6,
    parts: tuple[int, ...] = (2, 3, 2),
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    """A map, rois of twice its size, and offsets of shape (k, *parts)."""
    g = generator(seed)
    box_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    rois = random_rois(k, n, 25.0, generator=g, dtype=box_dtype)
    offset = torch.randn(k, *parts, generator=g, dtype=torch.float64) * 2
    return torch.randn(n, c, h, w, generator=g).to(dtype), rois, offset.to(dtype)


def gradients(output: Tensor, *wanted: Tensor, seed: int = 1) -> tuple[Tensor, ...]:
    up = torch.randn(output.shape, generator=generator(seed), dtype=torch.float64).to(output)
    return torch.autograd.grad(output, wanted, up)


def close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


# ---- the sources' equations, in numpy, sample by sample ----


def mmcv_samples(box, shift, ph, pw, size, scale, ratio, gamma) -> Iterator[tuple[float, float]]:
    """Sample points (y, x) of a bin, as mmcv's kernel takes them; None counts but reads nothing."""
    pooled_h, pooled_w = size
    x1, y1, x2, y2 = (v * scale - 0.5 for v in box)
    width, height = x2 - x1, y2 - y1
    grid_h = ratio if ratio > 0 else math.ceil(height / pooled_h)
    grid_w = ratio if ratio > 0 else math.ceil(width / pooled_w)
    x1, y1 = x1 + gamma * width * shift[0], y1 + gamma * height * shift[1]
    for iy in range(grid_h):
        for ix in range(grid_w):
            yield (
                y1 + ph * height / pooled_h + (iy + 0.5) * height / pooled_h / grid_h,
                x1 + pw * width / pooled_w + (ix + 0.5) * width / pooled_w / grid_w,
            )


def mmcv_bilinear(plane: np.ndarray, y: float, x: float) -> float:
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    ly, lx = y - y0, x - x0
    return (
        (1 - ly) * ((1 - lx) * plane[y0, x0] + lx * plane[y0, x1])
        + ly * ((1 - lx) * plane[y1, x0] + lx * plane[y1, x1])
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_deform_roi_pool_equals_the_equation(seed: int) -> None:
    ratio = seed % 3
    input, rois, offset = make(seed, c=2, k=4, dtype=torch.float64)
    got = deform_roi_pool(input, rois, offset, (3, 2), 0.6, ratio, 0.15)
    for k, (image, *box) in enumerate(rois.tolist()):
        for c in range(2):
            for ph in range(3):
                for pw in range(2):
                    shift = offset[k, :, ph, pw].tolist()
                    points = list(mmcv_samples(box, shift, ph, pw, (3, 2), 0.6, ratio, 0.15))
                    plane = input[int(image), c].numpy()
                    expected = sum(mmcv_bilinear(plane, *p) for p in points) / max(len(points), 1)
                    assert abs(got[k, c, ph, pw].item() - expected) < 1e-11


def test_numbers_of_mmcvs_own_test() -> None:
    input = torch.tensor([[[[1.0, 2], [3, 4]], [[4, 3], [2, 1]]]], requires_grad=True)
    rois, offset = torch.tensor([[0.0, 0, 0, 1, 1]]), torch.zeros(1, 2, 2, 2)
    got = deform_roi_pool(input, rois, offset, 2, 1.0, 2)
    close(got[0], torch.tensor([[[1, 1.25], [1.5, 1.75]], [[4, 3.75], [3.5, 3.25]]]), 1e-6)
    got.sum().backward()
    close(input.grad[0, 0], torch.tensor([[3.0625, 0.4375], [0.4375, 0.0625]]), 1e-6)


def c_round(value: float) -> float:
    return math.copysign(math.floor(abs(value) + 0.5), value)


def dcn(
    data: np.ndarray, rois: np.ndarray, trans: np.ndarray, grad: np.ndarray, pooled: int,
    scale: float, samples: int, std: float, group: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """DeformablePSROIPooling forward and backward, in the order of the source's kernels."""
    height, width = data.shape[2:]
    channels, part, classes = data.shape[1] // group**2, trans.shape[2], trans.shape[1] // 2
    top = np.zeros((len(rois), channels, pooled, pooled))
    data_diff, trans_diff = np.zeros_like(data), np.zeros_like(trans)
    for n, c, ph, pw in np.ndindex(top.shape):
        image, x1, y1, x2, y2 = rois[n]
        start_w, start_h = c_round(x1) * scale - 0.5, c_round(y1) * scale - 0.5
        roi_w = max((c_round(x2) + 1) * scale - 0.5 - start_w, 0.1)
        roi_h = max((c_round(y2) + 1) * scale - 0.5 - start_h, 0.1)
        bin_h, bin_w = roi_h / pooled, roi_w / pooled
        part_h, part_w = ph * part // pooled, pw * part // pooled
        cls = c // (channels // classes)
        w0 = pw * bin_w + start_w + trans[n, 2 * cls, part_h, part_w] * std * roi_w
        h0 = ph * bin_h + start_h + trans[n, 2 * cls + 1, part_h, part_w] * std * roi_h
        gh, gw = ph * group // pooled, pw * group // pooled
        plane = int(image), (c * group + gh) * group + gw
        points = []
        for ih in range(samples):
            for iw in range(samples):
                w, h = w0 + iw * bin_w / samples, h0 + ih * bin_h / samples
                if w < -0.5 or w > width - 0.5 or h < -0.5 or h > height - 0.5:
                    continue
                points.append((min(max(h, 0), height - 1), min(max(w, 0), width - 1)))
        for h, w in points:
            y0, y1_, x0, x1_ = math.floor(h), math.ceil(h), math.floor(w), math.ceil(w)
            dy, dx = h - y0, w - x0
            u00, u01 = data[plane][y0, x0], data[plane][y1_, x0]
            u10, u11 = data[plane][y0, x1_], data[plane][y1_, x1_]
            top[n, c, ph, pw] += (
                (1 - dx) * (1 - dy) * u00
                + (1 - dx) * dy * u01
                + dx * (1 - dy) * u10
                + dx * dy * u11
            ) / len(points)
            diff = grad[n, c, ph, pw] / len(points)
            data_diff[plane][y0, x0] += (1 - dx) * (1 - dy) * diff
            data_diff[plane][y1_, x0] += (1 - dx) * dy * diff
            data_diff[plane][y0, x1_] += dx * (1 - dy) * diff
            data_diff[plane][y1_, x1_] += dx * dy * diff
            slope_x = u11 * dy + u10 * (1 - dy) - u01 * dy - u00 * (1 - dy)
            slope_y = u11 * dx + u01 * (1 - dx) - u10 * dx - u00 * (1 - dx)
            trans_diff[n, 2 * cls, part_h, part_w] += slope_x * std * diff * roi_w
            trans_diff[n, 2 * cls + 1, part_h, part_w] += slope_y * std * diff * roi_h
    return top, data_diff, trans_diff


@pytest.mark.parametrize(
    ("channels", "pooled", "part", "group", "classes"),
    [(4, 3, 3, 3, 1), (6, 3, 2, 1, 3), (2, 2, 4, 3, 2), (17, 2, 1, 1, 1), (16, 3, 3, 2, 2)],
)
def test_deform_ps_roi_pool_equals_the_source(
    channels: int, pooled: int, part: int, group: int, classes: int
) -> None:
    shape = (2 * classes, part, part)
    input, rois, offset = make(
        0, c=channels * group**2, h=9, w=8, k=4, parts=shape, dtype=torch.float64
    )
    rois[0, 1:] = torch.tensor([2.5, 0.5, 3.5, 0.5])  # corners that C and torch round otherwise
    input.requires_grad_(), offset.requires_grad_()
    got = deform_ps_roi_pool(input, rois, offset, pooled, 0.5, part, 3, 0.12, group)
    up = torch.randn(got.shape, generator=generator(3), dtype=torch.float64)
    grads = torch.autograd.grad(got, (input, offset), up)
    arrays = (t.detach().numpy() for t in (input, rois, offset, up))
    expected = dcn(*arrays, pooled, 0.5, 3, 0.12, group)
    for ours, theirs in zip((got.detach(), *grads), expected, strict=True):
        close(ours, torch.from_numpy(theirs), 1e-10)


# ---- where the definitions coincide with torchvision's ----


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ratio", [0, 2])
def test_zero_offsets_are_roi_align(seed: int, ratio: int) -> None:
    c = (3, 16, 21, 64)[seed % 4]
    input, rois, offset = make(seed, c=c, k=(5, 40)[seed % 2])
    input = in_layout(input, LAYOUTS[seed % 4]).requires_grad_()
    args = ((3, 2), 0.5, ratio)
    expected = torchvision.ops.roi_align(input, rois, *args, aligned=True)
    (wanted,) = gradients(expected, input)
    for none in (offset * 0, None, offset.new_zeros(0)):
        got = deform_roi_pool(input, rois, none, *args)
        close(got, expected, 1e-4)
        close(gradients(got, input)[0], wanted, 1e-3)


def test_one_sample_a_bin_is_position_sensitive_lookup() -> None:
    """Boxes of two by two cells: each bin is one pixel of its own channel, as in ps_roi_pool."""
    input = torch.randn(1, 3 * 4, 8, 8, generator=generator(0))
    rois = torch.tensor([[0, 2, 1, 3, 2], [0, 0, 4, 1, 5]]).float()
    offset = torch.zeros(2, 2, 2, 2)
    # A sample at the near corner of its bin lies half a cell before the pixel; move it there.
    got = deform_ps_roi_pool(input, rois, offset + 0.25, 2, 1.0, 2, 1, 1.0)
    exclusive = rois + torch.tensor([0, 0, 0, 1, 1])  # torchvision's boxes end before x2, y2
    close(got, torchvision.ops.ps_roi_pool(input, exclusive, 2), 1e-6)


# ---- the twin: every dtype, layout, path ----


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("k", [2, 20])
def test_equals_twin_in_every_dtype_and_layout(
    device: str, dtype: torch.dtype, layout: str, k: int
) -> None:
    input, rois, offset = make(c=20, k=k, dtype=dtype)
    tolerance = TOLERANCE[dtype]
    input = in_layout(input.to(device), layout).requires_grad_()
    rois, offset = rois.to(device), offset.to(device).requires_grad_()
    args = ((3, 2), 0.5, 2, 0.1)
    got = deform_roi_pool(input, rois, offset, *args)
    expected = TWIN.deform_roi_pool(input, rois, offset, *args)
    assert got.dtype == dtype
    close(got, expected, 4 * tolerance)
    for a, b in zip(gradients(got, input, offset), gradients(expected, input, offset), strict=True):
        assert a.dtype == dtype
        close(a, b, 50 * tolerance)


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ps_equals_twin_in_every_dtype_and_layout(
    device: str, dtype: torch.dtype, layout: str
) -> None:
    for channels, group, classes in ((5, (3, 2), 1), (32, (1, 1), 2)):
        input, rois, offset = make(
            c=channels * group[0] * group[1], k=8, parts=(2 * classes, 2, 2), dtype=dtype
        )
        tolerance = TOLERANCE[dtype]
        input = in_layout(input.to(device), layout).requires_grad_()
        rois, offset = rois.to(device), offset.to(device).requires_grad_()
        args = ((3, 2), 0.5, 2, 2, 0.1, group)
        got = deform_ps_roi_pool(input, rois, offset, *args)
        expected = TWIN.deform_ps_roi_pool(input, rois, offset, *args)
        close(got, expected, 4 * tolerance)
        wanted = gradients(expected, input, offset)
        for a, b in zip(gradients(got, input, offset), wanted, strict=True):
            close(a, b, 50 * tolerance)


@pytest.mark.parametrize("offset_dtype", FLOATING)
def test_offset_and_box_dtypes_are_free(offset_dtype: torch.dtype) -> None:
    input, rois, offset = make(dtype=torch.float16, c=16)
    offset = offset.to(offset_dtype).requires_grad_()
    got = deform_roi_pool(input, rois.double(), offset, (3, 2), 0.5, 2)
    close(got, deform_roi_pool(input, rois, offset.float(), (3, 2), 0.5, 2), 2e-3)
    (grad,) = gradients(got, offset)
    assert got.dtype == torch.float16
    assert grad.dtype == offset_dtype


def test_channels_last_in_channels_last_out() -> None:
    input, rois, offset = make(c=20)
    input = in_layout(input, "nhwc").requires_grad_()
    output = deform_roi_pool(input, rois, offset, (3, 2))
    assert output.is_contiguous(memory_format=torch.channels_last)
    grad, _ = torch.ops.d2proj._deform_roi_pool_backward(
        output.detach(), input.detach(), rois, offset, 1.0, 3, 2, 0, 0.1, True, False
    )
    assert grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("batch", [0, 1, 33, 65])
def test_any_batch_and_box_lists(batch: int) -> None:
    input = torch.randn(batch, 8, 6, 7, generator=generator(0))
    boxes = [random_rois(i % 3, 1, 8.0, generator=generator(i))[:, 1:] for i in range(batch)]
    index = torch.cat(
        [torch.full((len(b), 1), float(i)) for i, b in enumerate(boxes)] or [torch.empty(0, 1)]
    )
    rois = torch.cat([index, torch.cat([*boxes, torch.empty(0, 4)])], 1)
    offset = torch.randn(len(rois), 2, 2, 2, generator=generator(1))
    got = deform_roi_pool(input, rois, offset, 2)
    close(got, TWIN.deform_roi_pool(input, rois, offset, 2), 1e-5)
    if batch:
        assert torch.equal(deform_roi_pool(input, boxes, offset, 2), got)


# ---- edges ----


def test_no_boxes_no_channels_no_pixels() -> None:
    input, rois, offset = make(c=6)
    none = rois[:0]
    shifts = torch.zeros(0, 2, 3, 2, requires_grad=True)
    output = deform_roi_pool(input.requires_grad_(), none, shifts, (3, 2))
    assert output.shape == (0, 6, 3, 2)
    grad_input, grad_offset = gradients(output, input, shifts)
    assert grad_input.eq(0).all()
    assert grad_offset.shape == shifts.shape
    assert deform_roi_pool(input[:, :0], rois, offset, (3, 2)).shape == (6, 0, 3, 2)
    assert deform_roi_pool(input[:, :, :0], rois, offset, (3, 2)).eq(0).all()
    shifts = torch.zeros(0, 2, 2, 3)
    assert deform_ps_roi_pool(input, none, shifts, (2, 3)).shape == (0, 1, 2, 3)
    assert deform_ps_roi_pool(input[:, :, :0], rois, None, (2, 3)).eq(0).all()
    one = torch.full((1, 1, 1, 1), 3.0)
    roi = torch.tensor([[0.0, 0, 0, 0, 0]])
    assert deform_ps_roi_pool(one, roi, None, 1).item() == 3.0
    assert (
        deform_roi_pool(one, roi + torch.tensor([0, 0, 0, 1, 1]), torch.zeros(1, 2, 1, 1), 1) == 3
    )


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("position_sensitive", [False, True])
def test_strange_boxes_and_offsets(device: str, position_sensitive: bool) -> None:
    """Not finite: zero bins. Huge: no hang. Inverted: as the twin."""
    g = generator(0)
    input = torch.rand(1, 20, 6, 6, generator=g).to(device).requires_grad_()
    not_finite = [[NAN, 0, 4, 4], [0, 0, INF, 4], [-INF, 0, 4, 4], [-INF, -INF, INF, INF]]
    huge = [[-1e30, -1e30, 1e30, 1e30], [0, 0, 1e9, 3], [-1e9, 1, 1e9, 2], [3e38, 0, 3.2e38, 1]]
    inverted = [[5, 5, 1, 1], [4, 1, 1, 4], [3, 3, 3, 3]]
    boxes = torch.tensor(not_finite + huge + inverted, device=device)
    offset = torch.randn(len(boxes), 2, 2, 2, generator=g).to(device)
    offset[-1, 0, 0, 0], offset[-1, 1, 1, 1], offset[-2, 0, 1, 0] = NAN, INF, 1e30
    offset.requires_grad_()

    def call(which: Callable[..., Tensor], at: slice) -> Tensor:
        args = (input, [boxes[at]], offset[at], 2, 1.0)
        return which(*args, None, 2, 0.1, 1) if position_sensitive else which(*args, 2)

    name = "deform_ps_roi_pool" if position_sensitive else "deform_roi_pool"
    output = call(getattr(ops, name), slice(None))
    assert output.isfinite().all()
    assert output[: len(not_finite)].eq(0).all()
    assert output[-1, :, 0, 0].eq(0).all()
    assert output[-1, :, 1, 1].eq(0).all()
    assert output[-2, :, 1, 0].eq(0).all()
    close(output[-3:], call(getattr(TWIN, name), slice(-3, None)), 1e-5)
    grad_input, grad_offset = gradients(output, input, offset)
    assert grad_input.isfinite().all()
    assert grad_offset[: len(not_finite)].eq(0).all()
    assert grad_offset[-1, :, 0, 0].eq(0).all()


def test_border_rules() -> None:
    """-1 .. size read and count (mmcv); -0.5 .. size - 0.5 are read, others not counted (DCN)."""
    input = torch.arange(1.0, 5).view(1, 1, 1, 4).expand(1, 1, 4, 4).contiguous()

    def at(x: float, ps: bool) -> float:
        if ps:  # one sample at round(x1) - 0.5 + offset * gamma * side, side = 1
            roi = torch.tensor([[0.0, 0, 1, 0, 1]])
            offset = torch.tensor([x + 0.5, 0.5]).view(1, 2, 1, 1)
            return deform_ps_roi_pool(input, roi, offset, 1, 1.0, 1, 1, 1.0).item()
        roi = torch.tensor([[0, x, 1.0, x + 1, 2.0]])  # one sample at x, side = 1
        return deform_roi_pool(input, roi, torch.zeros(1, 2, 1, 1), 1, 1.0, 1).item()

    assert [at(x, False) for x in (-1.5, -1.0, -0.5, 0.0, 0.5, 3.0, 3.5, 4.0, 4.5)] == [
        0, 1, 1, 1, 1.5, 4, 4, 4, 0
    ]  # fmt: skip
    assert [at(x, True) for x in (-0.75, -0.5, 0.0, 0.5, 3.0, 3.5, 3.75)] == [
        0, 1, 1, 1.5, 4, 4, 0
    ]  # fmt: skip


@pytest.mark.parametrize("index", [-1.0, 2.0, 1e30, NAN])
def test_image_index_out_of_range(index: float) -> None:
    input, rois, offset = make()
    rois[1, 0] = index
    for name, output_size in (("deform_roi_pool", (3, 2)), ("deform_ps_roi_pool", (3, 2))):
        options = {"group_size": 1} if "ps" in name else {}
        with pytest.raises(RuntimeError, match=rf"{name}: boxes\[1, 0\] must be an image index"):
            getattr(ops, name)(input, rois, offset, output_size, **options)


ONES = torch.ones(1, 4, 5, 5), torch.ones(1, 5), torch.ones(1, 2, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ONES[0][0], *ONES[1:], 2), "input must have shape"),
        ((ONES[0], torch.ones(1, 4), ONES[2], 2), r"rois must have shape \(K, 5\), got \(1, 4\)"),
        ((ONES[0].int(), *ONES[1:], 2), "input must be float16"),
        ((ONES[0], ONES[1].int(), ONES[2], 2), "rois must be float32 or float64"),
        ((ONES[0], ONES[1], ONES[2].int(), 2), "offset must be float16"),
        ((*ONES, 0), "output_size must be positive"),
        ((*ONES, 1), r"offset must have shape \(1, 2.*, 1, 1\), got \(1, 2, 2, 2\)"),
        ((ONES[0], ONES[1], torch.ones(2, 2, 2, 2), 2), "offset must have shape"),
        ((ONES[0], ONES[1], torch.ones(1, 3, 2, 2), 2), "offset must have shape"),
    ],
)
@pytest.mark.parametrize("name", ["deform_roi_pool", "deform_ps_roi_pool"])
def test_wrong_arguments_are_named(name: str, arguments: tuple, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"{name}: {message}"):
        getattr(ops, name)(*arguments)


def test_wrong_arguments_of_the_position_sensitive_form() -> None:
    input, rois, offset = ONES
    with pytest.raises(RuntimeError, match="sample_per_part must be from 1"):
        deform_ps_roi_pool(input, rois, offset, 2, sample_per_part=0)
    with pytest.raises(RuntimeError, match=r"input must have a multiple of 3 \* 3 channels, got 4"):
        deform_ps_roi_pool(input, rois, offset, 2, group_size=3)
    with pytest.raises(RuntimeError, match="offset has 3 classes, which do not divide"):
        deform_ps_roi_pool(input, rois, torch.ones(1, 6, 2, 2), 2, group_size=1)


# ---- gradients ----


@pytest.mark.parametrize("channels", [1, 17])
@pytest.mark.parametrize("ratio", [0, 2])
def test_gradcheck(channels: int, ratio: int) -> None:
    """Random positions: none within the step of a kink. Boxes reach over the borders."""
    input, rois, offset = make(
        4, n=1, c=channels, h=4, w=5, k=2, parts=(2, 2, 2), dtype=torch.float64
    )
    rois = rois / 4
    rois[:, 0] = 0
    assert torch.autograd.gradcheck(
        lambda x, d: deform_roi_pool(x, rois, d, 2, 1.0, ratio, 0.1),
        (input.requires_grad_(), offset.requires_grad_()),
    )


@pytest.mark.parametrize(("channels", "classes", "group"), [(1, 1, 2), (4, 2, 1)])
def test_gradcheck_position_sensitive(channels: int, classes: int, group: int) -> None:
    input, rois, offset = make(
        4, n=1, c=channels * group**2, h=4, w=5, k=2, parts=(2 * classes, 2, 1), dtype=torch.float64
    )
    rois = rois / 4
    rois[:, 0] = 0
    assert torch.autograd.gradcheck(
        lambda x, d: deform_ps_roi_pool(x, rois, d, 2, 1.0, (2, 1), 2, 0.1, group),
        (input.requires_grad_(), offset.requires_grad_()),
    )


def test_double_backward_is_a_clear_error() -> None:
    input, rois, offset = make()
    output = deform_roi_pool(input.requires_grad_(), rois, offset, (3, 2))
    (grad,) = torch.autograd.grad(output.square().sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="deform_roi_pool: double backward is not supported"):
        grad.sum().backward()


# ---- torch's machinery ----


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_opcheck(layout: str) -> None:
    input, rois, offset = make(c=6)
    input = in_layout(input, layout)
    last = layout == "nhwc"
    for name, options, channels in (
        ("deform_roi_pool", (0.5, 3, 2, 2, 0.1), 6),
        ("deform_ps_roi_pool", (0.5, 3, 2, 1, 2, 3, 2, 2, 0.1), 3),
    ):
        sample = (input.clone().requires_grad_(), rois, offset.clone().requires_grad_(), *options)
        torch.library.opcheck(getattr(torch.ops.d2proj, name).default, sample)
        grad = torch.randn(len(rois), channels, 3, 2)
        sample = (grad, input, rois, offset, *options, last, False)
        torch.library.opcheck(getattr(torch.ops.d2proj, f"_{name}_backward").default, sample)


def test_compiles_without_graph_breaks() -> None:
    input, rois, offset = make()

    def model(x: Tensor, b: Tensor, d: Tensor) -> Tensor:
        pooled = deform_roi_pool(x * 2, b, d, (3, 2), 0.5, 2)
        return pooled + deform_ps_roi_pool(x, b, d, (3, 2), 0.5, group_size=1)

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    input.requires_grad_(), offset.requires_grad_()
    expected, got = model(input, rois, offset), compiled(input, rois, offset)
    assert torch.equal(got, expected)
    wanted = gradients(expected, input, offset)
    assert all(map(torch.equal, gradients(got, input, offset), wanted))
    assert compiled(input, rois[:4], offset[:4]).shape[0] == 4  # dynamic number of boxes


def test_autocast_keeps_features_and_raises_boxes() -> None:
    input, rois, offset = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            got = deform_roi_pool(input.to(dtype), rois, offset.bfloat16(), (3, 2))
            assert got.dtype == dtype
        op = torch.ops.d2proj.deform_roi_pool
        assert op(input, rois.half(), offset, 1.0, 3, 2, 0, 0.1).dtype == torch.float32


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("k", [3, 60])
def test_bits_do_not_depend_on_threads(layout: str, k: int) -> None:
    input, rois, offset = make(n=1, c=32, h=30, w=30, k=k, parts=(2, 5, 5))
    rois = rois * 2
    rois[:, 0] = 0
    input = in_layout(input, layout).requires_grad_()
    offset.requires_grad_()
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            plain = deform_roi_pool(input, rois, offset, 5, 1.0, 2)
            ps = deform_ps_roi_pool(input, rois, offset, 5, 1.0, group_size=2)
            results.append([t for o in (plain, ps) for t in (o, *gradients(o, input, offset))])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


@pytest.mark.parametrize("level", ["base", "avx2"])
def test_every_simd_level(level: str) -> None:
    code = """
import torch
from d2proj.ops import deform_roi_pool, reference
for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
    for fmt in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 37, 9, 9).to(dtype).contiguous(memory_format=fmt).requires_grad_()
        b = torch.rand(12, 5) * 8
        b[:, 0], b[:, 3:] = b[:, 0] > 4, b[:, 1:3] + b[:, 3:]
        d = torch.randn(12, 2, 2, 2).requires_grad_()
        y = deform_roi_pool(x, b, d, 2, 1.0, 2)
        z = reference.deform_roi_pool.deform_roi_pool(x, b, d, 2, 1.0, 2)
        up = torch.randn(y.shape).to(dtype)
        tolerance = dict(rtol=2e-2, atol=1e-1 if dtype.itemsize == 2 else 1e-4)
        torch.testing.assert_close(y, z, **tolerance)
        for a, e in zip(*(torch.autograd.grad(o, (x, d), up) for o in (y, z))):
            torch.testing.assert_close(a, e, **tolerance)
"""
    done = run_python(code, {"D2PROJ_SIMD": level})
    assert done.returncode == 0, done.stderr


# ---- modules ----


def test_modules() -> None:
    input, rois, offset = make(c=12)
    got = ops.DeformRoIPool((3, 2), 0.5, 2, 0.2)(input, rois, offset)
    assert torch.equal(got, deform_roi_pool(input, rois, offset, (3, 2), 0.5, 2, 0.2))
    module = ops.DeformPSRoIPool((3, 2), 0.5, (3, 2), 2, 0.2)
    expected = deform_ps_roi_pool(input, rois, offset, (3, 2), 0.5, None, 2, 0.2)
    assert torch.equal(module(input, rois, offset), expected)
    assert "sample_per_part=2" in repr(module)


def test_packs_are_mmcvs() -> None:
    """Keys and shapes of mmcv's state dicts; at first RoIAlign, halved by the mask's sigmoid."""
    input, rois, _ = make(c=4)
    plain = ops.DeformRoIPoolPack((3, 2), 4, deform_fc_channels=8, spatial_scale=0.5)
    modulated = ops.ModulatedDeformRoIPoolPack((3, 2), 4, deform_fc_channels=8, spatial_scale=0.5)
    layers = {"offset_fc.0": (8, 24), "offset_fc.2": (8, 8), "offset_fc.4": (12, 8)}
    assert {k: tuple(v.shape) for k, v in plain.state_dict().items() if "weight" in k} == {
        f"{name}.weight": shape for name, shape in layers.items()
    }
    extra = {"mask_fc.0": (8, 24), "mask_fc.2": (6, 8)}
    assert {k: tuple(v.shape) for k, v in modulated.state_dict().items() if "weight" in k} == {
        f"{name}.weight": shape for name, shape in (layers | extra).items()
    }
    expected = torchvision.ops.roi_align(input, rois, (3, 2), 0.5, 0, True)
    close(plain(input, rois), expected, 1e-5)
    output = modulated(input, rois)
    close(output, expected / 2, 1e-5)
    output.square().sum().backward()
    assert modulated.offset_fc[-1].weight.grad.abs().sum() > 0
    assert modulated.mask_fc[2].weight.grad.abs().sum() > 0
    with pytest.raises(RuntimeError, match=r"DeformRoIPoolPack: input must have shape \(N, 4"):
        plain(input[:, :3], rois)
    assert plain(input, rois[:0]).shape == (0, 4, 3, 2)
