"""cluster_nms: equal to greedy NMS, to its paper's formulas in numpy, and to the twin."""

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from d2proj.ops import batched_cluster_nms, cluster_nms, diou_nms, nms, reference
from d2proj.utils.testing import FLOATING
from tests.ops.test_nms import random_boxes, random_classes
from tests.ops.test_soft_nms import compare, with_scores

VARIANTS = ("plain", "score_penalty", "distance", "weighted")
NAN, INF = float("nan"), float("inf")


def paper(
    boxes: Tensor, scores: Tensor, threshold: float, variant: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, scores and keep flags by rank: the authors' matrix iteration, with their constants."""
    order = scores.argsort(descending=True)
    b, s = boxes[order].numpy(), scores[order].numpy()
    pairwise = (
        torchvision.ops.distance_box_iou if variant == "distance" else torchvision.ops.box_iou
    )
    x = np.triu(pairwise(boxes[order], boxes[order]).numpy(), 1)
    c = x
    for _ in range(200):
        previous = c
        c = x * (previous.max(0) <= threshold)[:, None]
        if np.array_equal(c, previous):
            break
    keep = c.max(0) <= threshold
    if variant == "score_penalty":
        s = np.exp(-(c**2) / 0.2).prod(0) * s
        keep = s > 0.01
    if variant == "weighted":
        weights = (c * (c > threshold) + np.eye(len(s))) * s[None]
        b = np.where(keep[:, None], weights @ b / weights.sum(1, keepdims=True), b)
    return b, s, keep


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.7])
@pytest.mark.parametrize("n", [1, 2, 33, 400])
def test_equals_the_paper(n: int, threshold: float, variant: str) -> None:
    boxes, scores = (t.double() for t in with_scores(n, n))
    dets, keep = cluster_nms(boxes, scores, threshold, variant)
    b, s, flags = paper(boxes, scores, threshold, variant)
    rank = scores.argsort(descending=True).argsort()[keep].numpy()
    assert sorted(rank) == flags.nonzero()[0].tolist()
    np.testing.assert_allclose(dets[:, :4].numpy(), b[rank], rtol=1e-12)
    np.testing.assert_allclose(dets[:, 4].numpy(), s[rank], rtol=1e-11)
    assert (dets[:, 4].diff() <= 0).all()


@pytest.mark.parametrize("threshold", [-0.1, 0.0, 0.3, 0.7, 1.0, NAN])
@pytest.mark.parametrize("n", [0, 40, 5000])
def test_plain_is_nms_and_distance_is_diou_nms(n: int, threshold: float) -> None:
    if threshold < 0:
        n = min(n, 40)  # nothing can be pruned
    boxes, scores = random_boxes(n)
    boxes[::31, 1], boxes[::37, 2], scores[::29] = NAN, INF, NAN
    dets, keep = cluster_nms(boxes, scores, threshold)
    assert torch.equal(keep, nms(boxes, scores, threshold))
    expected = torch.cat([boxes, scores[:, None]], 1)[keep]
    torch.testing.assert_close(dets, expected, rtol=0, atol=0, equal_nan=True)
    keep = cluster_nms(boxes, scores, threshold, "distance", beta=0.6)[1]
    assert torch.equal(keep, diou_nms(boxes, scores, threshold, 0.6))
    # The dtype of the scores raises that of the result, not that of the comparison.
    dets, keep = cluster_nms(boxes, scores.double(), threshold)
    assert dets.dtype == torch.float64
    assert torch.equal(keep, nms(boxes, scores, threshold))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(4))
def test_equals_reference(seed: int, variant: str) -> None:
    for boxes_dtype, scores_dtype in zip(FLOATING, FLOATING[seed:] + FLOATING[:seed], strict=True):
        boxes, scores = with_scores(200, seed, size=400)
        boxes, scores = boxes.to(boxes_dtype), scores.to(scores_dtype)
        boxes[::31, 1], boxes[::37, 2] = NAN, INF
        boxes[::23], boxes[10:13] = boxes[::23][:, [2, 1, 0, 3]], boxes[10].clone()
        scores[2], scores[3] = -0.25, 0.0
        idxs = random_classes(200, 3)
        found = cluster_nms(boxes, scores, 0.4, variant)
        close(found, reference.cluster_nms.cluster_nms(boxes, scores, 0.4, variant))
        found = batched_cluster_nms(boxes, scores, idxs, 0.4, variant)
        close(found, reference.cluster_nms.batched_cluster_nms(boxes, scores, idxs, 0.4, variant))


def close(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(found[1], expected[1])
    rtol = 1e-12 if found[0].dtype == torch.float64 else 1e-6
    torch.testing.assert_close(found[0], expected[0], rtol=rtol, atol=0, equal_nan=True)


def test_weights_that_cancel_leave_the_box() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10]])
    for scores in ([0.0, 0.0], [0.5, NAN], [0.1, -1.0], [-1.0, -2.0], [INF, 0.5]):
        dets, keep = cluster_nms(boxes, torch.tensor(scores), 0.3, "weighted")
        assert keep.tolist() == [0]
        assert torch.equal(dets[0, :4], boxes[0])


def test_threads_and_layouts() -> None:
    boxes, scores = with_scores(20_000)
    idxs = random_classes(20_000, 60)
    before = torch.get_num_threads()
    for variant in VARIANTS:
        expected = batched_cluster_nms(boxes, scores, idxs, 0.5, variant)
        torch.set_num_threads(3)
        compare(batched_cluster_nms(boxes, scores, idxs, 0.5, variant), expected)
        torch.set_num_threads(before)
    moved = boxes.t().contiguous().t()
    compare(batched_cluster_nms(moved, scores, idxs.int(), 0.5, "weighted"), expected)


def test_empty_and_errors() -> None:
    dets, keep = cluster_nms(torch.empty(0, 4), torch.empty(0), 0.5, "weighted")
    assert (dets.shape, keep.shape) == ((0, 5), (0,))
    boxes, scores = with_scores(4)
    with pytest.raises(RuntimeError, match=r"^cluster_nms: boxes must have shape \(N, 4\)"):
        cluster_nms(boxes[:, :3], scores, 0.5)
    with pytest.raises(RuntimeError, match=r"^cluster_nms: sigma must be above 0, got 0"):
        cluster_nms(boxes, scores, 0.5, "score_penalty", sigma=0.0)
    with pytest.raises(RuntimeError, match=r"^cluster_nms: beta must be at least 0, got -1"):
        cluster_nms(boxes, scores, 0.5, "distance", beta=-1.0)
    with pytest.raises(ValueError, match=r"variant must be one of plain, .*, got 'fast'"):
        cluster_nms(boxes, scores, 0.5, "fast")


@pytest.mark.parametrize("n", [0, 40])
def test_opcheck(n: int) -> None:
    boxes, scores = with_scores(n)
    for idxs in (None, random_classes(n, 3)):
        for variant in range(4):
            arguments = (boxes, scores, idxs, 0.5, variant, 1.0, 0.2, 0.01)
            torch.library.opcheck(torch.ops.d2proj.cluster_nms.default, arguments)


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_compiles_without_graph_breaks() -> None:
    def run(boxes: Tensor, scores: Tensor) -> Tensor:
        return cluster_nms(boxes, scores, 0.5, "weighted")[0] * 2

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (100, 57):
        assert torch.equal(compiled(*with_scores(n)), run(*with_scores(n)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n", [0, 1, 257, 3000])
def test_cuda_equals_cpu(n: int, variant: str) -> None:
    boxes, scores = with_scores(n)
    boxes[::97, 1] = NAN
    idxs = random_classes(n, 20)
    for b in (boxes, boxes.double()):
        found = cluster_nms(b.cuda(), scores.cuda(), 0.5, variant)
        close(tuple(t.cpu() for t in found), cluster_nms(b, scores, 0.5, variant))
        found = batched_cluster_nms(b.cuda(), scores.cuda(), idxs.cuda(), 0.5, variant)
        close(tuple(t.cpu() for t in found), batched_cluster_nms(b, scores, idxs, 0.5, variant))
