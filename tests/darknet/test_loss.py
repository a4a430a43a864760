"""The YOLO loss against a transcription of yolo_layer.c's loops, which give gradients."""

import math

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from d2proj.modeling.dense_heads.yolo import DetectionDecoder, RegionDecoder, YOLODecoder
from d2proj.modeling.losses.region import DetectionLoss, RegionLoss
from d2proj.modeling.losses.yolo import YOLOLoss

ANCHORS = [[10, 14], [23, 27], [37, 58], [81, 82], [135, 169]]
CLASSES = 3
SIDE, CELLS = 128, 4


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def iou(a, b) -> float:
    """box_iou of darknet: center x, y, w, h."""
    w = min(a[0] + a[2] / 2, b[0] + b[2] / 2) - max(a[0] - a[2] / 2, b[0] - b[2] / 2)
    h = min(a[1] + a[3] / 2, b[1] + b[3] / 2) - max(a[1] - a[3] / 2, b[1] - b[3] / 2)
    if w < 0 or h < 0:
        return 0.0
    return w * h / (a[2] * a[3] + b[2] * b[3] - w * h)


def darknet_delta(raw: np.ndarray, mask: list[int], truths: list[tuple], options: dict):
    """process_batch of one image: delta (minus the gradient), and the matched boxes' IoUs.

    With an IoU loss the box part is left out of delta; the (index, anchor, truth) triples are
    returned instead, with the weight that averages_yolo_deltas gives them.
    """
    scale = options["scale_x_y"]
    out = raw.astype(np.float64).copy()  # A, 5 + C, H, W
    out[:, :2] = sigmoid(out[:, :2]) * scale - 0.5 * (scale - 1)
    out[:, 4:] = sigmoid(out[:, 4:])
    delta = np.zeros_like(out)
    obj = options["obj_normalizer"]

    def predicted(n, j, i):
        x = out[n, :, j, i]
        w, h = ANCHORS[mask[n]]
        return (
            (i + x[0]) / CELLS,
            (j + x[1]) / CELLS,
            math.exp(x[2]) * w / SIDE,
            math.exp(x[3]) * h / SIDE,
        )

    for n in range(len(mask)):
        for j in range(CELLS):
            for i in range(CELLS):
                best = 0.0
                match = (out[n, 5:, j, i] > 0.25).any()
                for truth in truths:
                    overlap = iou(predicted(n, j, i), truth)
                    if overlap > best and match:
                        best = overlap
                delta[n, 4, j, i] = obj * (0 - out[n, 4, j, i])
                if best > options["ignore_thresh"]:
                    if options["objectness_smooth"]:
                        delta[n, 4, j, i] = max(delta[n, 4, j, i], obj * (best - out[n, 4, j, i]))
                    else:
                        delta[n, 4, j, i] = 0
    pairs = []

    def hit(n, j, i, truth, kind):
        if options["mse"]:
            weight = (2 - truth[2] * truth[3]) * options["iou_normalizer"]
            w, h = ANCHORS[mask[n]]
            target = (
                truth[0] * CELLS - i,
                truth[1] * CELLS - j,
                math.log(truth[2] * SIDE / w),
                math.log(truth[3] * SIDE / h),
            )
            for k in range(4):
                delta[n, k, j, i] += weight * (target[k] - out[n, k, j, i])
        pairs.append((n, j, i, truth))
        if options["objectness_smooth"]:
            if delta[n, 4, j, i] == 0:
                delta[n, 4, j, i] = obj * (1 - out[n, 4, j, i])
        else:
            delta[n, 4, j, i] = obj * (1 - out[n, 4, j, i])
        eps = options["label_smooth_eps"]
        positive = 1 - eps + 0.5 * eps
        if delta[n, 5 + kind, j, i]:
            delta[n, 5 + kind, j, i] = positive - out[n, 5 + kind, j, i]
            return
        for c in range(CLASSES):
            wanted = positive if c == kind else 0.5 * eps
            delta[n, 5 + c, j, i] = wanted - out[n, 5 + c, j, i]

    for *truth, kind in truths:
        i, j = int(truth[0] * CELLS), int(truth[1] * CELLS)
        shape = (0, 0, truth[2], truth[3])
        overlaps = [iou((0, 0, w / SIDE, h / SIDE), shape) for w, h in ANCHORS]
        best = int(np.argmax(overlaps))
        if best in mask:
            hit(mask.index(best), j, i, truth, kind)
        for n, overlap in enumerate(overlaps):
            if n in mask and n != best and overlap > options["iou_thresh"] < 1:
                hit(mask.index(n), j, i, truth, kind)
    if options["iou_thresh"] < 1 and options["mse"]:
        for n, j, i in {p[:3] for p in pairs}:
            several = (delta[n, 5:, j, i] > 0).sum()
            delta[n, :4, j, i] /= max(several, 1)
    return delta, pairs, predicted


def make(seed: int, mask: list[int]):
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(len(mask), 5 + CLASSES, CELLS, CELLS))
    truths = []
    for _ in range(6):
        w, h = rng.uniform(0.05, 0.9, 2)
        truths.append((*rng.uniform(0.05, 0.95, 2), w, h, int(rng.integers(CLASSES))))
    truths.append((*truths[0][:4], (truths[0][4] + 1) % CLASSES))  # one place, two classes
    xywh = torch.tensor([t[:4] for t in truths]) * SIDE
    corners = torch.cat([xywh[:, :2] - xywh[:, 2:] / 2, xywh[:, :2] + xywh[:, 2:] / 2], 1)
    instances = Instances((SIDE, SIDE), gt_boxes=Boxes(corners))
    # Boxes makes float32 of its argument; the comparison is in double.
    instances.gt_boxes.tensor = corners.double()
    instances.gt_classes = torch.tensor([t[4] for t in truths])
    return raw, truths, instances


def run(raw, mask, instances, options, box_loss=None):
    decoder = YOLODecoder(
        anchors=[ANCHORS[i] for i in mask], num_classes=CLASSES, scale_x_y=options["scale_x_y"]
    ).double()
    names = (
        "ignore_thresh",
        "iou_thresh",
        "iou_normalizer",
        "obj_normalizer",
        "label_smooth_eps",
        "objectness_smooth",
    )
    loss = YOLOLoss(
        anchors=ANCHORS,
        mask=mask,
        num_classes=CLASSES,
        box_loss=box_loss,
        **{name: options[name] for name in names},
    ).double()
    leaf = torch.from_numpy(raw).reshape(1, -1, CELLS, CELLS).requires_grad_()
    losses = loss(leaf, decoder, [instances], (SIDE, SIDE))
    (gradient,) = torch.autograd.grad(sum(losses.values()), leaf)
    return losses, gradient.view(raw.shape).numpy()


OPTIONS = {
    "mse": True,
    "scale_x_y": 1.0,
    "ignore_thresh": 0.5,
    "iou_thresh": 1.0,
    "iou_normalizer": 0.75,
    "obj_normalizer": 1.0,
    "label_smooth_eps": 0.0,
    "objectness_smooth": False,
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"iou_thresh": 0.213},
        {"iou_thresh": 0.3, "scale_x_y": 1.1, "obj_normalizer": 0.4},
        {"label_smooth_eps": 0.1, "ignore_thresh": 0.2},
        {"objectness_smooth": True, "iou_thresh": 0.2, "ignore_thresh": 0.3},
    ],
)
def test_gradients_are_darknets(seed: int, changed: dict) -> None:
    """YOLOv3's squared errors: every entry of delta."""
    options = {**OPTIONS, **changed}
    mask = [1, 2, 3]
    raw, truths, instances = make(seed, mask)
    delta, pairs, _ = darknet_delta(raw, mask, truths, options)
    assert pairs
    _, gradient = run(raw, mask, instances, options)
    np.testing.assert_allclose(gradient, -delta, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("thresh", [1.0, 0.213])
def test_iou_loss_of_the_matched_boxes(seed: int, thresh: float) -> None:
    """YOLOv4: gradients but the box's are darknet's; the box loss is 1 - IoU of each pair."""
    options = {**OPTIONS, "mse": False, "iou_thresh": thresh, "iou_normalizer": 0.07}
    mask = [0, 1, 2, 3, 4]
    raw, truths, instances = make(seed, mask)
    delta, pairs, predicted = darknet_delta(raw, mask, truths, options)

    def plain(boxes: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
        top = torch.maximum(boxes[:, :2], gt[:, :2])
        bottom = torch.minimum(boxes[:, 2:], gt[:, 2:])
        inter = (bottom - top).clamp(min=0).prod(1)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (gt[:, 2:] - gt[:, :2]).prod(1)
        return 1 - inter / (areas - inter)

    losses, gradient = run(raw, mask, instances, options, plain)
    np.testing.assert_allclose(gradient[:, 4:], -delta[:, 4:], atol=1e-9, rtol=1e-7)
    several = {}
    for n, j, i, truth in pairs:
        several.setdefault((n, j, i), []).append(truth)
    expected = 0.0
    for (n, j, i), found in several.items():
        positive = (delta[n, 5:, j, i] > 0).sum() if thresh < 1 else 1
        expected += sum(1 - iou(predicted(n, j, i), truth) for truth in found) / positive
    assert losses["loss_box"].item() == pytest.approx(0.07 * expected, rel=1e-9)


def test_images_without_truth_learn_that_there_is_nothing() -> None:
    decoder = YOLODecoder(anchors=ANCHORS, num_classes=CLASSES)
    loss = YOLOLoss(anchors=ANCHORS, mask=[0, 1, 2, 3, 4], num_classes=CLASSES)
    raw = torch.randn(2, 5 * (5 + CLASSES), CELLS, CELLS, requires_grad=True)
    nothing = Instances((SIDE, SIDE), gt_boxes=Boxes(torch.zeros(0, 4)))
    nothing.gt_classes = torch.zeros(0, dtype=torch.int64)
    losses = loss(raw, decoder, [nothing, nothing], (SIDE, SIDE))
    assert losses["loss_box"] == 0
    assert losses["loss_cls"] == 0
    objectness = raw.view(2, 5, -1, CELLS, CELLS)[:, :, 4]
    expected = torch.nn.functional.softplus(objectness).sum() / 2
    torch.testing.assert_close(losses["loss_obj"], expected)


def region_delta(raw: np.ndarray, anchors, truths, scales: dict, seen: int) -> np.ndarray:
    """forward_region_layer of one image, with softmax, rescore and bias_match."""
    count = len(anchors)
    values = raw.reshape(count, -1, CELLS, CELLS).astype(np.float64)
    delta = np.zeros_like(values)
    x, y, obj = sigmoid(values[:, 0]), sigmoid(values[:, 1]), sigmoid(values[:, 4])

    def predicted(n, j, i):
        w, h = anchors[n]
        return (
            (i + x[n, j, i]) / CELLS,
            (j + y[n, j, i]) / CELLS,
            math.exp(values[n, 2, j, i]) * w / CELLS,
            math.exp(values[n, 3, j, i]) * h / CELLS,
        )

    def box(n, j, i, truth, scale):
        w, h = anchors[n]
        target = truth[0] * CELLS - i, truth[1] * CELLS - j
        for k, s in enumerate((x[n, j, i], y[n, j, i])):
            delta[n, k, j, i] = scale * (target[k] - s) * s * (1 - s)
        delta[n, 2, j, i] = scale * (math.log(truth[2] * CELLS / w) - values[n, 2, j, i])
        delta[n, 3, j, i] = scale * (math.log(truth[3] * CELLS / h) - values[n, 3, j, i])

    for n in range(count):
        for j in range(CELLS):
            for i in range(CELLS):
                o = obj[n, j, i]
                best = max(iou(predicted(n, j, i), t[:4]) for t in truths)
                if best <= scales["thresh"]:
                    delta[n, 4, j, i] = scales["noobject_scale"] * (0 - o) * o * (1 - o)
                if seen < 12800:
                    w, h = (a / CELLS for a in anchors[n])
                    box(n, j, i, ((i + 0.5) / CELLS, (j + 0.5) / CELLS, w, h), 0.01)
    for *truth, kind in truths:
        i, j = int(truth[0] * CELLS), int(truth[1] * CELLS)
        overlaps = [iou((0, 0, w / CELLS, h / CELLS), (0, 0, *truth[2:])) for w, h in anchors]
        n = int(np.argmax(overlaps))
        box(n, j, i, truth, scales["coord_scale"])
        o = obj[n, j, i]
        found = iou(predicted(n, j, i), truth)
        delta[n, 4, j, i] = scales["object_scale"] * (found - o) * o * (1 - o)
        e = np.exp(values[n, 5:, j, i] - values[n, 5:, j, i].max())
        delta[n, 5:, j, i] = scales["class_scale"] * (np.eye(CLASSES)[kind] - e / e.sum())
    return delta


@pytest.mark.parametrize("seen", [0, 20_000])
@pytest.mark.parametrize("seed", range(4))
def test_gradients_of_yolov2_are_darknets(seed: int, seen: int) -> None:
    anchors = [[0.6, 0.7], [1.9, 2.1], [3.3, 2.5]]
    raw, truths, instances = make(seed, [0, 1, 2])
    scales = {
        "thresh": 0.4,
        "object_scale": 5.0,
        "noobject_scale": 1.0,
        "class_scale": 2.0,
        "coord_scale": 1.5,
    }
    loss = RegionLoss(num_classes=CLASSES, **scales).double()
    loss.seen.fill_(seen)
    leaf = torch.from_numpy(raw).reshape(1, -1, CELLS, CELLS).requires_grad_()
    decoder = RegionDecoder(anchors=anchors, num_classes=CLASSES).double()
    # Anchors are kept in float32; the loops must see the same numbers.
    anchors = decoder.anchors.tolist()
    total = sum(loss(leaf, decoder, [instances], (SIDE, SIDE)).values())
    (gradient,) = torch.autograd.grad(total, leaf)
    expected = -region_delta(raw, anchors, truths, scales, seen)
    np.testing.assert_allclose(gradient.view(expected.shape).numpy(), expected, atol=1e-9)
    assert loss.seen == seen + 1


def detection_delta(out: np.ndarray, truths, scales: dict, per_cell: int) -> np.ndarray:
    """forward_detection_layer of one image, with sqrt and rescore."""
    cells = CELLS * CELLS
    delta = np.zeros_like(out)
    for p in range(cells * CLASSES, cells * (CLASSES + per_cell)):
        delta[p] = scales["noobject_scale"] * (0 - out[p])
    taken = set()
    for *truth, kind in truths:
        i, j = int(truth[0] * CELLS), int(truth[1] * CELLS)
        cell = j * CELLS + i
        if cell in taken:  # fill_truth_region: the first keeps the cell
            continue
        taken.add(cell)
        for c in range(CLASSES):
            delta[cell * CLASSES + c] = scales["class_scale"] * (
                float(c == kind) - out[cell * CLASSES + c]
            )
        offset = truth[0] * CELLS - i, truth[1] * CELLS - j
        wanted = (offset[0] / CELLS, offset[1] / CELLS, truth[2], truth[3])
        best, best_iou, best_rmse = -1, 0.0, 20.0
        for b in range(per_cell):
            at = cells * (CLASSES + per_cell) + (cell * per_cell + b) * 4
            found = (out[at] / CELLS, out[at + 1] / CELLS, out[at + 2] ** 2, out[at + 3] ** 2)
            overlap = iou(found, wanted)
            rmse = math.sqrt(sum((p - q) ** 2 for p, q in zip(found, wanted, strict=True)))
            if best_iou > 0 or overlap > 0:
                if overlap > best_iou:
                    best, best_iou = b, overlap
            elif rmse < best_rmse:
                best, best_rmse = b, rmse
        at = cells * (CLASSES + per_cell) + (cell * per_cell + best) * 4
        confidence = cells * CLASSES + cell * per_cell + best
        delta[confidence] = scales["object_scale"] * (best_iou - out[confidence])
        target = (*offset, math.sqrt(truth[2]), math.sqrt(truth[3]))
        for k in range(4):
            delta[at + k] = scales["coord_scale"] * (target[k] - out[at + k])
    return delta


@pytest.mark.parametrize("seed", range(6))
def test_gradients_of_yolov1_are_darknets(seed: int) -> None:
    per_cell = 2
    _, truths, instances = make(seed, [0])
    rng = np.random.default_rng(seed)
    out = rng.uniform(-0.2, 1.0, CELLS * CELLS * (CLASSES + 5 * per_cell))
    scales = {"object_scale": 1.0, "noobject_scale": 0.5, "class_scale": 1.5, "coord_scale": 5.0}
    decoder = DetectionDecoder(num_classes=CLASSES, side=CELLS, boxes_per_cell=per_cell)
    leaf = torch.from_numpy(out)[None].requires_grad_()
    losses = DetectionLoss(num_classes=CLASSES, **scales)(leaf, decoder, [instances], (SIDE, SIDE))
    (gradient,) = torch.autograd.grad(sum(losses.values()), leaf)
    expected = -detection_delta(out, truths, scales, per_cell)
    np.testing.assert_allclose(gradient[0].numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("processes", [1, 4])
def test_region_warms_up_on_the_images_of_all_processes(processes: int, monkeypatch) -> None:
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: processes)
    loss = RegionLoss(num_classes=2, warmup_images=16).train()
    decoder = RegionDecoder(anchors=[[1.0, 2.0]], num_classes=2)
    nothing = Instances((64, 64), gt_boxes=Boxes(torch.zeros(0, 4)))
    nothing.gt_classes = torch.zeros(0, dtype=torch.int64)
    pulled = []
    for _ in range(10):
        found = loss(torch.ones(2, 7, 2, 2), decoder, [nothing, nothing], (64, 64))
        pulled.append(float(found["loss_box"]) > 0)
    assert pulled == [i < 8 // processes for i in range(10)]
