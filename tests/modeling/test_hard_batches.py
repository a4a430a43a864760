"""Batches that data sets have now and then: every tiny detector trains on them."""

from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes, Instances

from d2proj.engine import setup
from d2proj.engine.config import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TINY = [
    "faster_rcnn/faster_rcnn_tiny",
    "gaussian_yolov3/gaussian_yolov3_tiny",
    "retinanet/retinanet_tiny",
    "rfb/rfb_tiny",
    "ssd/ssd_tiny",
    "yolo9000/yolo9000_tiny",
    "yolov1/yolov1_tiny_scratch",
    "yolov2/yolov2_tiny_scratch",
    "yolov3/yolov3_tiny_scratch",
    "yolov4/yolov4_tiny_scratch",
]


def build(name: str, num_classes: int) -> torch.nn.Module:
    cfg = load_config(CONFIGS / f"{name}.py")
    cfg.model.num_classes = num_classes
    return setup.build_model(cfg, torch.device("cpu"), seed=0).train()


def sample(boxes: list[list[float]], size: tuple[int, int] = (64, 96)) -> dict:
    generator = torch.Generator().manual_seed(0)
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    return {"image": image, "instances": instances}


def losses(model: torch.nn.Module, batch: list[dict]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)  # what two-stage detectors sample
    found = model(batch)
    sum(found.values()).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads
    assert all(bool(g.isfinite().all()) for g in grads)
    return found


@pytest.mark.parametrize("name", TINY)
def test_one_image_of_one_class_at_an_odd_size(name):
    """The coarsest maps hold a single cell: nothing to take a variance of."""
    found = losses(build(name, 1), [sample([[8, 8, 40, 44], [-9, 30, 150, 60]], (61, 47))])
    assert all(bool(loss.isfinite()) for loss in found.values()), found


@pytest.mark.parametrize("name", TINY)
def test_boxes_without_area_change_nothing(name):
    """BCCD has two. The logarithm of their sides, which boxes are learned by, is not finite."""
    good = [[8.0, 8.0, 40.0, 44.0]]
    bad = [[70.0, 8.0, 70.0, 44.0], [60.0, 50.0, 90.0, 50.0], [5.0, 40.0, 5.0, 40.0]]
    clean = losses(build(name, 2), [sample(good), sample([])])
    dirty = losses(build(name, 2), [sample(good + bad), sample(bad)])
    assert clean.keys() == dirty.keys()
    for key, value in clean.items():
        torch.testing.assert_close(dirty[key], value, rtol=0, atol=0, msg=key)


def test_mere_labels_stay_whatever_their_boxes() -> None:
    """YOLO9000's classification images have labels without boxes."""
    model = build("yolo9000/yolo9000_tiny", 2)
    batch = [sample([[0.0, 0.0, 0.0, 0.0], [9.0, 9.0, 9.0, 30.0]])]
    batch[0]["instances"].gt_has_box = torch.tensor([False, True])
    (truth,) = model.ground_truth(batch)
    assert truth.gt_has_box.tolist() == [False]
