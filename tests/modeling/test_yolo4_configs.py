"""YOLOv4 as configs: overrides, training, images of any kind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from d2proj.engine.config import build, load_config
from d2proj.modeling.backbones import CSPResNeXt50, Darknet, csp_darknet53_stages
from d2proj.modeling.necks import CSPPAN, YOLOPAN, YOLOv4Top
from tests.modeling.yolo_trials import learn_by_heart, take_any_images

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
        # The published 0.07 suits thousands of steps.
        "model.level_losses[0].iou_normalizer=1.0",
        "model.level_losses[1].iou_normalizer=1.0",
    ],
    "yolov4": NARROW_PAN,
    "yolov4_csp": NARROW_PAN,
    "yolov4_paper": NARROW_PAN,
}


def model_of(name: str, *overrides: str) -> Any:
    return build(load_config(ROOT / f"{name}.py", overrides), "model")


@pytest.mark.parametrize("name", ["yolov4_tiny_scratch", "yolov4_csp"])
def test_training_finds_the_boxes(name: str) -> None:
    torch.manual_seed(0)
    model = model_of(name, "model.num_classes=3", *NARROW[name])
    history, _ = learn_by_heart(model, steps=50, score_thresh=0.2)
    assert history[-1]["loss_obj"] < 0.2 * history[0]["loss_obj"], history
    assert history[-1]["loss_box"] < 0.4 * history[0]["loss_box"], history


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("autocast", [False, True])
def test_any_images(name: str, autocast: bool) -> None:
    torch.manual_seed(0)
    take_any_images(model_of(name, "model.num_classes=3", *NARROW[name]), autocast=autocast)


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
