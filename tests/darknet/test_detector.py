"""Detectors of cfg files: the reference detections from published weights; boxes as in C."""

import json
import math

import cv2
import numpy as np
import pytest
import torch
import torchvision
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, Instances

from d2proj.checkpoint import load_weights
from d2proj.checkpoint.darknet import save_darknet_weights
from d2proj.darknet import plan_network
from d2proj.darknet.detector import DarknetDetector, DarknetResize, make_decoder, make_nms
from d2proj.errors import InputError
from d2proj.evaluation.predictor import Predictor

THRESHOLDS = {"yolo": 0.3, "Gaussian_yolo": 0.2, "region": 0.05}
REFERENCES = ["yolo-fastest-1.1-xl", "MobileNetV2-YOLOv3-Nano-coco"]


def load(data, name: str, **options) -> DarknetDetector:
    model = DarknetDetector(cfg_file=data / "weights" / f"{name}.cfg", **options)
    load_weights(model, data / "weights" / f"{name}.weights", strict_classes=True)
    return model


@pytest.mark.parametrize("name", REFERENCES)
def test_reference_detections(data, coco_val74, name: str) -> None:
    """Every reference detection above 0.05 at IoU > 0.99 with its score to 1e-3."""
    (file,) = (data / "reference_detections").glob(f"{name}_*.json")
    truth = json.loads((coco_val74 / "instances_val2017_subset.json").read_text())
    categories = sorted(c["id"] for c in truth["categories"])
    reference: dict[int, list[dict]] = {}
    for entry in json.loads(file.read_text()):
        if entry["score"] > 0.05:
            reference.setdefault(entry["image_id"], []).append(entry)
    predictor = Predictor(
        load(data, name),
        [DarknetResize(data / "weights" / f"{name}.cfg")],
        image_format="RGB",
    )
    checked = 0
    for image in truth["images"]:
        found = predictor(read_image(str(coco_val74 / "images" / image["file_name"]), "BGR"))
        for entry in reference.get(image["id"], []):
            x, y, w, h = entry["bbox"]
            same = found.pred_classes == categories.index(entry["category_id"])
            wanted = torch.tensor([[x, y, x + w, y + h]])
            iou = torchvision.ops.box_iou(wanted, found.pred_boxes.tensor)[0]
            close = (found.scores - entry["score"]).abs() < 1e-3
            assert (same & close & (iou > 0.99)).any(), (image["file_name"], entry)
            checked += 1
    assert checked > 1500


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def loop_boxes(layer, raw: np.ndarray, size: tuple[int, int], threshold: float) -> list[tuple]:
    """get_yolo_box, get_gaussian_yolo_box, get_region_box of darknet, cell by cell."""
    section = layer.section
    flat = section.numbers("anchors")
    classes = section.integer("classes", 20, low=1, high=9999)
    mask = section.integers("mask") or list(range(section.integer("num", 1, low=1, high=99)))
    scale = section.number("scale_x_y", 1.0)
    height, width = raw.shape[1:]
    values = raw.reshape(len(mask), -1, height, width)
    found = []
    for a, n in enumerate(mask):
        for j in range(height):
            for i in range(width):
                v = values[a, :, j, i].astype(np.float64)
                if layer.kind == "Gaussian_yolo":
                    x, sx, y, sy = (sigmoid(t) * scale - 0.5 * (scale - 1) for t in v[:4])
                    tw, th, obj = v[4], v[6], sigmoid(v[8])
                    spread = (sx + sy + sigmoid(v[5]) + sigmoid(v[7])) / 4
                    obj *= 1 - spread
                    kinds = [sigmoid(t) for t in v[9:]]
                else:
                    x, y = (sigmoid(t) * scale - 0.5 * (scale - 1) for t in v[:2])
                    tw, th, obj = v[2], v[3], sigmoid(v[4])
                    kinds = [sigmoid(t) for t in v[5:]]
                w, h = math.exp(tw) * flat[2 * n], math.exp(th) * flat[2 * n + 1]
                if layer.kind == "region":
                    w, h = w / width * size[1], h / height * size[0]
                    e = np.exp(v[5:] - v[5:].max())
                    kinds = e / e.sum()
                cx, cy = (i + x) / width * size[1], (j + y) / height * size[0]
                for c in range(classes):
                    if obj * kinds[c] > threshold:
                        box = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
                        found.append((*box, obj * kinds[c], c))
    return sorted(found)


@pytest.mark.parametrize(
    "name", ["yolov4", "yolov3-tiny", "yolov2", "Gaussian_yolov3_BDD", "yolov4-tiny"]
)
def test_decoders_equal_darknets_loops(data, name: str) -> None:
    plan = plan_network(data / "cfg" / f"{name}.cfg", height=96, width=160)
    for layer in plan.heads[-1:]:
        threshold = THRESHOLDS[layer.kind]
        raw = torch.randn(layer.output, generator=torch.Generator().manual_seed(1)) * 1.5
        boxes, scores, kinds = make_decoder(layer)(raw, (96, 160), threshold)
        got = torch.cat([boxes, scores[:, None], kinds[:, None]], 1).double()
        got = torch.tensor(sorted(map(tuple, got.tolist())))
        expected = torch.tensor(loop_boxes(layer, raw.numpy(), (96, 160), threshold))
        assert len(expected) > 10
        torch.testing.assert_close(got, expected.to(got.dtype), atol=1e-3, rtol=1e-4)


@pytest.mark.skipif(not hasattr(cv2.dnn, "readNetFromDarknet"), reason="OpenCV 5 has no importer")
@pytest.mark.parametrize("name", ["cfg/yolov4-csp.cfg", "cfg/yolov3-tiny.cfg"])
@torch.no_grad()
def test_decoded_boxes_equal_opencvs(data, tmp_path, randomise, name: str) -> None:
    """OpenCV's region layer gives (x, y, w, h, objectness, scores), 0 to 1; new_coords too."""
    side = 160
    cfg, weights = tmp_path / "x.cfg", tmp_path / "x.weights"
    lines = (data / name).read_text().splitlines()
    keys = [line.replace(" ", "").split("=")[0] for line in lines]
    cfg.write_text(
        "\n".join(
            f"{k}={side}" if k in ("width", "height") else line
            for k, line in zip(keys, lines, strict=True)
        )
    )
    model = DarknetDetector(cfg_file=cfg, bn_eps=1e-6).eval()
    network = model.backbone.network
    randomise(network)
    save_darknet_weights(network, weights)
    peer = cv2.dnn.readNetFromDarknet(str(cfg), str(weights))
    image = np.random.default_rng(0).random((1, 3, side, side), dtype=np.float32)
    peer.setInput(image)
    raws = network(torch.from_numpy(image))
    for head, raw, decoder in zip(network.plan.heads, raws, model.decoders, strict=True):
        theirs = torch.from_numpy(peer.forward(f"yolo_{head.index}")).double()
        boxes, scores, _ = decoder(raw[0], (side, side), 0.0)
        # Theirs: cells, then anchors. Ours: anchors, then cells, then classes.
        anchors, classes = len(decoder.anchors), theirs.shape[1] - 5
        cells = raw.shape[2] * raw.shape[3]
        theirs = theirs.view(cells, anchors, -1).transpose(0, 1)
        wh = theirs[..., 2:4]
        corners = torch.cat([theirs[..., :2] - wh / 2, theirs[..., :2] + wh / 2], -1) * side
        ours = boxes.view(anchors, cells, classes, 4)[:, :, 0].double()
        torch.testing.assert_close(ours, corners, rtol=1e-5, atol=1e-3)
        kept = theirs[..., 5:] > 0  # OpenCV zeroes scores below a threshold of its own
        assert kept.double().mean() > 0.3
        scores = scores.view(anchors, cells, classes).double()
        torch.testing.assert_close(scores[kept], theirs[..., 5:][kept], rtol=1e-5, atol=1e-6)


def test_yolov1_decoder_equals_darknets_loop() -> None:
    side, classes, per_cell = 3, 4, 2
    cells = side * side
    values = torch.rand(cells * (classes + 5 * per_cell))
    text = (
        f"[net]\nwidth=6\nheight=6\nchannels=1\n[connected]\noutput={len(values)}\n"
        f"activation=linear\n[detection]\nclasses={classes}\ncoords=4\nside={side}\n"
        f"num={per_cell}\nsqrt=1\n"
    )
    decoder = make_decoder(plan_network(text).heads[0])
    boxes, scores, kinds = decoder(values, (60, 120), 0.3)
    got = sorted(zip(boxes.tolist(), scores.tolist(), kinds.tolist(), strict=True))
    expected = []
    for i in range(cells):
        for n in range(per_cell):
            confidence = values[cells * classes + i * per_cell + n].item()
            at = cells * (classes + per_cell) + (i * per_cell + n) * 4
            x, y, w, h = values[at : at + 4].tolist()
            cx, cy = (x + i % side) / side * 120, (y + i // side) / side * 60
            w, h = w * w * 120, h * h * 60
            for c in range(classes):
                score = confidence * values[i * classes + c].item()
                if score > 0.3:
                    expected.append(([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], score, c))
    expected.sort()
    assert len(got) == len(expected) > 5
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4, atol=1e-4)
        assert ours[1] == pytest.approx(theirs[1], abs=1e-6)
        assert ours[2] == theirs[2]


@torch.no_grad()
def test_letter_box(data, tmp_path) -> None:
    """The same picture on a canvas made by hand gives the same boxes, moved by the margin."""
    name = REFERENCES[0]
    text = (data / "weights" / f"{name}.cfg").read_text()
    plain, boxed = tmp_path / "plain.cfg", tmp_path / "boxed.cfg"
    plain.write_text(text)
    boxed.write_text(text.replace("[net]", "[net]\nletter_box=1", 1))
    image = read_image(str(data / "images" / "dog.jpg"), "RGB")
    resized = DarknetResize(boxed).get_transform(image).apply_image(image)
    height, width = resized.shape[:2]
    assert (height, width) == (240, 320)  # 576 x 768 in 320 x 320
    models = []
    for cfg in (plain, boxed):
        model = DarknetDetector(cfg_file=cfg).eval()
        load_weights(model, data / "weights" / f"{name}.weights", strict_classes=True)
        models.append(model)
    canvas = np.full((320, 320, 3), 127.5, dtype=np.float32)
    canvas[40:280] = resized
    as_tensor = lambda x: torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)))  # noqa: E731
    expected = models[0]([{"image": as_tensor(canvas)}])[0]["instances"]
    got = models[1]([{"image": as_tensor(resized), "height": 480, "width": 640}])[0]["instances"]
    best = expected.scores > 0.3
    assert best.sum() >= 3
    moved = (expected.pred_boxes.tensor[best] - torch.tensor([0.0, 40, 0, 40])) * 2
    moved[:, 1::2] = moved[:, 1::2].clamp(0, 480)
    torch.testing.assert_close(got.scores[got.scores > 0.3], expected.scores[best])
    torch.testing.assert_close(got.pred_boxes.tensor[got.scores > 0.3], moved, atol=1e-2, rtol=1e-4)


def test_number_of_classes_must_be_the_files(data) -> None:
    with pytest.raises(InputError, match=r"line \d+, \[yolo\].*for 80 classes, the data has 3"):
        DarknetDetector(cfg_file=data / "cfg" / "yolov4-tiny.cfg", num_classes=3)
    with pytest.raises(InputError, match=r"model\.cfg_file must be the path"):
        DarknetDetector(cfg_file=None)
    with pytest.raises(InputError, match="predicts no boxes"):
        DarknetDetector(cfg_file=data / "cfg" / "darknet19.cfg")


SMALL = """[net]
width=96
height=64
[convolutional]
batch_normalize=1
filters=16
size=3
stride=16
pad=1
activation=leaky
[convolutional]
filters={filters}
activation=linear
[{kind}]
classes=3
num=2
anchors=20,20,60,50
iou_loss=giou
{option}
"""


def small(folder, kind: str, filters: int, option: str = "") -> DarknetDetector:
    cfg = folder / "small.cfg"
    cfg.write_text(SMALL.format(kind=kind, filters=filters, option=option))
    return DarknetDetector(cfg_file=cfg)


def sample() -> list[dict]:
    batch = []
    for some in ([[8.0, 8, 40, 44], [30, 20, 90, 60]], []):
        truth = Instances((64, 96), gt_boxes=Boxes(torch.tensor(some).reshape(-1, 4)))
        truth.gt_classes = torch.arange(len(some))
        batch.append({"image": torch.randint(0, 256, (3, 64, 96)), "instances": truth})
    return batch


def test_gaussian_yolo_of_a_cfg_trains(tmp_path) -> None:
    model = small(tmp_path, "Gaussian_yolo", 2 * 12)
    losses = model(sample())
    assert sorted(losses) == ["loss_box", "loss_cls", "loss_obj", "loss_uncertainty"]
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_other_points_of_boxes_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"line 19.*a yolo_point but center is not supported"):
        small(tmp_path, "Gaussian_yolo", 2 * 12, "yolo_point=left_top")


@pytest.mark.parametrize(
    "option", ["focal_loss=1", "truth_thresh=.7", "counters_per_class=1,2,3", "map=x.map"]
)
def test_what_cannot_be_trained_can_be_evaluated(tmp_path, option: str) -> None:
    model = small(tmp_path, "yolo", 2 * 8, option)
    message = rf"line 19, \[yolo\].*{option.split('=')[0]}.*not supported in training"
    with pytest.raises(InputError, match=message):
        model(sample())
    assert len(model.eval()(sample())) == 2


def test_pictures_have_three_channels(tmp_path) -> None:
    cfg = tmp_path / "grey.cfg"
    text = SMALL.format(kind="yolo", filters=16, option="")
    cfg.write_text(text.replace("[net]", "[net]\nchannels=1"))
    with pytest.raises(InputError, match=r"line 2, \[net\]: pictures have 3 channels, got 1"):
        DarknetDetector(cfg_file=cfg)


def test_all_levels_predict_the_same_classes(tmp_path) -> None:
    second = "[route]\nlayers=0\n[convolutional]\nfilters=18\nactivation=linear\n[yolo]\n"
    second += "classes=4\nnum=2\nanchors=20,20,60,50"
    with pytest.raises(InputError, match=r"line 25.*the layers before it predict 3 classes"):
        small(tmp_path, "yolo", 2 * 8, second)


def darknet_nms(boxes: np.ndarray, scores: np.ndarray, thresh: float, beta: float) -> list[int]:
    """diounms_sort of one class: box_diou (or box_diounms) of centers and sizes."""
    order = sorted(range(len(boxes)), key=lambda i: -scores[i])
    dropped = set()
    for position, i in enumerate(order):
        for j in order[position + 1 :]:
            if i in dropped:
                break
            a, b = boxes[i], boxes[j]
            left, right = min(a[0], b[0]), max(a[2], b[2])
            top, bottom = min(a[1], b[1]), max(a[3], b[3])
            w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
            h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
            areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
            iou = w * h / (sum(areas) - w * h)
            d = ((a[0] + a[2] - b[0] - b[2]) / 2) ** 2 + ((a[1] + a[3] - b[1] - b[3]) / 2) ** 2
            if iou - (d / ((right - left) ** 2 + (bottom - top) ** 2)) ** beta > thresh:
                dropped.add(j)
    return [i for i in order if i not in dropped]


@pytest.mark.parametrize(
    ("kind", "options", "beta"),
    [
        ("default", "nms_kind=greedynms", None),
        ("cfg", "", None),
        ("cfg", "nms_kind=cornersnms", None),
        ("cfg", "nms_kind=greedynms\nbeta_nms=1", 0.6),
        ("cfg", "nms_kind=diounms\nbeta_nms=1", 1.0),
        ("greedynms", "", 0.6),
        ("diounms", "nms_kind=greedynms\nbeta_nms=.3", 0.3),
    ],
)
def test_kinds_of_nms(kind: str, options: str, beta: float | None) -> None:
    plan = plan_network(SMALL.format(kind="yolo", filters=16, option=options))
    nms = make_nms(plan.heads[0], kind, nms_thresh=0.3, max_detections=-1, clip=False)
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(150, 2, generator=g) * 40
    boxes = torch.cat([corner, corner + 10 + torch.rand(150, 2, generator=g) * 40], 1)
    scores = torch.rand(150, generator=g)
    found = nms(boxes, scores, torch.zeros(150, dtype=torch.int64), (100, 100))
    if beta is None:
        kept = torchvision.ops.nms(boxes, scores, 0.3)
    else:
        kept = darknet_nms(boxes.double().numpy(), scores.numpy(), 0.3, beta)
    assert 5 < len(kept) < 140
    assert torch.equal(found.pred_boxes.tensor, boxes[kept])


def test_unknown_kinds_of_nms() -> None:
    plan = plan_network(SMALL.format(kind="yolo", filters=16, option="nms_kind=softnms"))
    with pytest.raises(InputError, match=r"line 19.*nms_kind must be one of default, greedynms"):
        make_nms(plan.heads[0], "cfg")
    with pytest.raises(ValueError, match="nms_kind must be one of cfg, default"):
        make_nms(plan.heads[0], "soft")
