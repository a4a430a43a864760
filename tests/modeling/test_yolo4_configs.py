"""YOLOv4 as configs: overrides, training, images of any kind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf

from d2proj.engine.config import build, load_config
from d2proj.modeling.backbones import CSPResNeXt50, Darknet, csp_darknet53_stages
from d2proj.modeling.necks import CSPPAN, YOLOPAN, YOLOv4Top
from d2proj.ops import box_iou

ROOT = Path(__file__).resolve().parents[2] / "configs" / "yolov4"
NARROW_PAN = [
    "model.backbone.bottom_up.stages.width=4",
    "model.backbone.bottom_up.stages.blocks=[1,1,1,1,1]",
    "model.backbone.top_block.in_channels=128",
    "model.backbone.channels=[16,32,64]",
    "model.head.conv_dims=[32,64,64]",
]
#: Networks of few channels, so that a test has the time for a training.
NARROW = {
    "yolov4_tiny_scratch": [
        "model.backbone.bottom_up.width=4",
        "model.backbone.dims=[[],[64]]",
        "model.head.in_channels=[64,64]",
        "model.head.conv_dims=[32,64]",
    ],
    "yolov4": NARROW_PAN,
    "yolov4_csp": NARROW_PAN,
    "yolov4_paper": NARROW_PAN,
}


def model_of(name: str, *overrides: str) -> Any:
    return build(load_config(ROOT / f"{name}.py", overrides), "model")


def sample(height: int, width: int, boxes: list[list[float]], seed: int = 0) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    truth = Instances((height, width))
    truth.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    truth.gt_classes = torch.arange(len(boxes)) % 3
    image = torch.randint(0, 100, (3, height, width), dtype=torch.uint8, generator=g)
    for k, box in enumerate(boxes):  # bright in the colour of the class
        x0, y0, x1, y1 = map(int, box)
        image[k % 3, y0:y1, x0:x1] += 155
    return {"image": image, "instances": truth}


@pytest.mark.parametrize("name", ["yolov4_tiny_scratch", "yolov4_csp"])
def test_training_finds_the_boxes(name: str) -> None:
    """Some steps on two images, one of them empty: the loss falls, the boxes are found."""
    torch.manual_seed(0)
    model = model_of(name, "model.num_classes=3", *NARROW[name]).train()
    truth = [[6.0, 8.0, 40.0, 50.0], [50.0, 10.0, 90.0, 60.0]]
    batch = [sample(64, 96, truth), sample(64, 96, [], seed=1)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for _ in range(50):
        losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 35.0)
        optimizer.step()
        history.append({key: float(loss.detach()) for key, loss in losses.items()})
    assert history[-1]["loss_obj"] < 0.2 * history[0]["loss_obj"], history
    assert history[-1]["loss_box"] < 0.4 * history[0]["loss_box"], history
    # Statistics of so few images lag behind.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        for _ in range(2):
            model(batch)
    model.eval().postprocess.score_thresh = 0.2
    with torch.no_grad():
        full = model(batch)[0]["instances"]
    iou = box_iou(torch.tensor(truth), full.pred_boxes.tensor)
    assert (iou.amax(1) > 0.6).all(), iou
    assert full.pred_classes[iou.argmax(1)].tolist() == [0, 1]


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("autocast", [False, True])
def test_any_images(name: str, autocast: bool) -> None:
    """Odd sizes, no boxes at all, boxes of a pixel, bfloat16: finite losses and gradients."""
    torch.manual_seed(0)
    model = model_of(name, "model.num_classes=3", *NARROW[name]).train()
    batches = [
        [sample(45, 77, [[0, 0, 77, 45], [3, 3, 4, 4]]), sample(33, 20, [[0, 0, 20, 33]])],
        [sample(32, 32, []), sample(64, 64, [])],
    ]
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = model(batch)
        assert all(bool(loss.isfinite()) for loss in losses.values())
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        model.zero_grad()
        sum(losses.values()).backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = model([{**x, "height": 90, "width": 154} for x in batches[0]])
    assert all(x["instances"].image_size == (90, 154) for x in found)


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.py")), ids=lambda path: path.stem)
def test_classes_and_anchors_are_one_override(path: Path) -> None:
    count = len(load_config(path).model.anchors)
    line = [[k, k + 1] for k in range(1, count + 1)]
    cfg = load_config(path, ["model.num_classes=7", f"model.anchors={line}"])
    plain = OmegaConf.to_container(cfg.model, resolve=True)
    parts = [*plain["decoders"], *plain["level_losses"]]
    assert len(parts) == 2 * len(plain["head_in_features"])
    assert all(part["num_classes"] == 7 and part["anchors"] == line for part in parts)
    for decoder, loss in zip(plain["decoders"], plain["level_losses"], strict=True):
        assert decoder["mask"] == loss["mask"]


def test_neck_shapes_are_told() -> None:
    names = ["c3", "c4", "c5"]
    stages = csp_darknet53_stages(width=2, blocks=[1, 1, 1, 1, 1])
    trunk = Darknet(stages=stages, out_features=names)
    grouped = CSPResNeXt50(width=8, groups=4)
    for kind, bottom_up, channels in ((YOLOPAN, trunk, 64), (CSPPAN, grouped, 256)):
        top = YOLOv4Top(in_channels=channels, channels=24)
        neck = kind(
            bottom_up=bottom_up, in_features=names, channels=[6, 10, 14], top_block=top
        ).eval()
        maps, shapes = neck(torch.rand(1, 3, 64, 96)), neck.output_shape()
        assert list(maps) == list(shapes) == ["p3", "p4", "p5"]
        for name, value in maps.items():
            stride = shapes[name].stride
            assert value.shape == (1, shapes[name].channels, 64 // stride, 96 // stride)
    with pytest.raises(ValueError, match="channels and refine must be of 3 levels"):
        YOLOPAN(bottom_up=trunk, in_features=names, channels=[6, 10], top_block=top)
    with pytest.raises(ValueError, match=r"strides double, got \[8, 32\]"):
        YOLOPAN(bottom_up=trunk, in_features=["c3", "c5"], channels=[6, 10], top_block=top)
