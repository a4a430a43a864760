"""diou_nms and batched_diou_nms against torchvision's DIoU, the twin, and nms."""

import pytest
import torch
import torchvision
from torch import Tensor

from d2proj.ops import batched_diou_nms, diou_nms, nms, reference
from d2proj.utils.testing import FLOATING
from tests.ops.test_nms import random_boxes, random_classes

NAN, INF = float("nan"), float("inf")


def greedy(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    """The greedy loop over torchvision's DIoU matrix."""
    diou = torchvision.ops.distance_box_iou(boxes, boxes)
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        if all(diou[k, i] <= threshold for k in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7])
@pytest.mark.parametrize(("n", "size"), [(1, 800), (33, 200), (400, 800), (400, 300)])
def test_equals_torchvision_diou(n: int, size: int, threshold: float) -> None:
    boxes, scores = random_boxes(n, size=size, high=min(300, size))
    boxes, scores = boxes.double(), scores.double()
    assert diou_nms(boxes, scores, threshold).tolist() == greedy(boxes, scores, threshold)


@pytest.mark.parametrize("beta", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("threshold", [-0.2, 0.0, 0.4, 0.8, 1.0])
def test_equals_reference(threshold: float, beta: float) -> None:
    for boxes_dtype, scores_dtype in zip(FLOATING, FLOATING[::-1], strict=True):
        boxes, scores = random_boxes(250)
        boxes, scores = boxes.to(boxes_dtype), scores.to(scores_dtype)
        boxes[::31, 1], boxes[::37, 2], scores[::29] = NAN, INF, NAN
        boxes[::23], boxes[10:13] = boxes[::23][:, [2, 1, 0, 3]], boxes[10].clone()
        boxes[20:22, 2:] = boxes[20:22, :2]
        idxs = random_classes(250, 3)
        found = diou_nms(boxes, scores, threshold, beta)
        assert torch.equal(found, reference.diou_nms.diou_nms(boxes, scores, threshold, beta))
        found = batched_diou_nms(boxes, scores, idxs, threshold, beta)
        expected = reference.diou_nms.batched_diou_nms(boxes, scores, idxs, threshold, beta)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("n", [10, 3000])
def test_is_nms_where_centres_coincide(n: int) -> None:
    half = torch.rand(n, 2, generator=torch.Generator().manual_seed(n)).mul(64).round() + 1
    boxes, scores = torch.cat([100 - half, 100 + half], 1), random_boxes(n)[1]
    assert torch.equal(diou_nms(boxes, scores, 0.5), nms(boxes, scores, 0.5))


def test_many_boxes_and_a_large_beta_are_nms() -> None:
    boxes, scores = random_boxes(20_000)  # the penalty vanishes as beta grows, but for far centres
    assert torch.equal(diou_nms(boxes, scores, 0.7, 1e6), nms(boxes, scores, 0.7))
    assert len(diou_nms(boxes, scores, 0.7)) > len(nms(boxes, scores, 0.7))


def test_the_distance_spares_a_box() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10]])  # IoU 6 / 14, d2 / c2 = 16 / 296
    scores = torch.tensor([0.9, 0.8])
    assert diou_nms(boxes, scores, 6 / 14 - 16 / 296 - 1e-5).tolist() == [0]
    assert diou_nms(boxes, scores, 6 / 14 - 16 / 296 + 1e-5).tolist() == [0, 1]
    assert diou_nms(boxes, scores, 0.3, 0.5).tolist() == [0, 1]  # sqrt(16 / 296) = 0.23


def test_empty_and_errors() -> None:
    assert diou_nms(torch.empty(0, 4), torch.empty(0), 0.5).shape == (0,)
    boxes, scores = random_boxes(4)
    with pytest.raises(RuntimeError, match=r"^diou_nms: scores must have shape \(4,\)"):
        diou_nms(boxes, scores[:3], 0.5)
    for beta in (-0.5, NAN):
        with pytest.raises(RuntimeError, match=r"^batched_diou_nms: beta must be at least 0, got"):
            batched_diou_nms(boxes, scores, torch.zeros(4).int(), 0.5, beta)


@pytest.mark.parametrize("n", [0, 40])
def test_opcheck(n: int) -> None:
    boxes, scores = random_boxes(n)
    for idxs in (None, random_classes(n, 3)):
        torch.library.opcheck(torch.ops.d2proj.diou_nms.default, (boxes, scores, idxs, 0.5, 0.6))


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_compiles_without_graph_breaks() -> None:
    def run(boxes: Tensor, scores: Tensor) -> Tensor:
        return boxes[diou_nms(boxes, scores, 0.5)] * 2

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (100, 57):
        assert torch.equal(compiled(*random_boxes(n)), run(*random_boxes(n)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("n", [0, 1, 65, 2049, 20_000])
def test_cuda_equals_cpu(n: int) -> None:
    boxes, scores = random_boxes(n)
    boxes[::97, 1], scores[::89] = NAN, NAN
    idxs = random_classes(n, 20)
    for b in (boxes, boxes.double()):
        found = diou_nms(b.cuda(), scores.cuda(), 0.5)
        assert torch.equal(found.cpu(), diou_nms(b, scores, 0.5))
        found = batched_diou_nms(b.cuda(), scores.cuda(), idxs.cuda(), 0.5)
        assert torch.equal(found.cpu(), batched_diou_nms(b, scores, idxs, 0.5))
