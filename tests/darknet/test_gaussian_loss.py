"""The Gaussian YOLO loss against a transcription of gaussian_yolo_layer.c's loops.

Two places differ from the C code, on purpose, each with a comment: what boxes that do not overlap
learn by an IoU loss, and by how many classes a box is divided when labels are smoothed.
"""

import math

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from d2proj.modeling.dense_heads.yolo import GaussianYOLODecoder
from d2proj.modeling.losses.darknet_iou import DarknetIoULoss
from d2proj.modeling.losses.gaussian_yolo import GaussianYOLOLoss
from tests.darknet.test_loss import ANCHORS, CELLS, CLASSES, SIDE, iou, make, sigmoid

OPTIONS = {
    "iou_loss": "mse",
    "scale_x_y": 1.0,
    "ignore_thresh": 0.5,
    "iou_thresh": 1.0,
    "iou_normalizer": 0.75,
    "uc_normalizer": 1.0,
    "obj_normalizer": 1.0,
    "label_smooth_eps": 0.0,
    "objectness_smooth": False,
}
BOX_LOSSES = {"mse": None, "iou": DarknetIoULoss("iou"), "giou": DarknetIoULoss("giou")}


def iou_slopes(p, t, kind: str):
    """dx_box_iou: what it says the derivatives by x, y, w, h are (those of w and h not halved)."""
    pt, pb, pl, pr = p[1] - p[3] / 2, p[1] + p[3] / 2, p[0] - p[2] / 2, p[0] + p[2] / 2
    tt, tb, tl, tr = t[1] - t[3] / 2, t[1] + t[3] / 2, t[0] - t[2] / 2, t[0] + t[2] / 2
    x, ih, iw = (pb - pt) * (pr - pl), min(pb, tb) - max(pt, tt), min(pr, tr) - max(pl, tl)
    i = iw * ih
    # Of boxes apart darknet takes the product of two "sides" of which one or both are negative.
    apart = iw <= 0 or ih <= 0
    i = 0.0 if apart else i
    u = x + (tb - tt) * (tr - tl) - i
    cw, ch = max(pr, tr) - min(pl, tl), max(pb, tb) - min(pt, tt)
    c = cw * ch
    dx = {"t": -(pr - pl), "b": pr - pl, "l": -(pb - pt), "r": pb - pt}
    di = {
        "t": -iw if pt > tt else 0,
        "b": iw if pb < tb else 0,
        "l": -ih if pl > tl else 0,
        "r": ih if pr < tr else 0,
    }
    di = dict.fromkeys(di, 0.0) if apart else di
    dc = {
        "t": -cw if pt < tt else 0,
        "b": cw if pb > tb else 0,
        "l": -ch if pl < tl else 0,
        "r": ch if pr > tr else 0,
    }
    d = {}
    for side in "tblr":
        du = dx[side] - di[side]
        d[side] = (u * di[side] - i * du) / u**2
        if kind == "giou":
            enclosing = (c * du - u * dc[side]) / c**2
            d[side] += enclosing
    return d["l"] + d["r"], d["t"] + d["b"], d["r"] - d["l"], d["b"] - d["t"]


def gaussian_delta(raw: np.ndarray, mask: list[int], truths: list[tuple], options: dict):
    """forward_gaussian_yolo_layer of one image: delta, which is minus the gradient."""
    scale = options["scale_x_y"]
    out = raw.astype(np.float64).copy()  # A, 9 + C, H, W
    out[:, :4] = sigmoid(out[:, :4]) * scale - 0.5 * (scale - 1)
    for entry in (5, 7, *range(8, 9 + CLASSES)):
        out[:, entry] = sigmoid(out[:, entry])
    delta = np.zeros_like(out)
    obj, eps = options["obj_normalizer"], options["label_smooth_eps"]

    def predicted(n, j, i):
        x = out[n, :, j, i]
        w, h = ANCHORS[mask[n]]
        return (
            (i + x[0]) / CELLS,
            (j + x[2]) / CELLS,
            math.exp(x[4]) * w / SIDE,
            math.exp(x[6]) * h / SIDE,
        )

    kinds = {}

    def learn_class(n, j, i, kind):
        kinds.setdefault((n, j, i), set()).add(kind)
        d = delta[n, 9:, j, i]
        o = out[n, 9:, j, i]
        if d[0]:
            d[kind] = (1 - eps + 0.5 * eps) - o[kind]
            return
        for c in range(CLASSES):
            d[c] = (float(c == kind) * (1 - eps) + 0.5 * eps) - o[c]

    def learn_box(n, j, i, truth):
        x = out[n, :, j, i]
        w, h = ANCHORS[mask[n]]
        weight = 2 - truth[2] * truth[3]
        target = (
            truth[0] * CELLS - i,
            truth[1] * CELLS - j,
            math.log(truth[2] * SIDE / w),
            math.log(truth[3] * SIDE / h),
        )
        if options["iou_loss"] != "mse":
            slopes = list(iou_slopes(predicted(n, j, i), truth, options["iou_loss"]))
            slopes[2] *= math.exp(x[4])
            slopes[3] *= math.exp(x[6])
        for k in range(4):
            mu, sigma = x[2 * k], x[2 * k + 1]
            z = (target[k] - mu) / sigma
            density = math.exp(-(z**2) / 2) / (math.sqrt(2 * math.pi) * (sigma + 0.3))
            common = 0.5 / (density + 1e-9) * density * weight
            d_mu = common * z / sigma
            d_sigma = common * (z**2 / sigma - 1 / (sigma + 0.3))
            if options["iou_loss"] != "mse":
                d_mu = slopes[k]
            delta[n, 2 * k, j, i] += d_mu * options["iou_normalizer"]
            delta[n, 2 * k + 1, j, i] += d_sigma * options["uc_normalizer"]

    def hit(n, j, i, truth, kind):
        learn_box(n, j, i, truth)
        delta[n, 8, j, i] = obj * (1 - out[n, 8, j, i])
        learn_class(n, j, i, kind)

    smooth = 0
    for n in range(len(mask)):
        for j in range(CELLS):
            for i in range(CELLS):
                best, which = 0.0, 0
                match = (out[n, 9:, j, i] > 0.25).any()
                for t, truth in enumerate(truths):
                    overlap = iou(predicted(n, j, i), truth)
                    if overlap > best and match:
                        best, which = overlap, t
                delta[n, 8, j, i] = obj * (0 - out[n, 8, j, i])
                if best > options["ignore_thresh"]:
                    delta[n, 8, j, i] = 0
                    if options["objectness_smooth"]:
                        smooth += 1
                        delta[n, 8, j, i] = obj * (best**2 - out[n, 8, j, i])
                        learn_class(n, j, i, truths[which][4])
    hits = 0
    for *truth, kind in truths:
        i, j = int(truth[0] * CELLS), int(truth[1] * CELLS)
        shape = (0, 0, truth[2], truth[3])
        overlaps = [iou((0, 0, w / SIDE, h / SIDE), shape) for w, h in ANCHORS]
        best = int(np.argmax(overlaps))
        wanted = [best] if best in mask else []
        if options["iou_thresh"] < 1:
            wanted += [n for n in mask if n != best and overlaps[n] > options["iou_thresh"]]
        for n in wanted:
            hit(mask.index(n), j, i, truth, kind)
            hits += 1
    for n in range(len(mask)):
        for j in range(CELLS):
            for i in range(CELLS):
                several = (delta[n, 9:, j, i] > 0).sum()
                if eps:
                    # darknet also counts the other classes whose output is below eps / 2.
                    several = len(kinds.get((n, j, i), ()))
                if several:
                    delta[n, :8, j, i] /= several
    return delta, hits, smooth


def run(raw, mask, instances, options, box_loss=None):
    decoder = GaussianYOLODecoder(
        anchors=[ANCHORS[i] for i in mask],
        num_classes=CLASSES,
        scale_x_y=options["scale_x_y"],
    ).double()
    names = (
        "ignore_thresh",
        "iou_thresh",
        "iou_normalizer",
        "uc_normalizer",
        "obj_normalizer",
        "label_smooth_eps",
        "objectness_smooth",
    )
    loss = GaussianYOLOLoss(
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


def make_raw(seed: int, anchors: int) -> np.ndarray:
    return np.random.default_rng(100 + seed).normal(size=(anchors, 9 + CLASSES, CELLS, CELLS))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"iou_thresh": 0.213, "uc_normalizer": 0.4},
        {"iou_loss": "giou", "iou_thresh": 0.213, "iou_normalizer": 0.5},  # the cfg of BDD100K
        {"iou_loss": "iou", "scale_x_y": 1.2},
        {"label_smooth_eps": 0.2, "iou_thresh": 0.3},
        {"iou_thresh": 0.3, "scale_x_y": 1.1, "obj_normalizer": 0.4},
        {"objectness_smooth": True, "iou_thresh": 0.2, "ignore_thresh": 0.25},
        {"objectness_smooth": True, "ignore_thresh": 0.25, "iou_loss": "giou"},
    ],
)
def test_gradients_are_darknets(seed: int, changed: dict) -> None:
    options = {**OPTIONS, **changed}
    mask = [1, 2, 3]
    raw = make_raw(seed, len(mask))
    _, truths, instances = make(seed, mask)
    delta, hits, smooth = gaussian_delta(raw, mask, truths, options)
    assert hits
    assert smooth or not options["objectness_smooth"]
    _, gradient = run(raw, mask, instances, options, BOX_LOSSES[options["iou_loss"]])
    np.testing.assert_allclose(gradient, -delta, atol=1e-7, rtol=1e-6)


def test_the_loss_is_the_papers() -> None:
    """Equation 5 with darknet's constants; 2 - w h; sums over coordinates, means over images."""
    mask = [0]
    decoder = GaussianYOLODecoder(anchors=[[16, 16]], num_classes=1)
    loss = GaussianYOLOLoss(anchors=[[16, 16]], mask=mask, num_classes=1, iou_normalizer=1.0)
    raw = torch.randn(2, 10, 2, 2, generator=torch.Generator().manual_seed(3))
    truth = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[36.0, 8.0, 60.0, 20.0]])))
    truth.gt_classes = torch.tensor([0])
    nothing = Instances((64, 64), gt_boxes=Boxes(torch.zeros(0, 4)))
    nothing.gt_classes = torch.zeros(0, dtype=torch.int64)
    losses = loss(raw, decoder, [truth, nothing], (64, 64))
    v = raw[0, :, 0, 1].double()  # center (48, 14): cell x 1, y 0
    expected = 0.0
    for k, target in enumerate((48 / 32 - 1, 14 / 32, math.log(24 / 16), math.log(12 / 16))):
        mu = v[2 * k].sigmoid() if k < 2 else v[2 * k]
        sigma = v[2 * k + 1].sigmoid()
        normal = torch.distributions.Normal(mu, sigma)
        # The density, normalised by sigma + 0.3 instead of sigma.
        density = normal.log_prob(torch.tensor(target)).exp() * sigma / (sigma + 0.3)
        expected -= (density + 1e-9).log().item()
    expected *= (2 - 24 * 12 / 64**2) / 2 / 2
    assert losses["loss_box"].item() == pytest.approx(expected, rel=1e-4)
    assert losses["loss_uncertainty"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["mse", "giou"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite(kind: str, dtype: torch.dtype) -> None:
    """Wild predictions, deviations of zero, images without boxes."""
    decoder = GaussianYOLODecoder(anchors=ANCHORS, num_classes=CLASSES, scale_x_y=1.2)
    loss = GaussianYOLOLoss(
        anchors=ANCHORS,
        mask=[0, 1, 2, 3, 4],
        num_classes=CLASSES,
        box_loss=BOX_LOSSES[kind],
        iou_thresh=0.1,
    )
    nothing = Instances((SIDE, SIDE), gt_boxes=Boxes(torch.zeros(0, 4)))
    nothing.gt_classes = torch.zeros(0, dtype=torch.int64)
    _, _, instances = make(0, [0])
    instances.gt_boxes.tensor = instances.gt_boxes.tensor.float()
    generator = torch.Generator().manual_seed(0)
    for spread in (1.0, 5.0, 15.0):
        raw = torch.randn(2, 5 * (9 + CLASSES), CELLS, CELLS, generator=generator) * spread
        raw = raw.to(dtype).requires_grad_()
        losses = loss(raw, decoder, [instances, nothing], (SIDE, SIDE))
        assert all(x.isfinite() for x in losses.values())
        (gradient,) = torch.autograd.grad(sum(losses.values()), raw)
        assert gradient.isfinite().all()
    raw = torch.randn(2, 5 * (9 + CLASSES), CELLS, CELLS)
    losses = loss(raw, decoder, [nothing, nothing], (SIDE, SIDE))
    assert losses["loss_box"] == losses["loss_uncertainty"] == losses["loss_cls"] == 0
    # Zero is where sigmoid(t) * 1.2 - 0.1 vanishes.
    zero = torch.full((1, 5 * (9 + CLASSES), CELLS, CELLS), math.log(1 / 11)).requires_grad_()
    losses = loss(zero, decoder, [instances], (SIDE, SIDE))
    (gradient,) = torch.autograd.grad(sum(losses.values()), zero)
    assert gradient.isfinite().all()
    # As for new_coords: deviations from -0.5 to 1.5.
    decoder = GaussianYOLODecoder(anchors=ANCHORS, num_classes=CLASSES, scale_x_y=2.0)
    raw = (
        torch.randn(1, 5 * (9 + CLASSES), CELLS, CELLS, generator=generator) * 4
    ).requires_grad_()
    losses = loss(raw, decoder, [instances], (SIDE, SIDE))
    assert all(x.isfinite() for x in losses.values())
    (gradient,) = torch.autograd.grad(sum(losses.values()), raw)
    assert gradient.isfinite().all()
