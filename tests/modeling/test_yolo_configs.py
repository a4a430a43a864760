"""YOLOv2 and YOLOv3 as configs: overrides, training, images of any kind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf

from d2proj.data import RandomJitter
from d2proj.engine.config import build, load_config
from d2proj.engine.schedule import Schedule
from d2proj.errors import InputError
from d2proj.modeling.backbones import Darknet, darknet_tiny_stages
from d2proj.modeling.necks import FPN, YOLOFPN, Passthrough
from d2proj.ops import box_iou

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
    with pytest.raises(InputError, match="counts beyond the 5 anchors"):
        model_of("yolov3/yolov3_tiny", "model.anchors=[[1,2],[3,4],[5,6],[7,8],[9,10]]")


@pytest.mark.parametrize("name", SCRATCH)
def test_classes_are_one_override(name: str) -> None:
    model = model_of(name, "model.num_classes=3")
    assert {part.num_classes for part in (model, *model.decoders, *model.level_losses)} == {3}
    anchors = [len(decoder.anchors) for decoder in model.decoders]
    channels = [level[-1].out_channels for level in model.head.levels]
    assert channels == [count * 8 for count in anchors]


@pytest.mark.parametrize("name", SCRATCH)
def test_training_finds_the_boxes(name: str) -> None:
    """A few steps on two images, one of them empty: the loss falls, the boxes are found."""
    torch.manual_seed(0)
    model = model_of(name, "model.num_classes=3", *NARROW[name]).train()
    truth = [[6.0, 8.0, 40.0, 50.0], [50.0, 10.0, 90.0, 60.0]]
    batch = [sample(64, 96, truth), sample(64, 96, [], seed=1)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for _ in range(40):
        losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        # The cross entropy of YOLOv3's box centres has a minimum above 0.
        history.append(float(losses["loss_obj"].detach() + losses["loss_cls"].detach()))
    assert history[-1] < 0.2 * history[0], history
    # Statistics of so few images lag behind.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        for _ in range(2):
            model(batch)
    model.eval().postprocess.score_thresh = 0.3
    with torch.no_grad():
        full, empty = (x["instances"] for x in model(batch))
    assert len(empty) == 0
    iou = box_iou(torch.tensor(truth), full.pred_boxes.tensor)
    assert (iou.amax(1) > 0.6).all()
    assert full.pred_classes[iou.argmax(1)].tolist() == [0, 1]


@pytest.mark.parametrize("name", [*SCRATCH, "yolov3/yolov3_tiny", "yolov2/yolov2_tiny"])
@pytest.mark.parametrize("autocast", [False, True])
def test_any_images(name: str, autocast: bool) -> None:
    """Odd sizes, no boxes at all, boxes of a pixel, bfloat16: finite losses and gradients."""
    torch.manual_seed(0)
    model = model_of(name, "model.num_classes=3").train()
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
