"""nms_rotated and batched_nms_rotated against Detectron2, the twin and axis-aligned NMS."""

import pytest
import torch
from torch import Tensor

from d2proj.ops import batched_nms_rotated, box_iou_rotated, nms, nms_rotated, reference
from d2proj.utils.testing import FLOATING
from tests.ops.test_box_iou_rotated import corner_form, rotated_boxes

NAN, INF = float("nan"), float("inf")


def random_scores(n: int, seed: int = 0) -> Tensor:
    """Without ties."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).double() / max(n, 1)


def greedy(boxes: Tensor, scores: Tensor, threshold: float, idxs: Tensor | None = None) -> Tensor:
    """From the matrix of all IoUs; it is proved elsewhere."""
    order = scores.argsort(descending=True, stable=True)
    falls = box_iou_rotated(boxes[order], boxes[order]).double() > threshold
    if idxs is not None:
        falls &= idxs[order][:, None] == idxs[order]
    alive = torch.ones(len(order), dtype=torch.bool)
    for i in range(len(order)):
        if alive[i]:
            alive[i + 1 :] &= ~falls[i, i + 1 :]
    return order[alive]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3, 0.5, 0.7, 0.95, 1.0, 2.0, -0.1])
@pytest.mark.parametrize("n", [0, 1, 2, 33, 127, 128, 400])
def test_equals_greedy_over_all_pairs(n: int, threshold: float, dtype: torch.dtype) -> None:
    boxes, scores = rotated_boxes(n).to(dtype), random_scores(n)
    assert torch.equal(nms_rotated(boxes, scores, threshold), greedy(boxes, scores, threshold))


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.7])
@pytest.mark.parametrize(
    ("size", "low", "high"),
    [(800, 8, 300), (800, 700, 800), (4000, 1, 2000), (60, 50, 55), (800, 0.5, 3), (1, 0.01, 0.1)],
    ids=["random", "huge", "mixed", "cluster", "tiny", "normalised"],
)
def test_equals_greedy_when_many(size: float, low: float, high: float, threshold: float) -> None:
    boxes, scores = rotated_boxes(1500, 1, size, low, high).float(), random_scores(1500)
    assert torch.equal(nms_rotated(boxes, scores, threshold), greedy(boxes, scores, threshold))


def test_elongated_boxes_and_many_scales() -> None:
    g = torch.Generator().manual_seed(1)
    boxes = rotated_boxes(1500, 2)
    boxes[:, 2] *= 10 ** (torch.rand(1500, generator=g) * 2)
    boxes[::3] *= 10 ** (torch.rand(500, 1, generator=g) * 8 - 4)
    boxes[1::3, :4] = boxes[::3, :4] * 1.02  # so that some overlap much
    boxes[1::3, 4] = boxes[::3, 4] + 1
    for threshold in (0.1, 0.4, 0.8):
        scores = random_scores(1500)
        kept = nms_rotated(boxes, scores, threshold)
        assert len(kept) < 1450
        assert torch.equal(kept, greedy(boxes, scores, threshold))


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_equals_twin(threshold: float) -> None:
    boxes, scores = rotated_boxes(90, 3), random_scores(90)
    scores[::7], scores[5:9] = NAN, 0.25
    boxes[::11, 1] = INF
    idxs = torch.arange(90) % 3
    expected = reference.nms_rotated.nms_rotated(boxes, scores, threshold)
    assert torch.equal(nms_rotated(boxes, scores, threshold), expected)
    expected = reference.nms_rotated.batched_nms_rotated(boxes, scores, idxs, threshold)
    assert torch.equal(batched_nms_rotated(boxes, scores, idxs, threshold), expected)


def test_equals_detectron2() -> None:
    pytest.importorskip("detectron2._C")  # the embedded part has layers, but no ops
    from detectron2 import layers

    for n, threshold in ((1, 0.5), (100, 0.3), (300, 0.5), (300, 0.7)):
        boxes, scores = rotated_boxes(n, n).float(), random_scores(n).float()
        expected = layers.nms_rotated(boxes, scores, threshold)
        assert torch.equal(nms_rotated(boxes, scores, threshold), expected)
        idxs = torch.arange(n) % 4
        expected = layers.batched_nms_rotated(boxes, scores, idxs, threshold)
        assert torch.equal(batched_nms_rotated(boxes, scores, idxs, threshold), expected)


@pytest.mark.parametrize("angle", [0.0, 90.0, 180.0])
def test_equals_nms_of_upright_boxes(angle: float) -> None:
    boxes, scores = rotated_boxes(800, 4), random_scores(800)
    boxes[:, 4] = 0
    upright = corner_form(boxes)
    boxes[:, 4] = angle
    if angle == 90.0:
        boxes[:, 2:4] = boxes[:, [3, 2]]
    for threshold in (0.21, 0.51, 0.81):
        assert torch.equal(nms_rotated(boxes, scores, threshold), nms(upright, scores, threshold))


@pytest.mark.parametrize("classes", [1, 3, 200])
@pytest.mark.parametrize("n", [0, 1, 300])
def test_batched(n: int, classes: int) -> None:
    boxes, scores = rotated_boxes(n, 5), random_scores(n)
    idxs = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(0)) - 2
    expected = greedy(boxes, scores, 0.3, idxs)
    assert torch.equal(batched_nms_rotated(boxes, scores, idxs, 0.3), expected)
    assert torch.equal(batched_nms_rotated(boxes, scores, idxs.to(torch.int16), 0.3), expected)


def test_batched_is_exact_far_from_the_origin() -> None:
    boxes, scores = rotated_boxes(200, 6).float(), random_scores(200)
    idxs = torch.arange(200) % 100 * 10**12  # as offsets they would leave float32 no digits
    expected = batched_nms_rotated(boxes, scores, idxs // 10**12, 0.3)
    assert torch.equal(batched_nms_rotated(boxes, scores, idxs, 0.3), expected)


@pytest.mark.parametrize("n", [50, 500])
def test_ties_go_to_the_lower_index(n: int) -> None:
    boxes = rotated_boxes(n, 7)
    kept = nms_rotated(boxes, torch.ones(n), 0.3)
    assert torch.equal(kept, kept.sort().values)
    assert torch.equal(kept, greedy(boxes, torch.ones(n), 0.3))
    assert nms_rotated(boxes[:1].repeat(n, 1), torch.ones(n), 0.5).tolist() == [0]


def test_threshold_is_strict() -> None:
    boxes = torch.tensor([[1.0, 0.5, 2, 1, 0], [2, 0.5, 2, 1, 0]], dtype=torch.float64)
    scores = torch.tensor([1.0, 0.5])
    iou = box_iou_rotated(boxes, boxes)[0, 1].item()
    assert iou == pytest.approx(1 / 3)
    assert nms_rotated(boxes, scores, iou).tolist() == [0, 1]
    assert nms_rotated(boxes, scores, iou - 1e-15).tolist() == [0]


def test_nan_and_degenerate_boxes_are_kept() -> None:
    box = torch.tensor([5.0, 5.0, 10.0, 10.0, 20.0])
    for column, value in ((0, NAN), (4, NAN), (1, INF), (4, INF), (2, 0.0), (3, -1.0)):
        boxes = box.repeat(200, 1)
        boxes[1, column] = value
        assert nms_rotated(boxes, torch.linspace(1, 0, 200), 0.5).tolist() == [0, 1]
    scores = torch.linspace(1, 0.1, 4)
    scores[0] = NAN
    assert nms_rotated(box.repeat(4, 1), scores, 0.5).tolist() == [1]
    assert len(nms_rotated(box.repeat(4, 1), scores, NAN)) == 4


@pytest.mark.parametrize("boxes_dtype", FLOATING)
@pytest.mark.parametrize("scores_dtype", FLOATING)
def test_dtypes_and_layouts(boxes_dtype: torch.dtype, scores_dtype: torch.dtype) -> None:
    boxes, scores = rotated_boxes(150, 8).to(boxes_dtype), random_scores(150).to(scores_dtype)
    wide = boxes if boxes_dtype == torch.float64 else boxes.float()
    expected = nms_rotated(wide, scores.double(), 0.3)
    assert torch.equal(nms_rotated(boxes, scores, 0.3), expected)
    strided = torch.stack([boxes, boxes], 2)[..., 1]
    assert torch.equal(nms_rotated(strided, scores, 0.3), expected)


def test_result_does_not_depend_on_threads() -> None:
    boxes, scores = rotated_boxes(12_000, 9, 800).float(), random_scores(12_000)
    idxs = torch.arange(12_000) % 37
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = batched_nms_rotated(boxes, scores, idxs, 0.5)
        torch.set_num_threads(4)
        assert torch.equal(batched_nms_rotated(boxes, scores, idxs, 0.5), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("n", [0, 40])
def test_opcheck(n: int) -> None:
    boxes, scores = rotated_boxes(n), random_scores(n)
    idxs = torch.arange(n) % 3
    torch.library.opcheck(torch.ops.d2proj.nms_rotated.default, (boxes, scores, 0.5))
    torch.library.opcheck(torch.ops.d2proj.batched_nms_rotated.default, (boxes, scores, idxs, 0.5))


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_compiles_without_graph_breaks() -> None:
    def best(boxes: Tensor, scores: Tensor, idxs: Tensor) -> Tensor:
        plain = boxes[nms_rotated(boxes, scores, 0.5)]
        return boxes[batched_nms_rotated(boxes, scores, idxs, 0.5)] + plain.sum()

    compiled = torch.compile(best, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (60, 37):
        arguments = (rotated_boxes(n), random_scores(n), torch.arange(n) % 4)
        assert torch.equal(compiled(*arguments), best(*arguments))


def test_no_gradient_and_autocast() -> None:
    boxes, scores = rotated_boxes(60).float(), random_scores(60)
    expected = nms_rotated(boxes, scores, 0.3)
    found = nms_rotated(boxes.clone().requires_grad_(), scores.clone().requires_grad_(), 0.3)
    assert torch.equal(found, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nms_rotated(boxes, scores, 0.3), expected)


@pytest.mark.parametrize(
    ("boxes", "scores", "idxs", "message"),
    [
        (torch.rand(4, 4), torch.rand(4), None, r"boxes must have shape \(N, 5\), got \(4, 4\)"),
        (torch.rand(4, 5), torch.rand(3), None, r"scores must have shape \(4,\).* got \(3\)"),
        (torch.ones(4, 5).long(), torch.rand(4), None, "boxes must be float16.*, got Long"),
        (torch.rand(4, 5), torch.rand(4), torch.zeros(5).long(), r"idxs must have shape \(4,\)"),
        (torch.rand(4, 5), torch.rand(4), torch.zeros(4), "idxs must be int64, got Float"),
    ],
)
def test_errors(boxes: Tensor, scores: Tensor, idxs: Tensor | None, message: str) -> None:
    if idxs is None:
        with pytest.raises(RuntimeError, match=f"^nms_rotated: {message}"):
            nms_rotated(boxes, scores, 0.5)
        idxs = torch.zeros(len(boxes), dtype=torch.int64)
    with pytest.raises(RuntimeError, match=f"^batched_nms_rotated: {message}"):
        batched_nms_rotated(boxes, scores, idxs, 0.5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("n", [0, 1, 64, 65, 2048, 2049, 6000])
def test_cuda_equals_cpu(n: int) -> None:
    boxes, scores = rotated_boxes(n, 10, 800), random_scores(n)
    boxes[::97, 1], scores[::89] = NAN, NAN
    idxs = torch.arange(n) % 20 - 3
    for dtype in (torch.float32, torch.float64):
        typed = boxes.to(dtype)
        for threshold in (-0.1, 0.3, 0.7):
            found = nms_rotated(typed.cuda(), scores.cuda(), threshold)
            assert torch.equal(found.cpu(), nms_rotated(typed, scores, threshold))
            found = batched_nms_rotated(typed.cuda(), scores.cuda(), idxs.cuda(), threshold)
            assert torch.equal(found.cpu(), batched_nms_rotated(typed, scores, idxs, threshold))
