"""YOLOv4's box gradients against a transcription of dx_box_iou and delta_yolo_box."""

import math

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from d2proj.darknet import plan_network
from d2proj.darknet.detector import DarknetDetector
from d2proj.modeling.losses.darknet_iou import DarknetIoULoss

HEIGHT, WIDTH, STRIDE, CLASSES = 96, 128, 32, 3
ANCHORS = [(20.0, 26.0), (45.0, 37.0), (90.0, 80.0)]
CFG = """[net]
width={WIDTH}
height={HEIGHT}
[convolutional]
filters=24
size=1
stride=32
activation={activation}
[yolo]
classes=3
num=3
anchors=20,26,45,37,90,80
iou_thresh=0.2
ignore_thresh=0.7
iou_normalizer={normalizer}
scale_x_y={scale}
iou_loss={kind}
max_delta={max_delta}
new_coords={new_coords}
cls_normalizer=0.5
"""


def edges(box):
    x, y, w, h = box
    return y - h / 2, y + h / 2, x - w / 2, x + w / 2


def dx_box_iou(pred, truth, kind):
    """The four numbers that darknet adds to delta for x, y, w, h, before the chain rule."""
    pred, truth = ([float(v) for v in box] for box in (pred, truth))
    pt, pb, pl, pr = edges(pred)
    tt, tb, tl, tr = edges(truth)
    area, area_t = (pb - pt) * (pr - pl), (tb - tt) * (tr - tl)
    ih, iw = min(pb, tb) - max(pt, tt), min(pr, tr) - max(pl, tl)
    inter = iw * ih
    union = area + area_t - inter
    apart = iw <= 0 or ih <= 0
    d_area = [-(pr - pl), pr - pl, -(pb - pt), pb - pt]  # by top, bottom, left, right
    d_inter = [
        -iw if pt > tt else 0,
        iw if pb < tb else 0,
        -ih if pl > tl else 0,
        ih if pr < tr else 0,
    ]
    d_union = [a - i for a, i in zip(d_area, d_inter, strict=True)]
    d = [(union * i - inter * u) / union**2 for i, u in zip(d_inter, d_union, strict=True)]
    cw, ch = max(pr, tr) - min(pl, tl), max(pb, tb) - min(pt, tt)
    if kind == "giou":
        hull = cw * ch
        d_hull = [
            -cw if pt < tt else 0,
            cw if pb > tb else 0,
            -ch if pl < tl else 0,
            ch if pr > tr else 0,
        ]
        extra = [(hull * u - union * c) / hull**2 for u, c in zip(d_union, d_hull, strict=True)]
        d = extra if apart else [a + b for a, b in zip(d, extra, strict=True)]
    top, bottom, left, right = d
    dx, dy, dw, dh = left + right, top + bottom, right - left, bottom - top
    if kind in ("diou", "ciou"):
        (px, py, pw, ph), (tx, ty, tw, th) = pred, truth
        distance, diagonal = (px - tx) ** 2 + (py - ty) ** 2, cw**2 + ch**2
        cw_x = (pr > tr) - (pl < tl)
        ch_y = (pb > tb) - (pt < tt)
        cw_w = 0.5 * (pr > tr) + 0.5 * (pl < tl)
        ch_h = 0.5 * (pb > tb) + 0.5 * (pt < tt)
        if apart:
            dx = dy = dw = dh = 0.0
        dx += (2 * (tx - px) * diagonal - 2 * cw * cw_x * distance) / diagonal**2
        dy += (2 * (ty - py) * diagonal - 2 * ch * ch_y * distance) / diagonal**2
        dw += 2 * cw * cw_w * distance / diagonal**2
        dh += 2 * ch * ch_h * distance / diagonal**2
        if kind == "ciou":
            turn = math.atan(tw / th) - math.atan(pw / ph)
            term = 4 / math.pi**2 * turn**2
            # Of boxes apart darknet's "IoU" is that of an intersection of negative sides.
            alpha = term / (1 - (0.0 if apart else inter / union) + term + 1e-6)
            dw += alpha * 8 / math.pi**2 * turn * ph
            dh -= alpha * 8 / math.pi**2 * turn * pw
    return np.array([dx, dy, dw, dh])


def darknet_delta(raw, truths, kind, options):
    """delta of the boxes, after averages_yolo_deltas; raw is what the convolution gives."""
    _, _, rows, columns = raw.shape
    scale, new = options["scale"], options["new_coords"]
    delta = np.zeros((3, 4, rows, columns))
    classes = {}
    for *truth, label in truths:
        i, j = int(truth[0] * columns), int(truth[1] * rows)
        shapes = []
        for w, h in ANCHORS:
            w, h = w / WIDTH, h / HEIGHT
            inter = min(w, truth[2]) * min(h, truth[3])
            shapes.append(inter / (w * h + truth[2] * truth[3] - inter))
        for n, (w, h) in enumerate(ANCHORS):
            if n != int(np.argmax(shapes)) and shapes[n] <= 0.2:
                continue
            v = raw[n, :4, j, i]
            xy = v[:2] if new else 1 / (1 + np.exp(-v[:2]))
            x, y = xy * scale - 0.5 * (scale - 1)
            grow = 4 * v[2:] ** 2 if new else np.exp(v[2:])
            pred = ((i + x) / columns, (j + y) / rows, grow[0] * w / WIDTH, grow[1] * h / HEIGHT)
            d = dx_box_iou(pred, truth, kind)
            if not new:
                d[2:] *= np.exp(v[2:])
            d = (d * options["normalizer"]).clip(-options["max_delta"], options["max_delta"])
            delta[n, :, j, i] += d
            classes.setdefault((n, j, i), set()).add(label)
    for (n, j, i), found in classes.items():
        delta[n, :, j, i] /= len(found)
    return delta


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou"])
@pytest.mark.parametrize(
    "options",
    [
        {"normalizer": 0.07, "scale": 1.2, "max_delta": 1e9, "new_coords": False},
        {"normalizer": 0.5, "scale": 1.05, "max_delta": 0.8, "new_coords": False},
        {"normalizer": 0.05, "scale": 2.0, "max_delta": 0.1, "new_coords": True},
    ],
)
def test_gradients_are_darknets(kind: str, options: dict, tmp_path) -> None:
    """Through the detector of a cfg file; IoU and GIoU where boxes overlap, as documented."""
    new = options["new_coords"]
    activation = "logistic" if new else "linear"
    text = CFG.format(
        kind=kind,
        activation=activation,
        WIDTH=WIDTH,
        HEIGHT=HEIGHT,
        **{k: int(v) if k == "new_coords" else v for k, v in options.items()},
    )
    (tmp_path / "x.cfg").write_text(text)
    model = DarknetDetector(cfg_file=tmp_path / "x.cfg").double()
    assert model.plan == plan_network(tmp_path / "x.cfg")
    rng = np.random.default_rng(3)
    raw = rng.normal(size=(3, 5 + CLASSES, HEIGHT // STRIDE, WIDTH // STRIDE)) * 0.7
    if new:
        raw = 1 / (1 + np.exp(-raw))
    truths = []
    for _ in range(5):
        center, size = rng.uniform(0.1, 0.9, 2), rng.uniform(0.2, 0.9, 2)
        truths.append((*center, *size, int(rng.integers(CLASSES))))
    truths.append((*truths[0][:4], (truths[0][4] + 1) % CLASSES))  # one place, two classes
    if kind in ("diou", "ciou"):
        truths.append((0.6, 0.4, 0.01, 0.012, 1))  # far smaller than any anchor: boxes may be apart
    frame = torch.tensor([WIDTH, HEIGHT] * 2, dtype=torch.float64)
    xywh = torch.tensor([t[:4] for t in truths], dtype=torch.float64) * frame
    corners = torch.cat([xywh[:, :2] - xywh[:, 2:] / 2, xywh[:, :2] + xywh[:, 2:] / 2], 1)
    truth = Instances((HEIGHT, WIDTH), gt_boxes=Boxes(corners))
    truth.gt_boxes.tensor = corners  # Boxes makes float32 of its argument
    truth.gt_classes = torch.tensor([t[4] for t in truths])

    leaf = torch.from_numpy(raw).reshape(1, -1, *raw.shape[2:]).requires_grad_()
    losses = model.prediction_losses([], ([leaf],), [truth], (HEIGHT, WIDTH))
    (gradient,) = torch.autograd.grad(losses["loss_box"], leaf)
    delta = darknet_delta(raw, truths, kind, options)
    assert (np.abs(delta) > 0).sum() >= 20
    if options["max_delta"] < 1:
        assert (np.abs(delta) == options["max_delta"]).any()
    found = gradient.view(raw.shape)[:, :4].numpy()
    np.testing.assert_allclose(found, -delta, rtol=1e-6, atol=1e-8)


def test_iou_losses_gradient_survives_degenerate_boxes() -> None:
    loss = DarknetIoULoss("ciou", max_delta=5.0)
    boxes = torch.tensor([[4.0, 4.0, 4.0, 4.0], [0.0, 0.0, 1e30, 8.0], [1.0, 1.0, 5.0, 5.0]])
    truth = torch.tensor([[4.0, 4.0, 4.0, 4.0], [2.0, 2.0, 9.0, 9.0], [50.0, 50.0, 60.0, 70.0]])
    values = torch.zeros(3, 4, requires_grad=True)
    growth = torch.tensor([[1.0, 1.0], [float("inf"), 1.0], [1.0, 1.0]])
    found = loss(boxes, truth, values=values, growth=growth, image_size=(64, 64), weight=0.07)
    (gradient,) = torch.autograd.grad(found.sum() * 0.07, values)
    assert gradient.isfinite().all()
    assert gradient.abs().max() <= 5.0
    assert (gradient[2] != 0).any()


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="kind must be one of iou, giou, diou, ciou"):
        DarknetIoULoss("mse")
    with pytest.raises(ValueError, match="max_delta positive"):
        DarknetIoULoss("ciou", max_delta=0.0)
