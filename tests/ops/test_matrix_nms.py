"""matrix_nms against SOLOv2's formula in numpy, the twin, and what the docs promise."""

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from d2proj.ops import matrix_nms, reference
from d2proj.utils.testing import FLOATING
from tests.ops.test_nms import random_classes
from tests.ops.test_soft_nms import compare, with_scores

NAN, INF = float("nan"), float("inf")


def paper(boxes: Tensor, scores: Tensor, idxs: Tensor, method: str, sigma: float) -> np.ndarray:
    """The decayed scores, by descending score before the decay: SOLOv2's pseudo code on boxes."""
    order = scores.argsort(descending=True)
    boxes, labels = boxes[order], idxs[order].numpy()
    iou = np.triu(torchvision.ops.box_iou(boxes, boxes).numpy(), 1)
    iou = iou * np.triu(labels[:, None] == labels[None, :], 1)
    most = iou.max(0)[:, None].repeat(len(iou), 1)
    if method == "gaussian":
        decay = np.exp(-sigma * (iou**2)) / np.exp(-sigma * (most**2))
    else:
        decay = (1 - iou) / (1 - most)
    return scores[order].numpy() * decay.min(0)


@pytest.mark.parametrize(
    ("method", "sigma"), [("linear", 2.0), ("gaussian", 2.0), ("gaussian", 0.5)]
)
@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("n", [1, 2, 33, 500])
def test_equals_the_paper(n: int, classes: int, method: str, sigma: float) -> None:
    boxes, scores = (t.double() for t in with_scores(n))
    idxs = random_classes(n, classes)
    dets, keep = matrix_nms(boxes, scores, idxs, method, sigma, min_score=-1.0)
    expected = paper(boxes, scores, idxs, method, sigma)
    rank = scores.argsort(descending=True).argsort()
    np.testing.assert_allclose(dets[:, 4].numpy(), expected[rank[keep]], rtol=1e-12)
    assert torch.equal(dets[:, :4], boxes[keep])
    assert (dets[:, 4].diff() <= 0).all()
    some, kept = matrix_nms(boxes, scores, idxs, method, sigma, min_score=0.2)
    assert torch.equal(some, dets[dets[:, 4] >= 0.2])
    assert torch.equal(kept, keep[dets[:, 4] >= 0.2])


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("seed", range(4))
def test_equals_reference(seed: int, method: str) -> None:
    for boxes_dtype, scores_dtype in zip(FLOATING, FLOATING[seed:] + FLOATING[:seed], strict=True):
        boxes, scores = with_scores(250, seed, size=400)
        boxes, scores = boxes.to(boxes_dtype), scores.to(scores_dtype)
        boxes[::31, 1], boxes[::37, 2], scores[::29] = NAN, INF, NAN
        boxes[::23], boxes[10:13] = boxes[::23][:, [2, 1, 0, 3]], boxes[10].clone()
        scores[1], scores[2], scores[3] = -INF, -0.25, 0.0
        for idxs in (None, random_classes(250, 3)):
            for min_score in (0.05, -INF):
                found = matrix_nms(boxes, scores, idxs, method, min_score=min_score)
                expected = reference.matrix_nms.matrix_nms(
                    boxes, scores, idxs, method, min_score=min_score
                )
                compare(found, expected)


def test_equal_boxes_leave_one() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(200, 1)
    dets, keep = matrix_nms(boxes, torch.linspace(0.1, 0.9, 200), method="linear")
    assert keep.tolist() == [199]
    dets, keep = matrix_nms(boxes, torch.full((200,), 0.5), min_score=0.0)
    assert keep.tolist() == list(range(200))
    assert dets[1:, 4].tolist() == pytest.approx([0.5 * np.exp(-2)] * 199)


def test_threads_ids_and_layouts() -> None:
    boxes, scores = with_scores(20_000)
    idxs = random_classes(20_000, 60)
    before = torch.get_num_threads()
    expected = matrix_nms(boxes, scores, idxs)
    torch.set_num_threads(3)
    found = matrix_nms(boxes, scores, (idxs - 30) * 2**50)
    torch.set_num_threads(before)
    compare(found, expected)
    compare(matrix_nms(boxes.t().contiguous().t(), scores, idxs.int()), expected)


def test_empty_and_errors() -> None:
    dets, keep = matrix_nms(torch.empty(0, 4), torch.empty(0))
    assert (dets.shape, keep.shape) == ((0, 5), (0,))
    boxes, scores = with_scores(4)
    with pytest.raises(RuntimeError, match=r"^matrix_nms: idxs must have shape \(4,\)"):
        matrix_nms(boxes, scores, torch.zeros(3).long())
    with pytest.raises(
        RuntimeError, match=r"^matrix_nms: sigma must be above 0 and finite .*, got 0"
    ):
        matrix_nms(boxes, scores, sigma=0.0)
    with pytest.raises(ValueError, match=r"method must be one of gaussian, linear, got 'hard'"):
        matrix_nms(boxes, scores, method="hard")


@pytest.mark.parametrize("n", [0, 40])
def test_opcheck(n: int) -> None:
    boxes, scores = with_scores(n)
    for idxs in (None, random_classes(n, 3)):
        for gaussian in (True, False):
            arguments = (boxes, scores, idxs, gaussian, 2.0, 0.05)
            torch.library.opcheck(torch.ops.d2proj.matrix_nms.default, arguments)


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_compiles_without_graph_breaks() -> None:
    def run(boxes: Tensor, scores: Tensor) -> Tensor:
        return matrix_nms(boxes, scores)[0] * 2

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (100, 57):
        assert torch.equal(compiled(*with_scores(n)), run(*with_scores(n)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("n", [0, 1, 257, 3000])
def test_cuda_equals_cpu(n: int, method: str) -> None:
    boxes, scores = with_scores(n)
    boxes[::97, 1], scores[::89] = NAN, NAN
    for b in (boxes, boxes.double()):
        for idxs in (None, random_classes(n, 20) - 3):
            device_idxs = None if idxs is None else idxs.cuda()
            found = matrix_nms(b.cuda(), scores.cuda(), device_idxs, method)
            for x, y in zip(found, matrix_nms(b, scores, idxs, method), strict=True):
                assert torch.equal(x.cpu().nan_to_num(2.0), y.nan_to_num(2.0))
