"""weighted_boxes_fusion and non_maximum_weighted against ensemble-boxes and the twins."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from d2proj.ops import non_maximum_weighted, reference, weighted_boxes_fusion
from d2proj.utils.testing import FLOATING, run_python

NAN, INF = float("nan"), float("inf")
KINDS = ("avg", "max", "box_and_model_avg", "absent_model_aware_avg")
Inputs = tuple[list[Tensor], list[Tensor], list[Tensor]]


def ensemble(
    models: int, objects: int, labels: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Inputs:
    """What models see of the same objects: moved a little, some missed."""
    r = np.random.default_rng(seed)
    corner, side = r.random((objects, 2)) * 0.7, r.random((objects, 2)) * 0.2 + 0.02
    label = r.integers(0, max(labels, 1), objects)
    boxes_list, scores_list, labels_list = [], [], []
    for _ in range(models):
        seen = r.permutation(objects)[: r.integers(objects // 2, objects + 1)]
        c = np.clip(corner[seen] + r.normal(0, 0.01, (len(seen), 2)), 0, 1)
        s = side[seen] * np.exp(r.normal(0, 0.1, (len(seen), 2)))
        boxes_list.append(torch.from_numpy(np.concatenate([c, c + s], 1).clip(0, 1)).to(dtype))
        scores_list.append(torch.from_numpy(r.random(len(seen))).to(dtype))
        labels_list.append(torch.from_numpy(label[seen]))
    return boxes_list, scores_list, labels_list


def arrays(inputs: Inputs) -> list[list[np.ndarray]]:
    return [[each.numpy() for each in part] for part in inputs]


def assert_same(found: tuple, expected: tuple) -> None:
    """Bit for bit, in the dtype of what was found."""
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, torch.as_tensor(b).to(a.dtype).reshape(a.shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("models", "objects", "labels"),
    [(1, 1, 1), (1, 9, 2), (2, 30, 1), (3, 60, 7), (5, 15, 30), (70, 4, 2)],
)
def test_wbf_equals_ensemble_boxes(
    models: int, objects: int, labels: int, kind: str, weighted: bool, dtype: torch.dtype
) -> None:
    package = pytest.importorskip("ensemble_boxes")
    # With powers of two the sum over 70 weights does not depend on its order.
    weights = [2.0 ** (i % 5 - 2) for i in range(models)] if weighted else None
    for seed in range(3):
        inputs = ensemble(models, objects, labels, seed, dtype)
        for iou_thr, skip, overflow in ((0.55, 0.0, False), (0.3, 0.25, True), (0.0, 0.1, False)):
            rest = (weights, iou_thr, skip, kind, overflow)
            expected = package.weighted_boxes_fusion(*arrays(inputs), *rest)
            found = weighted_boxes_fusion(*inputs, *rest)
            assert found[0].dtype == found[1].dtype == dtype
            assert found[2].dtype == torch.int64
            assert_same(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("models", "objects", "labels"), [(1, 1, 1), (1, 9, 2), (2, 30, 1), (3, 60, 7), (5, 15, 30)]
)
def test_nmw_equals_ensemble_boxes(
    models: int, objects: int, labels: int, weighted: bool, dtype: torch.dtype
) -> None:
    package = pytest.importorskip("ensemble_boxes")
    weights = [0.3 + 0.45 * i for i in range(models)] if weighted else None
    for seed in range(3):
        inputs = ensemble(models, objects, labels, seed, dtype)
        for iou_thr, skip in ((0.55, 0.0), (0.3, 0.25), (0.0, 0.1)):
            expected = package.non_maximum_weighted(*arrays(inputs), weights, iou_thr, skip)
            assert_same(non_maximum_weighted(*inputs, weights, iou_thr, skip), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_wbf_equals_ensemble_boxes_when_many(kind: str) -> None:
    package = pytest.importorskip("ensemble_boxes")
    inputs = ensemble(4, 400, 1, 7)
    weights = [0.9, 1.3, 0.4, 2.0]
    expected = package.weighted_boxes_fusion(*arrays(inputs), weights, 0.5, 0.05, kind)
    assert_same(weighted_boxes_fusion(*inputs, weights, 0.5, 0.05, kind), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_wbf_equals_twin(kind: str, seed: int) -> None:
    inputs = ensemble(3, 25, 3, seed)
    weights = [0.5, 1.25, 2.0]
    for rest in ((None, 0.55, 0.0, kind, False), (weights, 0.3, 0.3, kind, True)):
        expected = reference.box_fusion.weighted_boxes_fusion(*inputs, *rest)
        found = weighted_boxes_fusion(*inputs, *rest)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-14, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_nmw_equals_twin(seed: int) -> None:
    inputs = ensemble(3, 25, 3, seed)
    for rest in ((None, 0.55, 0.0), ([0.5, 1.25, 2.0], 0.3, 0.3)):
        expected = reference.box_fusion.non_maximum_weighted(*inputs, *rest)
        found = non_maximum_weighted(*inputs, *rest)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-14, atol=0)


def test_two_boxes_by_hand() -> None:
    boxes = [[[0.0, 0.0, 0.5, 0.5]], [[0.0, 0.0, 0.5, 0.75]]]
    fused, scores, labels = weighted_boxes_fusion(boxes, [[0.75], [0.25]], [[4], [4]])
    # IoU 2/3; the mean of the lower edge is 0.5 * 0.75 + 0.75 * 0.25.
    assert fused.tolist() == [[0.0, 0.0, 0.5, 0.5625]]
    assert scores.tolist() == [0.5]
    assert labels.tolist() == [4]
    fused, scores, _ = non_maximum_weighted(boxes, [[0.75], [0.25]], [[4], [4]])
    share = 0.25 * 2 / 3
    assert fused[0, 3].item() == pytest.approx((0.5 * 0.75 + 0.75 * share) / (0.75 + share))
    assert scores.tolist() == [0.75]
    # Other labels are not fused; one model of two halves the score.
    fused, scores, labels = weighted_boxes_fusion(boxes, [[0.75], [0.25]], [[4], [5]])
    assert scores.tolist() == [0.375, 0.125]
    assert labels.tolist() == [4, 5]


def test_boxes_are_put_in_order_and_clipped_with_a_warning() -> None:
    package = pytest.importorskip("ensemble_boxes")
    r = np.random.default_rng(0)
    boxes = [r.random((30, 4)) * 1.6 - 0.3 for _ in range(2)]  # half inverted, many outside
    boxes[0][0, 2] = boxes[0][0, 0]  # no area
    boxes[1][0] = [-2, -2, -1, -1]  # none once clipped
    scores, labels = [r.random(30) for _ in range(2)], [r.integers(0, 2, 30) for _ in range(2)]
    for ours, name in (
        (weighted_boxes_fusion, "weighted_boxes_fusion"),
        (non_maximum_weighted, "non_maximum_weighted"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = getattr(package, name)(boxes, scores, labels, None, 0.4)
        with pytest.warns(UserWarning, match=f"^{name}: boxes reach beyond"):
            found = ours(boxes, scores, labels, None, 0.4)
        assert_same(found, expected)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ours([b.clip(0, 1) for b in boxes], scores, labels, None, 0.4)


@pytest.mark.parametrize("count", [3, 12])
def test_of_equal_scores_the_last_comes_first(count: int) -> None:
    package = pytest.importorskip("ensemble_boxes")
    # Disjoint, then all alike: numpy sorts up to 16 stably, and the package reverses that.
    x = np.linspace(0, 0.9, count)
    boxes = np.stack([x, x, x + 0.01, x + 0.01], 1)
    scores, labels = np.full(count, 0.5), np.arange(count) % 2
    found = weighted_boxes_fusion([boxes], [scores], [labels])
    assert_same(found, package.weighted_boxes_fusion([boxes], [scores], [labels]))
    assert found[2][0] == 1  # of the label that appeared last
    near = np.tile([[0.1, 0.1, 0.5, 0.5]], (count, 1)) + np.arange(count)[:, None] * 1e-3
    for ours, theirs in (
        (weighted_boxes_fusion, package.weighted_boxes_fusion),
        (non_maximum_weighted, package.non_maximum_weighted),
    ):
        assert_same(ours([near], [scores], [labels]), theirs([near], [scores], [labels]))


@pytest.mark.parametrize("function", [weighted_boxes_fusion, non_maximum_weighted])
def test_nan_and_infinite(function: Callable[..., tuple]) -> None:
    box = [0.1, 0.1, 0.5, 0.5]
    boxes, scores, _ = function([[box, box]], [[NAN, 0.5]], [[0, 0]])
    assert scores.tolist() == [0.5]  # a NaN score is below every threshold
    boxes, scores, _ = function([[box, [NAN, 0.1, 0.5, 0.5], box]], [[0.5, 0.9, 0.4]], [[0] * 3])
    assert len(scores) == 2  # a NaN box overlaps nothing
    assert boxes[1].isfinite().all()
    with pytest.warns(UserWarning, match="clipped"):
        boxes, _, _ = function([[[-INF, 0.0, INF, 1.0]]], [[0.5]], [[0]])
    assert boxes.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("function", [weighted_boxes_fusion, non_maximum_weighted])
def test_empty(function: Callable[..., tuple]) -> None:
    none = torch.empty(0)
    for boxes, scores, labels in (
        ([], [], []),
        ([[]], [[]], [[]]),
        ([torch.empty(0, 4), []], [none, none], [none.long(), []]),
        ([[[0.1, 0.1, 0.2, 0.2]]], [[-1.0]], [[0]]),
    ):
        fused = function(boxes, scores, labels)
        assert [tuple(f.shape) for f in fused] == [(0, 4), (0,), (0,)]
    # A model without boxes counts as one that saw nothing.
    one = ([[[0.1, 0.1, 0.2, 0.2]], []], [[0.5], []], [[3], []])
    expected = 0.25 if function is weighted_boxes_fusion else 0.5
    assert function(*one)[1].tolist() == [expected]


@pytest.mark.parametrize("boxes_dtype", FLOATING)
@pytest.mark.parametrize("scores_dtype", FLOATING)
def test_dtypes_and_layouts(boxes_dtype: torch.dtype, scores_dtype: torch.dtype) -> None:
    boxes, scores, labels = ensemble(3, 20, 2)
    boxes = [b.to(boxes_dtype) for b in boxes]
    scores = [s.to(scores_dtype) for s in scores]
    wide = torch.float64 if torch.float64 in (boxes_dtype, scores_dtype) else torch.float32
    expected = weighted_boxes_fusion(
        [b.double() for b in boxes], [s.double() for s in scores], labels
    )
    turned = [b.t().contiguous().t() for b in boxes]
    found = weighted_boxes_fusion(turned, scores, [label.int() for label in labels])
    assert found[0].dtype == wide
    assert_same(found, expected)


def test_result_does_not_depend_on_threads_or_inputs_being_lists() -> None:
    inputs = ensemble(5, 1200, 40)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = weighted_boxes_fusion(*inputs)
        torch.set_num_threads(4)
        assert_same(weighted_boxes_fusion(*inputs), expected)
    finally:
        torch.set_num_threads(before)
    lists = [[each.tolist() for each in part] for part in inputs]
    assert_same(weighted_boxes_fusion(*lists), expected)


_DIGEST = """
import hashlib, torch
from d2proj.ops import non_maximum_weighted, weighted_boxes_fusion
g = torch.Generator().manual_seed(0)
boxes = torch.rand(2000, 4, generator=g, dtype=torch.float64)
boxes[:, 2:] = boxes[:, :2] * 0.5 + 0.4
scores, labels = torch.rand(2000, generator=g), torch.randint(3, (2000,), generator=g)
digest = hashlib.sha256()
for function in (weighted_boxes_fusion, non_maximum_weighted):
    for each in function([boxes.clamp(0, 1)], [scores], [labels]):
        digest.update(each.numpy().tobytes())
print(digest.hexdigest())
"""


def test_every_instruction_set_gives_the_same() -> None:
    runs = [run_python(_DIGEST, {"D2PROJ_SIMD": level}) for level in ("base", "avx2", "avx512")]
    assert [run.returncode for run in runs] == [0, 0, 0], runs[0].stderr
    assert len({run.stdout for run in runs}) == 1
    assert len(runs[0].stdout.strip()) == 64


def test_no_gradient_and_autocast() -> None:
    boxes, scores, labels = ensemble(2, 10, 2, dtype=torch.float32)
    expected = weighted_boxes_fusion(boxes, scores, labels)
    tracked = [b.clone().requires_grad_() for b in boxes]
    found = weighted_boxes_fusion(tracked, scores, labels)
    assert not found[0].requires_grad
    assert_same(found, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(weighted_boxes_fusion(boxes, scores, labels), expected)


@pytest.mark.parametrize("n", [0, 20])
def test_opcheck(n: int) -> None:
    boxes, scores, labels = (torch.cat(part) for part in ensemble(2, n, 2))
    models, weights = torch.arange(len(boxes)) % 2, torch.ones(2, dtype=torch.float64)
    arguments = (boxes, scores, labels, models, weights, 0.5, 0.0)
    torch.library.opcheck(torch.ops.d2proj.weighted_boxes_fusion.default, (*arguments, 0, False))
    torch.library.opcheck(torch.ops.d2proj.non_maximum_weighted.default, arguments)


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
@pytest.mark.parametrize("function", [weighted_boxes_fusion, non_maximum_weighted])
def test_compiles_without_graph_breaks(function: Callable[..., tuple]) -> None:
    def total(boxes: list[Tensor], scores: list[Tensor], labels: list[Tensor]) -> Tensor:
        fused, score, _ = function(boxes, scores, labels, [1.0, 2.0])
        return (fused * score[:, None]).sum(0)

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    inputs = ensemble(2, 20, 3)
    torch.testing.assert_close(compiled(*inputs), total(*inputs))


def test_errors() -> None:
    boxes, scores, labels = ensemble(2, 8, 2)
    for changed, error, message in (
        (
            {"scores_list": scores[:1]},
            ValueError,
            "scores_list must have an entry for each of the 2",
        ),
        ({"labels_list": [*labels, labels[0]]}, ValueError, "labels_list must have an entry"),
        (
            {"weights": [1.0]},
            ValueError,
            "weights must have an entry for each of the 2 models, got 1",
        ),
        ({"scores_list": [scores[0], scores[1][1:]]}, ValueError, r"scores_list\[1\] must have"),
        (
            {"boxes_list": [b[:, :3] for b in boxes]},
            RuntimeError,
            r"boxes must have shape \(N, 4\)",
        ),
        ({"scores_list": [s.long() for s in scores]}, RuntimeError, "scores must be float16.*Long"),
    ):
        arguments = {"boxes_list": boxes, "scores_list": scores, "labels_list": labels, **changed}
        for function in (weighted_boxes_fusion, non_maximum_weighted):
            with pytest.raises(error, match=f"^{function.__name__}: {message}"):
                function(**arguments)
    with pytest.raises(ValueError, match=r"^non_maximum_weighted: weights must have one above 0"):
        non_maximum_weighted(boxes, scores, labels, [0.0, 0.0])
    with pytest.raises(ValueError, match=r"^weighted_boxes_fusion: conf_type must be one of"):
        weighted_boxes_fusion(boxes, scores, labels, conf_type="mean")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cuda_equals_cpu(dtype: torch.dtype) -> None:
    for models, objects, labels in ((1, 1, 1), (3, 60, 7), (70, 4, 2), (4, 700, 1)):
        inputs = ensemble(models, objects, labels, dtype=dtype)
        inputs[1][0][:3] = 0.5
        device = [[each.cuda() for each in part] for part in inputs]
        for kind in KINDS:
            expected = weighted_boxes_fusion(*inputs, None, 0.5, 0.1, kind)
            found = weighted_boxes_fusion(*device, None, 0.5, 0.1, kind)
            assert_same([f.cpu() for f in found], expected)
        expected = non_maximum_weighted(*inputs, None, 0.5, 0.1)
        assert_same([f.cpu() for f in non_maximum_weighted(*device, None, 0.5, 0.1)], expected)
