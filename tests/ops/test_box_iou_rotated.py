"""box_iou_rotated against Detectron2, OpenCV, polygon clipping and axis-aligned boxes."""

import math

import cv2
import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from d2proj.ops import box_iou_rotated, reference
from d2proj.utils.testing import FLOATING, run_python

NAN, INF = float("nan"), float("inf")


def rotated_boxes(
    count: int, seed: int = 0, size: float = 100.0, low: float = 4.0, high: float = 60.0
) -> Tensor:
    """(count, 5) float64: sides of low..high in a square, any angle within two turns."""
    g = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 2, generator=g, dtype=torch.float64) * size
    sides = torch.rand(count, 2, generator=g, dtype=torch.float64) * (high - low) + low
    angle = torch.rand(count, 1, generator=g, dtype=torch.float64) * 1440 - 720
    return torch.cat([centre, sides, angle], 1)


def corner_form(boxes: Tensor) -> Tensor:
    """Upright boxes (angle 0) as x1, y1, x2, y2."""
    return torch.cat([boxes[:, :2] - boxes[:, 2:4] / 2, boxes[:, :2] + boxes[:, 2:4] / 2], 1)


@pytest.mark.parametrize("seed", range(3))
def test_equals_polygon_clipping(seed: int) -> None:
    boxes1, boxes2 = rotated_boxes(45, seed), rotated_boxes(37, seed + 100)
    expected = reference.box_iou_rotated.box_iou_rotated(boxes1, boxes2)
    assert (expected > 0.05).sum() > 100
    found = box_iou_rotated(boxes1, boxes2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    found = box_iou_rotated(boxes1.float(), boxes2.float())
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=3e-6)


def test_equals_opencv() -> None:
    boxes1, boxes2 = rotated_boxes(40).numpy(), rotated_boxes(40, 1).numpy()

    def rectangle(box: np.ndarray) -> tuple:
        return (box[0], box[1]), (box[2], box[3]), -box[4]  # OpenCV's angles are clockwise

    found = box_iou_rotated(torch.from_numpy(boxes1), torch.from_numpy(boxes2))
    for i, a in enumerate(boxes1):
        for j, b in enumerate(boxes2):
            _, points = cv2.rotatedRectangleIntersection(rectangle(a), rectangle(b))
            inter = 0.0 if points is None else cv2.contourArea(cv2.convexHull(points))
            iou = inter / (a[2] * a[3] + b[2] * b[3] - inter)
            assert found[i, j].item() == pytest.approx(iou, abs=1e-4)


def test_equals_detectron2() -> None:
    rotated = pytest.importorskip("detectron2.layers.rotated_boxes")
    for low, high in ((4, 60), (0.5, 2), (80, 100)):
        boxes1 = rotated_boxes(150, 2, low=low, high=high).float()
        boxes2 = rotated_boxes(170, 3, low=low, high=high).float()
        expected = rotated.pairwise_iou_rotated(boxes1, boxes2)
        torch.testing.assert_close(box_iou_rotated(boxes1, boxes2), expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("turns", [-8, -3, -2, -1, 0, 1, 2, 3, 40])
def test_equals_axis_aligned_boxes_at_right_angles(turns: int, dtype: torch.dtype) -> None:
    boxes1, boxes2 = rotated_boxes(60).to(dtype), rotated_boxes(60, 1).to(dtype)
    boxes1[:, 4] = boxes2[:, 4] = 0
    expected = torchvision.ops.box_iou(corner_form(boxes1), corner_form(boxes2))
    boxes1[:, 4] = 90.0 * turns
    if turns % 2:
        boxes1[:, 2:4] = boxes1[:, [3, 2]]
    tolerance = 2e-6 if dtype == torch.float32 else 1e-14
    found = box_iou_rotated(boxes1, boxes2)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert torch.equal(found == 0, expected == 0)


def test_angles_turn_counter_clockwise_in_image_coordinates() -> None:
    # A long box turned by 30 degrees points up on the right, where y is smaller.
    long = torch.tensor([[0.0, 0.0, 20.0, 1.0, 30.0]])
    angle = math.radians(30)
    tips = torch.tensor([[8 * math.cos(angle), -8 * math.sin(angle), 1.0, 1.0, 0.0]])
    wrong = tips * torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0])
    assert box_iou_rotated(long, tips).item() > 0.02
    assert box_iou_rotated(long, wrong).item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_boxes_that_coincide(dtype: torch.dtype) -> None:
    boxes = rotated_boxes(500, 5).to(dtype)
    exact = torch.ones(len(boxes), dtype=dtype)
    tolerance = {"rtol": 0, "atol": 2e-6 if dtype == torch.float32 else 1e-14}
    torch.testing.assert_close(box_iou_rotated(boxes, boxes).diag(), exact, **tolerance)
    for turn in (180.0, -180.0, 360.0, 36000.0):
        turned = boxes.clone()
        turned[:, 4] += turn
        # The sum of the angles is rounded.
        found = box_iou_rotated(boxes, turned).diag()
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-3 if turn > 1e4 else 2e-5)
    # Half of a box: three edges coincide.
    half = boxes.clone()
    half[:, 3] /= 2
    radians = boxes[:, 4].double().deg2rad()
    shift = boxes[:, 3] / 4
    half[:, 0] += (shift * radians.sin()).to(dtype)
    half[:, 1] += (shift * radians.cos()).to(dtype)
    tolerance = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 1e-13}
    torch.testing.assert_close(box_iou_rotated(boxes, half).diag(), exact / 2, **tolerance)
    # And the half beside it only touches.
    half[:, :2] += (half[:, :2] - boxes[:, :2]) * 2
    assert box_iou_rotated(boxes, half).diag().max() < 1e-5


def test_nearly_coinciding_boxes_stay_near_one() -> None:
    # Where a convex hull of intersection points loses some of them.
    boxes = rotated_boxes(2000, 6)
    for step in (1e-3, 1e-5, 1e-7, 1e-9):
        moved = boxes + step * torch.randn(boxes.shape, generator=torch.Generator().manual_seed(1))
        for i in range(0, 2000, 100):
            a, b = boxes[i : i + 100].float(), moved[i : i + 100].float()
            assert (box_iou_rotated(a, b).diag() > 1 - 3e-3).all()


@pytest.mark.parametrize("aspect", [1e2, 1e4])
def test_thin_boxes(aspect: float) -> None:
    boxes = rotated_boxes(60, 7, size=10)
    boxes[:, 3] = boxes[:, 2] / aspect
    expected = reference.box_iou_rotated.box_iou_rotated(boxes, boxes)
    torch.testing.assert_close(box_iou_rotated(boxes, boxes), expected, rtol=0, atol=1e-11)
    found = box_iou_rotated(boxes.float(), boxes.float())
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-6 * aspect)


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1.0, 1e6, 1e15])
def test_scale_does_not_matter(scale: float) -> None:
    boxes = rotated_boxes(50, 8)
    scaled = boxes * torch.tensor([scale, scale, scale, scale, 1.0], dtype=torch.float64)
    expected = box_iou_rotated(boxes, boxes)
    torch.testing.assert_close(box_iou_rotated(scaled, scaled), expected, rtol=0, atol=1e-13)
    found = box_iou_rotated(scaled.float(), scaled.float())
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=5e-6)


def test_far_from_the_origin() -> None:
    boxes = rotated_boxes(50, 9).round()
    moved = boxes.clone()
    moved[:, :2] += 2.0**20
    expected = box_iou_rotated(boxes, boxes)
    torch.testing.assert_close(
        box_iou_rotated(moved.float(), moved.float()), expected.float(), rtol=0, atol=3e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_boxes_overlap_nothing(dtype: torch.dtype) -> None:
    good = torch.tensor([[5.0, 5.0, 10.0, 10.0, 30.0]], dtype=dtype)
    wrong = [(2, 0.0), (3, 0.0), (2, -1.0), (3, -10.0)]
    wrong += [(c, v) for c in range(5) for v in (NAN, INF, -INF)]
    bad = good.repeat(len(wrong), 1)
    for row, (column, value) in enumerate(wrong):
        bad[row, column] = value
    bad = torch.cat([bad, torch.full((1, 5), NAN, dtype=dtype), -bad[:1]])
    everything = torch.cat([bad, good])
    assert (box_iou_rotated(bad, everything) == 0).all()
    assert (box_iou_rotated(everything, bad) == 0).all()
    assert box_iou_rotated(good, good).item() == pytest.approx(1)


def test_any_values_give_finite_results_within_bounds() -> None:
    g = torch.Generator().manual_seed(3)
    exponent = torch.rand(400, 5, generator=g) * 76 - 38
    boxes = torch.randn(400, 5, generator=g) * 10**exponent
    boxes[:, 2:4] = boxes[:, 2:4].abs()
    boxes[::3, :2] = 0
    found = box_iou_rotated(boxes, boxes)
    assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize(
    ("n", "m"), [(0, 0), (0, 3), (3, 0), (1, 1), (1, 33), (33, 1), (65, 17), (2, 700)]
)
def test_shapes(n: int, m: int) -> None:
    boxes1, boxes2 = rotated_boxes(n), rotated_boxes(m, 1)
    found = box_iou_rotated(boxes1, boxes2)
    assert found.shape == (n, m)
    for i in range(min(n, 5)):
        for j in range(min(m, 40)):
            alone = box_iou_rotated(boxes1[i : i + 1], boxes2[j : j + 1])
            assert torch.equal(alone[0, 0], found[i, j])  # whatever lane it was computed in


@pytest.mark.parametrize("dtype1", FLOATING)
@pytest.mark.parametrize("dtype2", FLOATING)
def test_dtypes_and_layouts(dtype1: torch.dtype, dtype2: torch.dtype) -> None:
    boxes1, boxes2 = rotated_boxes(20).to(dtype1), rotated_boxes(30, 1).to(dtype2)
    wide = torch.float64 if torch.float64 in (dtype1, dtype2) else torch.float32
    found = box_iou_rotated(boxes1, boxes2)
    assert found.dtype == wide
    assert torch.equal(found, box_iou_rotated(boxes1.to(wide), boxes2.to(wide)))
    strided = torch.stack([boxes1, boxes1 * 0], 2)[..., 0]
    transposed = boxes2.t().contiguous().t()
    assert not strided.is_contiguous()
    assert torch.equal(box_iou_rotated(strided, transposed), found)


def test_sparse_and_dense_overlap_agree() -> None:
    # Lanes that are few are set aside, lanes that are many are not: the bits must not tell.
    near = rotated_boxes(64, 4, size=20)
    far = near + torch.tensor([1e4, 0, 0, 0, 0])
    mixed = torch.stack([near, far, far, far, far, far, far, far], 1).reshape(-1, 5).float()
    expected = box_iou_rotated(near.float(), near.float())
    assert torch.equal(box_iou_rotated(near.float(), mixed)[:, ::8], expected)


def test_result_does_not_depend_on_threads() -> None:
    boxes = rotated_boxes(400).float()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = box_iou_rotated(boxes, boxes)
        torch.set_num_threads(4)
        assert torch.equal(box_iou_rotated(boxes, boxes), expected)
    finally:
        torch.set_num_threads(before)


_DIGEST = """
import hashlib, torch
from d2proj.ops import box_iou_rotated, nms_rotated
digest = hashlib.sha256()
for dtype in (torch.float32, torch.float64):
    g = torch.Generator().manual_seed(0)
    boxes = torch.rand(600, 5, generator=g, dtype=dtype) * torch.tensor([20, 20, 9, 9, 360])
    iou = box_iou_rotated(boxes, boxes)
    digest.update(iou.numpy().tobytes())
    threshold = iou[iou > 0.4].min().item()  # an IoU that occurs
    kept = nms_rotated(boxes, torch.rand(600, generator=g), threshold)
    digest.update(kept.numpy().tobytes())
print(digest.hexdigest())
"""


def test_every_instruction_set_gives_the_same_bits() -> None:
    runs = [run_python(_DIGEST, {"D2PROJ_SIMD": level}) for level in ("base", "avx2", "avx512")]
    assert [run.returncode for run in runs] == [0, 0, 0], runs[0].stderr
    assert len({run.stdout for run in runs}) == 1
    assert len(runs[0].stdout.strip()) == 64


def test_opcheck_autocast_and_compile() -> None:
    boxes1, boxes2 = rotated_boxes(9).float(), rotated_boxes(5, 1).float()
    torch.library.opcheck(torch.ops.d2proj.box_iou_rotated.default, (boxes1, boxes2))
    expected = box_iou_rotated(boxes1, boxes2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(box_iou_rotated(boxes1, boxes2), expected)
    compiled = torch.compile(box_iou_rotated, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(boxes1, boxes2), expected)
    assert torch.equal(compiled(boxes2, boxes2), box_iou_rotated(boxes2, boxes2))


def test_no_gradient() -> None:
    boxes = rotated_boxes(4).requires_grad_()
    assert not box_iou_rotated(boxes, boxes).requires_grad


@pytest.mark.parametrize(
    ("boxes1", "boxes2", "message"),
    [
        (torch.rand(5), torch.rand(2, 5), r"boxes1 must have shape \(N, 5\), got \(5\)"),
        (torch.rand(2, 5), torch.rand(2, 4), r"boxes2 must have shape \(N, 5\), got \(2, 4\)"),
        (torch.ones(2, 5).long(), torch.rand(2, 5), "boxes1 must be float16.*, got Long"),
    ],
)
def test_errors(boxes1: Tensor, boxes2: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^box_iou_rotated: {message}"):
        box_iou_rotated(boxes1, boxes2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cuda_equals_cpu(dtype: torch.dtype) -> None:
    for n, m in ((0, 3), (1, 1), (17, 129), (300, 500)):
        boxes1, boxes2 = rotated_boxes(n).to(dtype), rotated_boxes(m, 1).to(dtype)
        boxes1[::7, 2] = NAN
        found = box_iou_rotated(boxes1.cuda(), boxes2.cuda())
        assert torch.equal(found.cpu(), box_iou_rotated(boxes1, boxes2))
