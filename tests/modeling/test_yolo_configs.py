"""YOLOv2 and YOLOv3 as configs: overrides, training, images of any kind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from d2proj.data.augmentations import RandomJitter
from d2proj.engine.config import build, load_config
from d2proj.engine.schedule import Schedule
from d2proj.errors import InputError
from d2proj.modeling.backbones import Darknet, darknet_tiny_stages
from d2proj.modeling.necks import FPN, YOLOFPN, Passthrough
from tests.modeling.yolo_trials import learn_by_heart, take_any_images

ROOT = Path(__file__).resolve().parents[2]
SCRATCH = ["yolov2/yolov2_tiny_scratch", "yolov3/yolov3_tiny_scratch"]
#: The same with a quarter of the channels in the trunk.
NARROW = {
    SCRATCH[0]: [
        "model.backbone.bottom_up.stages.width=4",
        "model.backbone.channels=64",
        "model.backbone.passthrough_channels=16",
        "model.head.in_channels=[128]",
        "model.head.conv_dims=[64]",
        "model.level_losses[0].coord_scale=1",  # as published: 40 steps are few for boxes and all
    ],
    SCRATCH[1]: [
        "model.backbone.bottom_up.stages.width=4",
        "model.head.in_channels=[192,256]",
        "model.head.conv_dims=[32,64]",
    ],
}


def model_of(name: str, *overrides: str) -> Any:
    return build(load_config(ROOT / "configs" / f"{name}.py", overrides), "model")


def test_anchors_are_one_override() -> None:
    """The line that the k-means command prints: every decoder and loss has its part of them."""
    line = "model.anchors=[[1,2],[3,4],[5,6],[7,8],[9,10],[11,12]]"
    model = model_of("yolov3/yolov3_tiny", line)
    wanted = torch.arange(1.0, 13).view(6, 2)
    assert model.anchors == wanted.tolist()
    for loss, decoder, own in zip(
        model.level_losses, model.decoders, (wanted[:3], wanted[3:]), strict=True
    ):
        assert torch.equal(loss.anchors, wanted)
        assert torch.equal(loss.anchors[loss.mask], own)
        assert torch.equal(decoder.anchors, own)
    model = model_of("yolov2/yolov2", "model.anchors=[[1,2],[3,4],[5,6],[7,8],[9,10]]")
    assert torch.equal(model.decoders[0].anchors, torch.arange(1.0, 11).view(5, 2))


@pytest.mark.parametrize(
    ("name", "anchors", "message"),
    [
        ("yolov3/yolov3_tiny", "[[1,2],[3,4]]", r"mask \[0, 1, 2\] counts beyond the 2 anchors"),
        ("yolov3/yolov3_tiny", str([[9, 9]] * 7), "7 anchors, but the masks .* the first 6 alone"),
        ("yolov3/yolov3_tiny", "[1,2,3,4]", r"must be \[\[width, height\], ...\], .* got 1"),
        ("yolov3/yolov3_tiny", str([[-1, 2]] * 6), r"all positive, got \[-1, 2\]"),
        ("yolov2/yolov2_tiny", "[[1,2],[3,4]]", "gives 425 values a cell, .* reads 170"),
        ("yolo9000/yolo9000_tiny", "[[1,2]]", "num_anchors must be as many"),
    ],
)
def test_anchors_that_do_not_fit(name: str, anchors: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model_of(name, f"model.anchors={anchors}", "model.num_classes=80")


@pytest.mark.parametrize("name", SCRATCH)
def test_classes_are_one_override(name: str) -> None:
    model = model_of(name, "model.num_classes=3")
    assert {part.num_classes for part in (model, *model.decoders, *model.level_losses)} == {3}
    anchors = [len(decoder.anchors) for decoder in model.decoders]
    channels = [level[-1].out_channels for level in model.head.levels]
    assert channels == [count * 8 for count in anchors]


@pytest.mark.parametrize("name", SCRATCH)
def test_training_finds_the_boxes(name: str) -> None:
    torch.manual_seed(0)
    model = model_of(name, "model.num_classes=3", *NARROW[name])
    history, in_the_empty = learn_by_heart(model, steps=40, score_thresh=0.3)
    assert in_the_empty == 0
    # The cross entropy of YOLOv3's box centres has a minimum above 0.
    of_scores = [losses["loss_obj"] + losses["loss_cls"] for losses in history]
    assert of_scores[-1] < 0.2 * of_scores[0], of_scores


@pytest.mark.parametrize("name", SCRATCH)
@pytest.mark.parametrize("autocast", [False, True])
def test_any_images(name: str, autocast: bool) -> None:
    torch.manual_seed(0)
    take_any_images(model_of(name, "model.num_classes=3", *NARROW[name]), autocast=autocast)


def test_topk_candidates_are_of_each_map() -> None:
    """An untrained network's flood of boxes can be cut before the NMS."""
    model = model_of(SCRATCH[1], "model.num_classes=3", *NARROW[SCRATCH[1]]).eval()
    maps = [torch.randn(3 * 8, 6, 9), torch.randn(3 * 8, 3, 5)]
    model.postprocess.score_thresh = 0.0
    every = [d(raw, (96, 144), 0.0) for d, raw in zip(model.decoders, maps, strict=True)]
    boxes, scores, classes = model.decode([], (maps,), (96, 144))
    assert len(scores) == 3 * 3 * (54 + 15)
    model.postprocess.topk_candidates = 7
    boxes, scores, classes = model.decode([], (maps,), (96, 144))
    for i, (of_map, found, kinds) in enumerate(every):
        best = found.argsort(descending=True)[:7]
        part = slice(7 * i, 7 * i + 7)
        assert torch.equal(scores[part], found[best])
        assert torch.equal(boxes[part], of_map[best])
        assert torch.equal(classes[part], kinds[best])


def test_published_recipe() -> None:
    """yolov3.cfg: learning_rate, momentum, decay, burn_in, steps and scales, batch by batch."""
    cfg = load_config(ROOT / "configs" / "yolov3" / "yolov3.py")
    assert (cfg.optimizer.lr, cfg.optimizer.momentum, cfg.optimizer.weight_decay) == (
        1e-3,
        0.9,
        5e-4,
    )
    assert cfg.data.batch_size == cfg.train.lr_batch_size == 64
    schedule: Schedule = build(cfg, "schedule")
    for batch, factor in (
        (500, 0.5**4),
        (1000, 1.0),
        (399_999, 1.0),
        (400_001, 0.1),
        (449_999, 0.1),
        (450_001, 0.01),
    ):
        assert schedule.factor(batch, 500_200) == pytest.approx(factor)
    # Neither biases nor batch normalisation decay.
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    optimizer = build(cfg, "optimizer", **{"params.model": model})
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert [decay[id(p)] for p in model.parameters()] == [5e-4, 0, 0, 0]
    voc = load_config(ROOT / "configs" / "yolov2" / "yolov2_voc.py")
    schedule = build(voc, "schedule")
    factors = [schedule.factor(b, 80_200) for b in (39_999, 40_001, 59_999, 60_001)]
    assert factors == pytest.approx([1, 0.1, 0.1, 0.01])


def test_parts_refuse_what_does_not_fit() -> None:
    trunk = Darknet(stages=darknet_tiny_stages(width=2), out_features=["c3", "c4", "c5"])
    with pytest.raises(ValueError, match=r"strides double, got \[8, 32\]"):
        YOLOFPN(bottom_up=trunk, in_features=["c3", "c5"], dims=[[8], [8]])
    with pytest.raises(ValueError, match="dims must be of 2 levels, got 1"):
        YOLOFPN(bottom_up=trunk, in_features=["c4", "c5"], dims=[[8]])
    with pytest.raises(ValueError, match="strides double, got 8, 32"):
        Passthrough(bottom_up=trunk, in_features=["c3", "c5"])


def test_neck_shapes_are_told() -> None:
    trunk = Darknet(stages=darknet_tiny_stages(width=2), out_features=["c3", "c4", "c5"])
    for neck in (
        FPN(bottom_up=trunk, in_features=["c3", "c4", "c5"], out_channels=8),
        YOLOFPN(bottom_up=trunk, in_features=["c3", "c4", "c5"], dims=[[], [8, 16], [12]]),
        Passthrough(bottom_up=trunk, in_features=["c4", "c5"], channels=6, passthrough_channels=8),
    ):
        maps = neck(torch.rand(1, 3, 64, 96))
        shapes = neck.output_shape()
        assert list(maps) == list(shapes)
        for name, value in maps.items():
            shape = shapes[name]
            stride = shape.stride
            assert value.shape == (1, shape.channels, 64 // stride, 96 // stride)


def test_jitter_moves_each_side() -> None:
    """Crops by up to the fraction, or as much black around; boxes go with the picture."""
    image = np.full((100, 200, 3), 255, dtype=np.uint8)
    np.random.seed(0)  # noqa: NPY002 - Detectron2's augmentations draw from it
    sizes = []
    for _ in range(200):
        transform = RandomJitter(0.3).get_transform(image)
        left, top, right, bottom = transform.src_rect
        found = transform.apply_image(image)
        assert found.shape[:2] == (round(bottom - top), round(right - left))
        white = np.argwhere(found[..., 0] > 127)
        (x0, y0, x1, y1) = transform.apply_box(np.array([[0, 0, 200, 100]]))[0]
        box = np.clip([y0, x0, y1, x1], 0, [*found.shape[:2], *found.shape[:2]])
        assert np.abs(np.array([*white.min(0), *(white.max(0) + 1)]) - box).max() < 1.01
        sizes.append((left / 200, top / 100, 1 - right / 200, 1 - bottom / 100))
    drawn = np.array(sizes)
    assert drawn.min() > -0.3
    assert drawn.max() < 0.3
    assert np.abs(drawn.mean(0)).max() < 0.04
    assert (drawn.std(0) > 0.15).all()
    with pytest.raises(ValueError, match="jitter must be in"):
        RandomJitter(0.5)


def test_published_configs_interpolate_all() -> None:
    for path in sorted((ROOT / "configs").glob("yolov[23]/*.py")):
        model = load_config(path).model
        plain = OmegaConf.to_container(model, resolve=True)
        assert all(d["num_classes"] == plain["num_classes"] for d in plain["decoders"]), path
        assert all(d["anchors"] == plain["anchors"] for d in plain["decoders"]), path
