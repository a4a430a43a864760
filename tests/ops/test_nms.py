"""nms and batched_nms against torchvision, the plain-torch twin and what the docs promise."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torchvision
from torch import Tensor

from d2proj.ops import batched_nms, nms, nms_padded, reference
from d2proj.utils.testing import FLOATING, run_python

NAN, INF = float("nan"), float("inf")


def random_boxes(n: int, seed: int = 0, size: float = 800.0, low: float = 8.0, high: float = 300.0):
    """Boxes with sides of low..high in a square, and scores without ties."""
    g = torch.Generator().manual_seed(seed)
    sides = torch.rand(n, 2, generator=g) * (high - low) + low
    corners = torch.rand(n, 2, generator=g) * (size - sides)
    scores = torch.randperm(n, generator=g).float() / max(n, 1)
    return torch.cat([corners, corners + sides], dim=1), scores


def random_classes(n: int, classes: int, seed: int = 0) -> Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def threads():
    """Sets the number of torch's threads; puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3, 0.5, 0.7, 0.95, 1.0, 2.0, -0.1])
@pytest.mark.parametrize("n", [0, 1, 2, 33, 127, 128, 129, 1000])
def test_equals_torchvision(n: int, threshold: float, dtype: torch.dtype) -> None:
    boxes, scores = (t.to(dtype) for t in random_boxes(n))
    assert torch.equal(nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold))


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7])
@pytest.mark.parametrize(
    ("size", "low", "high"),
    [
        (800, 8, 300),
        (800, 700, 800),
        (4000, 1, 2000),
        (60, 50, 55),
        (800, 0.5, 3),
        (1e-3, 1e-5, 1e-4),
    ],
    ids=["random", "huge", "mixed", "cluster", "tiny", "normalised"],
)
def test_equals_torchvision_when_many(
    size: float, low: float, high: float, threshold: float
) -> None:
    boxes, scores = random_boxes(3000, size=size, low=low, high=high)
    assert torch.equal(nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold))


@pytest.mark.parametrize("offset", [-1e4, 1e6, 1e8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torchvision_far_from_the_origin(offset: float, dtype: torch.dtype) -> None:
    boxes, scores = random_boxes(3000)
    boxes = boxes.to(dtype) + offset  # at 1e8 float32 cannot tell neighbouring corners apart
    assert torch.equal(
        nms(boxes, scores.to(dtype), 0.5), torchvision.ops.nms(boxes, scores.to(dtype), 0.5)
    )


def test_equals_torchvision_with_mixed_scales_and_degenerate_boxes() -> None:
    g = torch.Generator().manual_seed(1)
    scale = 10 ** (torch.rand(4000, 1, generator=g) * 12 - 6)
    boxes = random_boxes(4000)[0] * scale
    boxes[::7, 2:] = boxes[::7, :2]  # no area
    boxes[3::11] = boxes[3::11][:, [2, 1, 0, 3]]  # inverted in x
    boxes[5::13] = boxes[5::13][:, [2, 3, 0, 1]]  # inverted in both: a positive "area"
    boxes[6::17, :2] = 0
    boxes[6::17, 2:] = 1e-22  # areas that are denormal in float32
    scores = random_boxes(4000)[1]
    for threshold in (0.0, 0.4, 0.8):
        expected = torchvision.ops.nms(boxes, scores, threshold)
        assert torch.equal(nms(boxes, scores, threshold), expected)


@pytest.mark.parametrize("classes", [1, 3, 80, 1500])
@pytest.mark.parametrize("n", [0, 1, 300, 6000])
def test_batched_equals_torchvision_class_by_class(n: int, classes: int) -> None:
    boxes, scores = random_boxes(n)
    idxs = random_classes(n, classes)
    kept = [
        where[torchvision.ops.nms(boxes[where], scores[where], 0.5)]
        for where in (torch.nonzero(idxs == c)[:, 0] for c in range(classes))
    ]
    expected = torch.cat([torch.empty(0, dtype=torch.int64), *kept])
    expected = expected[scores[expected].argsort(descending=True)]
    assert torch.equal(batched_nms(boxes, scores, idxs, 0.5), expected)


def test_batched_equals_torchvision_batched() -> None:
    # Whole coordinates and few classes: torchvision's offsets are exact there.
    boxes, scores = random_boxes(2000)
    boxes, idxs = boxes.round(), random_classes(2000, 5)
    expected = torchvision.ops.batched_nms(boxes, scores, idxs, 0.5)
    assert torch.equal(batched_nms(boxes, scores, idxs, 0.5), expected)


def test_batched_is_exact_where_offsets_are_not() -> None:
    boxes, scores = random_boxes(500, size=30, low=4, high=10)
    boxes[0] = torch.tensor([0.0, 0.0, 1e7, 1.0])  # an offset of 1e7 leaves float32 no fractions
    idxs = random_classes(500, 40)
    expected = reference.nms.batched_nms(boxes, scores, idxs, 0.5)
    assert torch.equal(batched_nms(boxes, scores, idxs, 0.5), expected)
    assert not torch.equal(torchvision.ops.batched_nms(boxes, scores, idxs, 0.5), expected)


def test_batched_takes_any_class_ids_and_integer_dtypes() -> None:
    boxes, scores = random_boxes(400)
    idxs = random_classes(400, 4)
    ids = torch.tensor([-(2**63), -1, 0, 2**63 - 1])
    expected = batched_nms(boxes, scores, idxs, 0.4)
    assert torch.equal(batched_nms(boxes, scores, ids[idxs], 0.4), expected)
    for dtype in (torch.int32, torch.uint8, torch.int16):
        assert torch.equal(batched_nms(boxes, scores, idxs.to(dtype), 0.4), expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scores_dtype", FLOATING)
@pytest.mark.parametrize("boxes_dtype", FLOATING)
def test_equals_reference(boxes_dtype: torch.dtype, scores_dtype: torch.dtype, seed: int) -> None:
    boxes, scores = random_boxes(300, seed)
    # Half precision ties many scores; NaN, infinities and both zeros are among them.
    boxes, scores = boxes.to(boxes_dtype), scores.to(scores_dtype)
    scores[::29] = NAN
    scores[1], scores[2], scores[3:9:2], scores[4:9:2] = INF, -INF, 0.0, -0.0
    boxes[::31, seed] = NAN
    boxes[::37, 2] = INF
    idxs = random_classes(300, 3)
    assert torch.equal(nms(boxes, scores, 0.5), reference.nms.nms(boxes, scores, 0.5))
    expected = reference.nms.batched_nms(boxes, scores, idxs, 0.5)
    assert torch.equal(batched_nms(boxes, scores, idxs, 0.5), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 200])
def test_threshold_is_strict(n: int, dtype: torch.dtype) -> None:
    # Two boxes of IoU exactly 1/3 and 1/2 (rounded as the op rounds), among `n` that touch nothing.
    for width, union in ((1.0, 3.0), (2.0, 4.0)):
        iou = (torch.tensor(width, dtype=dtype) / torch.tensor(union, dtype=dtype)).item()
        far = torch.arange(n, dtype=dtype)[:, None] * 10 + torch.tensor(
            [100.0, 0, 101, 1], dtype=dtype
        )
        pair = torch.tensor([[0.0, 0, 2, 1], [2 - width, 0, 2 + (union - 2), 1]], dtype=dtype)
        boxes = torch.cat([pair, far])
        scores = torch.linspace(1, 0, len(boxes), dtype=dtype)
        # The next float64 below: a threshold rounded to the dtype of the boxes would pass it by.
        for threshold, kept in ((iou, n + 2), (math.nextafter(iou, 0.0), n + 1)):
            assert len(nms(boxes, scores, threshold)) == kept
            assert len(torchvision.ops.nms(boxes, scores, threshold)) == kept


def test_threshold_is_not_rounded_to_float32() -> None:
    # 0.1f > 0.1: an IoU of exactly 0.1f is above 0.1, but not above 0.1 rounded to float32.
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 1, 1]])
    scores = torch.tensor([1.0, 0.5])
    assert (
        nms(boxes, scores, 0.1).tolist() == torchvision.ops.nms(boxes, scores, 0.1).tolist() == [0]
    )
    assert nms(boxes, scores, torch.tensor(0.1).item()).tolist() == [0, 1]


@pytest.mark.parametrize("n", [50, 500, 5000])
def test_ties_go_to_the_lower_index(n: int) -> None:
    boxes, _ = random_boxes(n)
    scores = torch.ones(n)
    kept = nms(boxes, scores, 0.5)
    assert torch.equal(kept, kept.sort().values)
    assert torch.equal(kept, torchvision.ops.nms(boxes, scores, 0.5))
    same = boxes[:1].repeat(n, 1)
    assert nms(same, scores, 0.5).tolist() == [0]
    assert nms(same, torch.full((n,), NAN), 0.5).tolist() == [0]


@pytest.mark.parametrize("n", [4, 400])
def test_nan_and_infinite(n: int) -> None:
    box = torch.tensor([0.0, 0.0, 10.0, 10.0])
    boxes, scores = box.repeat(n, 1), torch.linspace(1, 0.1, n)
    scores[0] = NAN
    assert nms(boxes, scores, 0.5).tolist() == [1]  # NaN ranks last, so the other copies win
    for value, column in ((NAN, 0), (NAN, 3), (INF, 2), (-INF, 0)):
        boxes = box.repeat(n, 1)
        boxes[1, column] = value
        assert nms(boxes, torch.linspace(1, 0, n), 0.5).tolist() == [0, 1]
    everything = torch.tensor([-INF, -INF, INF, INF]).repeat(n, 1)
    assert len(nms(everything, scores, 0.5)) == n
    assert len(nms(boxes, scores, NAN)) == n


@pytest.mark.parametrize("largest", [1e18, 1e19, 1e30, 3e38])
def test_coordinates_near_overflow(largest: float) -> None:
    boxes, scores = random_boxes(600, size=1.0, low=0.01, high=0.5)
    boxes *= largest
    assert torch.equal(nms(boxes, scores, 0.5), torchvision.ops.nms(boxes, scores, 0.5))


def test_non_contiguous_and_shared_storage() -> None:
    table = torch.rand(500, 7)
    table[:, 2:4] += table[:, :2]
    boxes, scores, idxs = table[:, :4], table[:, 5], (torch.arange(1000) % 6)[::2]
    expected = nms(boxes.contiguous(), scores.contiguous(), 0.3)
    assert torch.equal(nms(boxes, scores, 0.3), expected)
    assert torch.equal(nms(boxes.t().contiguous().t(), scores, 0.3), expected)
    batched = batched_nms(boxes.contiguous(), scores.contiguous(), idxs.contiguous(), 0.3)
    assert torch.equal(batched_nms(boxes, scores, idxs, 0.3), batched)


def test_padded_holds_the_same_result() -> None:
    boxes, scores = random_boxes(300)
    idxs = random_classes(300, 3)
    for ids, expected in (
        (None, nms(boxes, scores, 0.5)),
        (idxs, batched_nms(boxes, scores, idxs, 0.5)),
    ):
        keep, count = nms_padded(boxes, scores, 0.5, ids)
        assert count.item() == len(expected)
        assert torch.equal(keep[: len(expected)], expected)
        assert keep.shape == (300,)
        assert (keep[len(expected) :] == -1).all()
    keep, count = nms_padded(boxes[:0], scores[:0], 0.5)
    assert keep.shape == (0,)
    assert count.item() == 0


def test_result_does_not_depend_on_threads(threads) -> None:
    boxes, scores = random_boxes(20_000)
    many, few = random_classes(20_000, 500), random_classes(20_000, 2)
    few[few == 1] = (torch.rand(int((few == 1).sum())) < 0.2).long()  # one class holds most

    def run() -> list[Tensor]:
        return [nms(boxes, scores, 0.6), *(batched_nms(boxes, scores, i, 0.6) for i in (many, few))]

    threads(1)
    expected = run()
    for count in (2, 3, 8):
        threads(count)
        assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))


def test_several_python_threads_at_once() -> None:
    cases = [random_boxes(3000, seed) for seed in range(8)]
    expected = [nms(*case, 0.5) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(pool.map(lambda case: nms(*case, 0.5), cases))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


_DIGEST = """
import hashlib, torch
from d2proj.ops import nms
digest = hashlib.sha256()
for dtype in (torch.float32, torch.float64):
    g = torch.Generator().manual_seed(0)
    boxes = torch.rand(6000, 4, generator=g, dtype=dtype)
    boxes[:, 2:] += boxes[:, :2]
    scores = torch.rand(6000, generator=g, dtype=dtype)
    boxes[::2] = (boxes[::2] * 8).round() / 8  # many IoUs on the threshold
    for threshold in (1 / 3, 0.5, 0.75):
        kept = nms(boxes, scores, threshold)
        digest.update(kept.numpy().tobytes())
print(digest.hexdigest())
"""


def test_every_instruction_set_gives_the_same() -> None:
    runs = [run_python(_DIGEST, {"D2PROJ_SIMD": level}) for level in ("base", "avx2", "avx512")]
    assert [run.returncode for run in runs] == [0, 0, 0], runs[0].stderr
    assert len({run.stdout for run in runs}) == 1
    assert len(runs[0].stdout.strip()) == 64


@pytest.mark.parametrize("n", [0, 40])
def test_opcheck(n: int) -> None:
    boxes, scores = random_boxes(n)
    idxs = random_classes(n, 3)
    torch.library.opcheck(torch.ops.d2proj.nms.default, (boxes, scores, 0.5))
    torch.library.opcheck(torch.ops.d2proj.batched_nms.default, (boxes, scores, idxs, 0.5))
    for ids in (None, idxs):
        torch.library.opcheck(torch.ops.d2proj._nms_padded.default, (boxes, scores, ids, 0.5))


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_compiles_without_graph_breaks() -> None:
    def best(boxes: Tensor, scores: Tensor, idxs: Tensor) -> Tensor:
        plain = boxes[nms(boxes, scores, 0.5)]
        return boxes[batched_nms(boxes * 2, scores, idxs, 0.5)] + plain.sum()

    compiled = torch.compile(best, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (100, 57):
        arguments = (*random_boxes(n), random_classes(n, 4))
        assert torch.equal(compiled(*arguments), best(*arguments))


def test_padded_compiles_at_default_settings() -> None:
    boxes, scores = random_boxes(100)
    compiled = torch.compile(nms_padded, fullgraph=True, backend="aot_eager")
    keep, count = compiled(boxes, scores, 0.5)
    assert torch.equal(keep[: int(count)], nms(boxes, scores, 0.5))


def test_no_gradient_and_autocast() -> None:
    boxes, scores = random_boxes(100)
    expected = nms(boxes, scores, 0.5)
    found = nms(boxes.requires_grad_(), scores.requires_grad_(), 0.5)
    assert torch.equal(found, expected)
    assert not found.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nms(boxes, scores, 0.5), expected)
        half = boxes.detach().bfloat16()
        assert torch.equal(nms(half, scores, 0.5), nms(half.float(), scores, 0.5))


@pytest.mark.parametrize(
    ("boxes", "scores", "idxs", "message"),
    [
        (torch.rand(4), torch.rand(4), None, r"boxes must have shape \(N, 4\), got \(4\)"),
        (torch.rand(4, 5), torch.rand(4), None, r"boxes must have shape \(N, 4\), got \(4, 5\)"),
        (torch.rand(4, 4), torch.rand(3), None, r"scores must have shape \(4,\).* got \(3\)"),
        (torch.rand(4, 4), torch.rand(4, 1), None, r"scores must have shape \(4,\).* got \(4, 1\)"),
        (torch.ones(4, 4).long(), torch.rand(4), None, "boxes must be float16.*, got Long"),
        (torch.rand(4, 4), torch.ones(4).int(), None, "scores must be float16.*, got Int"),
        (torch.rand(4, 4), torch.rand(4), torch.zeros(5).long(), r"idxs must have shape \(4,\)"),
        (torch.rand(4, 4), torch.rand(4), torch.zeros(4), "idxs must be int64, got Float"),
    ],
)
def test_errors_name_argument_and_what_came(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, message: str
) -> None:
    if idxs is None:
        with pytest.raises(RuntimeError, match=f"^nms: {message}"):
            nms(boxes, scores, 0.5)
        idxs = torch.zeros(len(boxes), dtype=torch.int64)
    with pytest.raises(RuntimeError, match=f"^batched_nms: {message}"):
        batched_nms(boxes, scores, idxs, 0.5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("n", [0, 1, 64, 65, 2048, 2049, 20_000])
def test_cuda_equals_cpu(n: int, dtype: torch.dtype) -> None:
    boxes, scores = random_boxes(n)
    scores, idxs = scores.to(dtype), random_classes(n, 20) - 3
    boxes[::97, 1] = NAN
    scores[::89] = NAN
    boxes = boxes.double() if dtype == torch.float64 else boxes
    for threshold in (0.3, 0.7):
        found = nms(boxes.cuda(), scores.cuda(), threshold)
        assert torch.equal(found.cpu(), nms(boxes, scores, threshold))
        found = batched_nms(boxes.cuda(), scores.cuda(), idxs.cuda(), threshold)
        assert torch.equal(found.cpu(), batched_nms(boxes, scores, idxs, threshold))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_padded_does_not_wait_for_the_device() -> None:
    boxes, scores = (t.cuda() for t in random_boxes(5000))
    nms_padded(boxes, scores, 0.5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        nms_padded(boxes, scores, 0.5, torch.zeros(5000, dtype=torch.int64, device="cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
