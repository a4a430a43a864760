"""YOLOv1 against the network of its cfg file and against the paper's equation 3."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from d2proj.checkpoint.darknet import load_darknet_weights, save_darknet_weights
from d2proj.darknet.detector import DarknetDetector
from d2proj.engine.config import build, load_config
from d2proj.modeling.backbones.yolov1 import FAST_YOLO_STAGES, YOLOV1_STAGES
from d2proj.modeling.dense_heads import YOLOv1ConvHead
from d2proj.modeling.dense_heads.yolo import DetectionDecoder

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "yolov1"
CFG = ROOT.parent / "shared" / "data" / "darknet" / "cfg" / "yolov1.cfg"
if not CFG.exists():
    CFG = ROOT.parents[1] / "shared" / "data" / "darknet" / "cfg" / "yolov1.cfg"
THINNER = 16


def thin(stages):
    return [[[max(c // THINNER, 1), k, s] for c, k, s in stage] for stage in stages]


def cfg_of(stages, *, size: int, connected: list[str], detection: str) -> str:
    """A cfg file of plain convolutions, as those of 2015."""
    parts = [f"[net]\nwidth={size}\nheight={size}\n"]
    for i, stage in enumerate(stages):
        parts += ["[maxpool]\nsize=2\nstride=2\n"] * (i > 0)
        parts += [
            f"[convolutional]\nfilters={c}\nsize={k}\nstride={s}\npad=1\nactivation=leaky\n"
            for c, k, s in stage
        ]
    return "".join([*parts, *connected, detection])


def config(name: str, stages, in_channels: int, **head):
    cfg = load_config(CONFIGS / f"{name}.py")
    cfg.model.backbone.stages = stages
    cfg.model.head.in_channels = in_channels
    cfg.model.head.update(head)
    return cfg


@torch.no_grad()
def scramble(model: torch.nn.Module) -> None:
    g = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if "var" in name or name.endswith("norm.weight"):
            tensor.uniform_(0.5, 1.5, generator=g)
        elif tensor.ndim > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=g)
        elif tensor.is_floating_point():
            tensor.normal_(0, 0.1, generator=g)


def check_equal(text: str, cfg, tmp_path: Path) -> None:
    """Through a weights file, both ways: the same raw values, detections and bytes."""
    (tmp_path / "x.cfg").write_text(text)
    built = DarknetDetector(cfg_file=tmp_path / "x.cfg", nms_thresh=0.5).eval()
    scramble(built.backbone.network)
    save_darknet_weights(built.backbone.network, tmp_path / "x.weights")
    written = build(cfg, "model").eval()
    load_darknet_weights(written, tmp_path / "x.weights")
    save_darknet_weights(written, tmp_path / "again.weights")
    assert (tmp_path / "again.weights").read_bytes() == (tmp_path / "x.weights").read_bytes()

    size = built.plan.input[1]
    g = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=g)
    with torch.no_grad():
        x = built.preprocess_image([{"image": image}]).tensor
        (raw,) = built.backbone(x).values()
        (own,) = written.head([written.backbone(x)["grid"]])[0]
        assert raw.abs().max() > 0.1
        torch.testing.assert_close(own.flatten(), raw.flatten(), rtol=1e-6, atol=1e-6)
        a, b = (model([{"image": image}])[0]["instances"] for model in (built, written))
    assert len(a) == len(b) > 0
    torch.testing.assert_close(b.scores, a.scores)


@pytest.mark.skipif(not CFG.exists(), reason=f"{CFG} is not on this machine")
def test_released_network_equals_its_cfg_file(tmp_path):
    """yolov1.cfg with a sixteenth of the channels, otherwise as it is."""
    text = re.sub(r"filters=(\d+)", lambda m: f"filters={int(m[1]) // THINNER}", CFG.read_text())
    cfg = config(
        "yolov1_darknet", thin(YOLOV1_STAGES), 1024 // THINNER, local_channels=256 // THINNER
    )
    check_equal(text, cfg, tmp_path)


@pytest.mark.parametrize(
    ("name", "stages", "hidden"),
    [("yolov1", YOLOV1_STAGES, [4096]), ("yolov1_tiny", FAST_YOLO_STAGES, [256, 4096])],
)
def test_papers_networks_equal_their_cfg_files(name, stages, hidden, tmp_path):
    hidden = [n // THINNER for n in hidden]
    text = cfg_of(
        thin(stages),
        size=448,
        connected=[f"[connected]\noutput={n}\nactivation=leaky\n" for n in hidden]
        + ["[dropout]\nprobability=.5\n", "[connected]\noutput=1470\nactivation=linear\n"],
        detection="[detection]\nclasses=20\ncoords=4\nrescore=1\nside=7\nnum=2\nsqrt=1\n",
    )
    check_equal(text, config(name, thin(stages), 1024 // THINNER, fc_dims=hidden), tmp_path)


def test_sizes_are_the_published_ones():
    """24 and 9 convolutions, and the 197 328 243 values of the released yolov1.weights."""
    assert sum(map(len, YOLOV1_STAGES)) == 24
    assert sum(map(len, FAST_YOLO_STAGES)) == 9
    with torch.device("meta"):
        model = build(load_config(CONFIGS / "yolov1_darknet.py"), "model")
    trained = sum(p.numel() for layer in model.darknet_layers() for p in layer.parameters())
    statistics = sum(b.numel() for n, b in model.named_buffers() if "running" in n)
    assert trained + statistics == 197_328_243


def equation_3(out: np.ndarray, truths: list[tuple], side: int, per_cell: int, classes: int):
    """The paper's loss of one image, term by term; the truths lie in different cells.

    ``out`` is (side, side, classes + 5 per_cell): classes, then x, y, √w, √h, confidence a box.
    """
    noobj = np.ones((side, side, per_cell), dtype=bool)
    total = 0.0
    for x, y, w, h, kind in truths:
        i, j = int(y * side), int(x * side)
        p, boxes = out[i, j, :classes], out[i, j, classes:].reshape(per_cell, 5)
        overlaps = []
        for bx, by, bw, bh, _ in boxes:
            cx, cy, bw, bh = (j + bx) / side, (i + by) / side, bw**2, bh**2
            iw = min(cx + bw / 2, x + w / 2) - max(cx - bw / 2, x - w / 2)
            ih = min(cy + bh / 2, y + h / 2) - max(cy - bh / 2, y - h / 2)
            inter = max(iw, 0) * max(ih, 0)
            overlaps.append(inter / (bw * bh + w * h - inter))
        best = int(np.argmax(overlaps))
        assert overlaps[best] > 0
        bx, by, bw, bh, confidence = boxes[best]
        total += 5 * ((bx - (x * side - j)) ** 2 + (by - (y * side - i)) ** 2)
        total += 5 * ((bw - np.sqrt(w)) ** 2 + (bh - np.sqrt(h)) ** 2)
        total += (confidence - overlaps[best]) ** 2
        total += ((p - np.eye(classes)[kind]) ** 2).sum()
        noobj[i, j, best] = False
    confidences = out[..., classes:].reshape(side, side, per_cell, 5)[..., 4]
    return total + 0.5 * (confidences[noobj] ** 2).sum()


@pytest.mark.parametrize("seed", range(5))
def test_loss_is_the_papers_equation_3(seed):
    """Twice ours, which is half of the sums, as darknet's gradients are."""
    side, per_cell, classes, size = 5, 3, 4, 160
    rng = np.random.default_rng(seed)
    out = rng.uniform(0.05, 1, (side, side, classes + 5 * per_cell))
    cells = rng.choice(side * side, 4, replace=False)
    truths = [
        (
            (c % side + rng.uniform(0.1, 0.9)) / side,
            (c // side + rng.uniform(0.1, 0.9)) / side,
            *rng.uniform(0.2, 0.9, 2),
            int(rng.integers(classes)),
        )
        for c in cells
    ]
    xywh = torch.tensor([t[:4] for t in truths], dtype=torch.float64) * size
    instances = Instances((size, size), gt_boxes=Boxes(torch.zeros(4, 4)))
    instances.gt_boxes.tensor = torch.cat(
        [xywh[:, :2] - xywh[:, 2:] / 2, xywh[:, :2] + xywh[:, 2:] / 2], 1
    )
    instances.gt_classes = torch.tensor([t[4] for t in truths])
    boxes = out[..., classes:].reshape(side * side, per_cell, 5)
    order = [out[..., :classes].ravel(), boxes[..., 4].ravel(), boxes[..., :4].ravel()]
    raw = torch.from_numpy(np.concatenate(order))[None]

    cfg = load_config(CONFIGS / "yolov1.py").model
    cfg.num_classes, cfg.head.side, cfg.head.boxes_per_cell = classes, side, per_cell
    loss, decoder = build(cfg, "level_losses.0"), build(cfg, "decoders.0")
    ours = sum(loss(raw, decoder, [instances], (size, size)).values())
    expected = equation_3(out, truths, side, per_cell, classes)
    assert 2 * ours.item() == pytest.approx(expected, rel=1e-9)


def test_convolutional_head_gives_the_order_of_the_decoder():
    torch.manual_seed(0)
    side, per_cell, classes = 3, 2, 4
    head = YOLOv1ConvHead(
        in_channels=5, side=side, boxes_per_cell=per_cell, num_classes=classes, conv_dims=6
    ).eval()
    x = torch.randn(2, 5, side, side)
    ((raw,),) = head([x])
    decoder = DetectionDecoder(num_classes=classes, side=side, boxes_per_cell=per_cell)
    kinds, confidences, boxes = decoder.split(raw)
    plain = head.layers(x)
    for i in range(side):
        for j in range(side):
            of_cell = plain[:, :, i, j]
            assert torch.equal(kinds[:, i * side + j], of_cell[:, :4])
            assert torch.equal(confidences[:, i * side + j], of_cell[:, 4:6])
            assert torch.equal(boxes[:, i * side + j].flatten(1), of_cell[:, 6:])


def test_other_sizes_are_averaged_to_the_grid():
    cfg = config("yolov1", thin(YOLOV1_STAGES), 64, fc_dims=[16])
    model = build(cfg, "model").eval()
    with torch.no_grad():
        found = model([{"image": torch.rand(3, 70, 300) * 255}])
    assert found[0]["instances"].image_size == (70, 300)


def test_small_one_learns_from_scratch():
    """A few images of one to three boxes each by heart, starting from random weights."""
    cfg = load_config(CONFIGS / "yolov1_tiny_scratch.py")
    cfg.model.num_classes = 2
    cfg.model.backbone.stages = [*thin(cfg.model.backbone.stages[:-1]), [[8, 3, 1]]]
    for stage in cfg.model.backbone.stages[:-1]:
        for spec in stage:
            spec[0] = max(8, spec[0])
    cfg.model.head.in_channels = 8
    cfg.model.head.conv_dims = 32
    torch.manual_seed(0)
    model = build(cfg, "model").train()
    batch = []
    for i in range(6):
        boxes = torch.tensor([[10.0, 20, 80, 120], [120, 90, 200, 200], [30, 150, 90, 210]])
        boxes = (boxes + 3 * i)[: 1 + i % 3]
        kinds = torch.arange(len(boxes)) % 2
        image = torch.zeros(3, 224, 224)
        for (x1, y1, x2, y2), kind in zip(boxes.int().tolist(), kinds.tolist(), strict=True):
            image[kind, y1:y2, x1:x2] = 255
        instances = Instances((224, 224), gt_boxes=Boxes(boxes), gt_classes=kinds)
        batch.append({"image": image, "instances": instances})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        total = sum(model(batch).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < 0.3 * losses[0], losses[::10]
    assert max(losses) < 3 * losses[0]
