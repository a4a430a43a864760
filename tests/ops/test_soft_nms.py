"""soft_nms and batched_soft_nms against numpy, OpenCV, ensemble_boxes and the twin."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from d2proj.ops import batched_soft_nms, nms, reference, soft_nms
from d2proj.utils.testing import FLOATING, run_python
from tests.ops.test_nms import random_boxes, random_classes

METHODS = ("linear", "gaussian", "hard")
NAN, INF = float("nan"), float("inf")


def with_scores(n: int, seed: int = 0, **kwargs: float) -> tuple[Tensor, Tensor]:
    return random_boxes(n, seed, **kwargs)[0], torch.rand(
        n, generator=torch.Generator().manual_seed(seed + 1)
    )


def textbook(
    boxes: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    sigma: float,
    min_score: float,
    method: str,
) -> tuple[np.ndarray, np.ndarray]:
    """The pseudo code of the paper's figure 3, a box at a time."""
    scores, left = scores.copy(), list(range(len(scores)))
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    dets, keep = [], []
    while left:
        best = max(left, key=lambda i: (scores[i], -i))
        left.remove(best)
        keep.append(best)
        dets.append([*boxes[best], scores[best]])
        for i in list(left):
            low = np.maximum(boxes[best, :2], boxes[i, :2])
            width, height = np.maximum(np.minimum(boxes[best, 2:], boxes[i, 2:]) - low, 0)
            iou = width * height / (area[best] + area[i] - width * height)
            if method == "gaussian":
                scores[i] *= np.exp(-(iou**2) / sigma)
            elif iou >= threshold:
                scores[i] *= 1 - iou if method == "linear" else 0
            if scores[i] < min_score:
                left.remove(i)
    return np.array(dets).reshape(-1, 5), np.array(keep, dtype=np.int64)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("threshold", "sigma"), [(0.3, 0.5), (0.6, 0.1), (0.01, 2.0)])
@pytest.mark.parametrize("n", [1, 2, 33, 120])
def test_equals_textbook(n: int, threshold: float, sigma: float, method: str) -> None:
    boxes, scores = (t.double() for t in with_scores(n, n))
    dets, keep = soft_nms(boxes, scores, threshold, sigma, 1e-3, method)
    expected, order = textbook(boxes.numpy(), scores.numpy(), threshold, sigma, 1e-3, method)
    assert keep.tolist() == order.tolist()
    np.testing.assert_allclose(dets.numpy(), expected, rtol=1e-12)
    dets, keep = soft_nms(boxes.float(), scores.float(), threshold, sigma, 1e-3, method)
    assert keep.tolist() == order.tolist()
    np.testing.assert_allclose(dets.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_equals_opencv(method: str) -> None:
    dnn = pytest.importorskip("cv2").dnn
    boxes, scores = with_scores(400)
    boxes = boxes.round()
    sides = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    number = dnn.SOFT_NMSMETHOD_SOFTNMS_LINEAR if method == "linear" else None
    number = number or dnn.SOFT_NMSMETHOD_SOFTNMS_GAUSSIAN
    rects = [tuple(map(int, row)) for row in sides.tolist()]
    expected, order = dnn.softNMSBoxes(rects, scores.tolist(), 1e-3, 0.3, 0, 0.5, number)
    dets, keep = soft_nms(boxes, scores, 0.3, 0.5, 1e-3, method)
    assert keep.tolist() == order.reshape(-1).tolist()
    np.testing.assert_allclose(dets[:, 4].numpy(), expected.reshape(-1), rtol=1e-5)


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_keeps_the_order_of_ensemble_boxes(method: str) -> None:
    ensemble_boxes = pytest.importorskip("ensemble_boxes")
    boxes, scores = with_scores(60)
    boxes = (boxes * 1000).round() / 1e6  # it rounds to a fixed grid
    found = ensemble_boxes.nms_method(
        [boxes.tolist()],
        [scores.tolist()],
        [[0] * 60],
        method=1 if method == "linear" else 2,
        iou_thr=0.3,
        sigma=0.5,
        thresh=1e-3,
    )[0]
    dets, _ = soft_nms(boxes, scores, 0.3, 0.5, 1e-3, method)
    np.testing.assert_allclose(dets[:, :4].numpy(), found, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("boxes_dtype", "scores_dtype"),
    [(d, e) for i, d in enumerate(FLOATING) for e in (d, FLOATING[i - 1])],
)
def test_equals_reference(boxes_dtype: torch.dtype, scores_dtype: torch.dtype, method: str) -> None:
    boxes, scores = with_scores(90, size=400)
    boxes, scores = boxes.to(boxes_dtype), scores.to(scores_dtype)
    scores[::29], scores[5:9:2], scores[6:10:2] = NAN, 0.0, -0.0
    scores[1], scores[2], scores[3] = -INF, -0.25, 1e-3
    boxes[::31, 1], boxes[::37, 2] = NAN, INF
    boxes[::23] = boxes[::23][:, [2, 1, 0, 3]]
    boxes[10:13] = boxes[10]
    idxs = random_classes(90, 3)
    for min_score in (1e-3, -1.0):
        found = soft_nms(boxes, scores, 0.4, 0.5, min_score, method)
        expected = reference.soft_nms.soft_nms(boxes, scores, 0.4, 0.5, min_score, method)
        compare(found, expected)
        found = batched_soft_nms(boxes, scores, idxs, 0.4, 0.5, min_score, method)
        expected = reference.soft_nms.batched_soft_nms(
            boxes, scores, idxs, 0.4, 0.5, min_score, method
        )
        compare(found, expected)


def compare(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(found[1], expected[1])
    rtol = 1e-12 if found[0].dtype == torch.float64 else 3e-6
    torch.testing.assert_close(found[0], expected[0], rtol=rtol, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("size", "low", "high"),
    [
        (800, 8, 300),
        (800, 700, 800),
        (4000, 1, 2000),
        (3000, 4, 60),
        (1e-3, 1e-5, 1e-4),
        (3e19, 1e18, 3e18),
    ],
)
def test_equals_reference_when_many(size: float, low: float, high: float) -> None:
    boxes, scores = with_scores(300, size=size, low=low, high=high)
    for method in ("linear", "gaussian"):
        compare(
            soft_nms(boxes, scores, method=method),
            reference.soft_nms.soft_nms(boxes, scores, method=method),
        )


def test_linear_is_exact_to_the_bit() -> None:
    boxes, scores = with_scores(400)
    dets, _ = soft_nms(boxes, scores)
    assert torch.equal(dets, reference.soft_nms.soft_nms(boxes, scores)[0])


def test_areas_that_are_denormal() -> None:
    boxes, scores = with_scores(300, size=1.0, low=0.01, high=0.5)
    boxes = boxes * 1e-21
    compare(soft_nms(boxes, scores), reference.soft_nms.soft_nms(boxes, scores))


@pytest.mark.parametrize("n", [5, 3000])
def test_hard_is_nms(n: int) -> None:
    boxes, scores = with_scores(n)
    dets, keep = soft_nms(boxes, scores, 0.45, min_score=0.0, method="hard")
    assert torch.equal(keep, nms(boxes, scores, 0.45))
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[keep])


def test_threshold_is_reached_at_equality() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 1], [1, 0, 3, 1]])  # IoU 1/3
    scores = torch.tensor([0.9, 0.6])
    iou = (torch.tensor(1.0) / 3).item()
    for threshold, score in ((iou, 0.4), (math.nextafter(iou, 1.0), 0.6)):
        assert soft_nms(boxes, scores, threshold)[0][1, 4].item() == pytest.approx(score)
        kept = soft_nms(boxes, scores, threshold, method="hard")[1]
        assert kept.tolist() == ([0] if score == 0.4 else [0, 1])


@pytest.mark.parametrize("method", METHODS)
def test_boxes_that_do_not_overlap_stay_at_any_threshold(method: str) -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1], [1, 0, 2, 1], [9, 9, 10, 10]])
    scores = torch.tensor([0.5, 0.9, 0.7])
    for threshold in (0.0, -1.0, 0.5, NAN):
        dets, keep = soft_nms(boxes, scores, threshold, method=method)
        assert keep.tolist() == [1, 2, 0]
        assert torch.equal(dets[:, 4], scores[keep])


def test_equal_boxes_and_ties() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(300, 1)
    assert soft_nms(boxes, torch.full((300,), 0.5))[1].tolist() == [0]
    dets, keep = soft_nms(boxes, torch.full((300,), 0.5), min_score=0.0)
    assert keep.tolist() == list(range(300))
    assert dets[1:, 4].abs().max() == 0
    apart = boxes + torch.arange(300)[:, None] * 20
    assert soft_nms(apart, torch.full((300,), 0.5))[1].tolist() == list(range(300))


def test_min_score_and_scores_not_above_zero() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [2, 0, 12, 10], [50, 0, 60, 10]])
    scores = torch.tensor([0.9, -0.5, 0.0, 5e-4])
    assert soft_nms(boxes, scores)[1].tolist() == [0]
    dets, keep = soft_nms(boxes, scores, min_score=-1.0)
    assert keep.tolist() == [0, 3, 2, 1]
    assert torch.equal(dets[:, 4], scores[keep])
    assert soft_nms(boxes, scores, min_score=0.95)[1].tolist() == []


@pytest.mark.parametrize("classes", [1, 3, 200])
@pytest.mark.parametrize("method", METHODS)
def test_batched_is_class_by_class(method: str, classes: int) -> None:
    boxes, scores = with_scores(500)
    idxs = random_classes(500, classes)
    ids = torch.randperm(2 * classes)[:classes] - 5 + 2**40
    parts = []
    for c in range(classes):
        where = (idxs == c).nonzero()[:, 0]
        dets, keep = soft_nms(boxes[where], scores[where], method=method)
        parts.append((dets, where[keep]))
    dets, keep = (torch.cat(part) for part in zip(*parts, strict=True))
    order = dets[:, 4].argsort(descending=True)
    found, kept = batched_soft_nms(boxes, scores, ids[idxs], method=method)
    assert torch.equal(kept, keep[order])
    assert torch.equal(found, dets[order])
    assert torch.equal(
        batched_soft_nms(boxes, scores, idxs.to(torch.int16), method=method)[1], kept
    )


def test_empty_and_not_contiguous() -> None:
    for dtype, result in ((torch.float32, torch.float32), (torch.float64, torch.float64)):
        dets, keep = soft_nms(torch.empty(0, 4, dtype=dtype), torch.empty(0))
        assert dets.shape == (0, 5)
        assert (dets.dtype, keep.dtype, keep.shape) == (result, torch.int64, (0,))
    table = torch.rand(300, 7)
    table[:, 2:4] += table[:, :2]
    boxes, scores = table[:, :4], table[:, 5]
    compare(soft_nms(boxes, scores), soft_nms(boxes.contiguous(), scores.contiguous()))
    transposed = boxes.t().contiguous().t()
    compare(soft_nms(transposed, scores), soft_nms(boxes, scores))


def test_result_does_not_depend_on_threads() -> None:
    boxes, scores = with_scores(20_000)
    idxs = random_classes(20_000, 50)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(batched_soft_nms(boxes, scores, idxs, method="gaussian"))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for r in results for a, b in zip(r, results[0], strict=True))


_DIGEST = """
import hashlib, torch
from d2proj import ops
digest = hashlib.sha256()
for dtype in (torch.float32, torch.float64):
    g = torch.Generator().manual_seed(0)
    boxes = torch.rand(1500, 4, generator=g, dtype=dtype)
    boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:] * 0.3
    scores = torch.rand(1500, generator=g, dtype=dtype)
    boxes[::2] = (boxes[::2] * 16).round() / 16
    results = [ops.soft_nms(boxes, scores, method=m) for m in ("linear", "gaussian", "hard")]
    results += [ops.matrix_nms(boxes, scores, None, m) for m in ("linear", "gaussian")]
    for v in ("plain", "score_penalty", "distance", "weighted"):
        results.append(ops.cluster_nms(boxes, scores, 0.5, v))
    results.append([ops.diou_nms(boxes, scores, 0.5, 0.6)])
    for result in results:
        for tensor in result:
            digest.update(tensor.numpy().tobytes())
print(digest.hexdigest())
"""


def test_every_instruction_set_gives_the_same() -> None:
    runs = [run_python(_DIGEST, {"D2PROJ_SIMD": level}) for level in ("base", "avx2", "avx512")]
    assert [run.returncode for run in runs] == [0, 0, 0], runs[0].stderr
    assert len({run.stdout for run in runs}) == 1
    assert len(runs[0].stdout.strip()) == 64


@pytest.mark.parametrize("n", [0, 40])
def test_opcheck(n: int) -> None:
    boxes, scores = with_scores(n)
    for idxs in (None, random_classes(n, 3)):
        for method in range(3):
            torch.library.opcheck(
                torch.ops.d2proj.soft_nms.default, (boxes, scores, idxs, 0.3, 0.5, 1e-3, method)
            )


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_compiles_without_graph_breaks() -> None:
    def run(boxes: Tensor, scores: Tensor, idxs: Tensor) -> Tensor:
        dets, keep = batched_soft_nms(boxes, scores, idxs, method="gaussian")
        return dets * 2 + soft_nms(boxes, scores)[0].sum() + keep[:, None]

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (100, 57):
        arguments = (*with_scores(n), random_classes(n, 4))
        torch.testing.assert_close(compiled(*arguments), run(*arguments))


def test_no_gradient_and_autocast() -> None:
    boxes, scores = with_scores(100)
    expected = soft_nms(boxes, scores)
    found = soft_nms(boxes.requires_grad_(), scores.requires_grad_())
    assert not found[0].requires_grad
    compare(found, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compare(soft_nms(boxes, scores), expected)


def test_errors_name_argument_and_what_came() -> None:
    boxes, scores = with_scores(4)
    with pytest.raises(RuntimeError, match=r"^soft_nms: boxes must have shape \(N, 4\), got \(4\)"):
        soft_nms(scores, scores)
    with pytest.raises(RuntimeError, match=r"^batched_soft_nms: idxs must have shape \(4,\)"):
        batched_soft_nms(boxes, scores, torch.zeros(3).long())
    for sigma in (0.0, -1.0, NAN):
        with pytest.raises(RuntimeError, match=r"^soft_nms: sigma must be above 0, got"):
            soft_nms(boxes, scores, sigma=sigma, method="gaussian")
    with pytest.raises(
        ValueError, match=r"method must be one of linear, gaussian, hard, got 'soft'"
    ):
        soft_nms(boxes, scores, method="soft")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [0, 1, 33, 1025, 6000])
def test_cuda_equals_cpu(n: int, method: str) -> None:
    boxes, scores = with_scores(n)
    boxes[::97, 1], scores[::89] = NAN, NAN
    for dtype in (torch.float32, torch.float64):
        for idxs in (None, random_classes(n, 20) - 3):
            arguments = [boxes.to(dtype), scores]
            function = soft_nms if idxs is None else batched_soft_nms
            arguments += [] if idxs is None else [idxs]
            found = function(*(a.cuda() for a in arguments), method=method)
            expected = function(*arguments, method=method)
            for a, b in zip(found, expected, strict=True):
                assert torch.equal(a.cpu().nan_to_num(2.0), b.nan_to_num(2.0))
