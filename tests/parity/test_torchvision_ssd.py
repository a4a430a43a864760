"""SSD300, given the weights of torchvision's ``ssd300_vgg16``, gives the same numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from torch import nn

from d2proj.checkpoint import load_weights
from d2proj.engine.config import load_config
from tests.parity.detection_batches import (
    assert_same_detections,
    assert_same_losses,
    make_batch,
    spread_predictions,
)

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "ssd" / "ssd300_torchvision.py"
NUM_CLASSES = 6
SIZES = [(300, 300)]  # batches: tests/modeling/test_ssd.py

Pair = tuple[nn.Module, nn.Module]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Ours and theirs, in double precision, with weights that detect something."""
    torch.manual_seed(0)
    theirs = torchvision.models.detection.ssd300_vgg16(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1
    )
    # The first layer sees values of 100 and more; predictions of a trained net are a few units.
    theirs.backbone.features[0].weight.data *= 0.02
    levels = range(6)
    scales = {f"head.classification_head.module_list.{i}": 0.03 for i in levels}
    scales |= {f"head.regression_head.module_list.{i}": 0.01 for i in levels}
    spread_predictions(theirs, scales)
    with torch.no_grad():
        theirs.backbone.scale_weight.mul_(torch.rand(512) + 0.5)
    path = tmp_path_factory.mktemp("ssd") / "ssd300.pth"
    torch.save(theirs.state_dict(), path)
    settings = load_config(CONFIG).model
    settings.num_classes = NUM_CLASSES
    ours = instantiate(settings)
    report = load_weights(ours, path, strict_classes=True)
    assert not report.unexpected
    assert not report.missing
    # The same pixels, exactly: their mean is rounded otherwise.
    mean = torch.tensor(theirs.transform.image_mean, dtype=torch.float64) * 255
    ours = ours.double()
    ours.pixel_mean = mean.flip(0).view(3, 1, 1)
    return ours, theirs.double()


def both(batch: list[dict]) -> list[dict]:
    """The batch for our model, whose channels are BGR."""
    return [{**item, "image": item["image"].flip(0)} for item in batch]


def rgb(batch: list[dict]) -> list[torch.Tensor]:
    return [item["image"].double() / 255 for item in batch]


@pytest.fixture(scope="module")
def batch() -> list[dict]:
    return make_batch(SIZES, num_classes=NUM_CLASSES, boxes_per_image=5)


@pytest.fixture(scope="module")
def evaluated(pair: Pair, batch: list[dict]) -> list[dict[str, Any]]:
    """Of ours and theirs, what comes out of the backbone, of the head and at the end."""
    results = []
    for model, images in zip(pair, (both(batch), rgb(batch)), strict=True):
        seen: dict[str, Any] = {}
        hooks = [
            part.register_forward_hook(lambda *io, name=name, seen=seen: seen.update({name: io[2]}))
            for name, part in (("maps", model.backbone), ("predictions", model.head))
        ]
        with torch.no_grad():
            seen["detections"] = model.eval()(images)
        for hook in hooks:
            hook.remove()
        results.append(seen)
    return results


def test_maps_predictions_and_default_boxes(
    pair: Pair, batch: list[dict], evaluated: list[dict[str, Any]]
) -> None:
    ours, theirs = pair
    mine, other = evaluated
    maps, expected = list(mine["maps"].values()), list(other["maps"].values())
    for found, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    logits, deltas = (torch.cat(levels, dim=1) for levels in mine["predictions"])
    rows = [*range(1, NUM_CLASSES + 1), 0]
    wanted = other["predictions"]
    torch.testing.assert_close(logits, wanted["cls_logits"][..., rows], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(deltas, wanted["bbox_regression"], rtol=1e-9, atol=1e-9)
    assert logits.abs().max() > 1
    boxes = torch.cat(ours.anchor_generator(maps))
    assert len(boxes) == 8732
    images = theirs.transform(rgb(batch))[0]
    assert (boxes - theirs.anchor_generator(images, expected)[0]).abs().max() < 1e-4


def test_detections(batch: list[dict], evaluated: list[dict[str, Any]]) -> None:
    mine, other = (result["detections"] for result in evaluated)
    for found, wanted, item in zip(mine, other, batch, strict=True):
        instances = Instances(
            (item["height"], item["width"]),
            pred_boxes=Boxes(wanted["boxes"]),
            scores=wanted["scores"],
            pred_classes=wanted["labels"] - 1,
        )
        assert_same_detections(found["instances"], instances[instances.pred_boxes.nonempty()])


def test_losses_and_gradients(pair: Pair, batch: list[dict]) -> None:
    ours, theirs = pair
    targets = [
        {
            "boxes": item["instances"].gt_boxes.tensor.double(),
            "labels": item["instances"].gt_classes + 1,
        }
        for item in batch
    ]
    expected = theirs.train()(rgb(batch), targets)
    losses = ours.train()(both(batch))
    names = {"loss_cls": "classification", "loss_box_reg": "bbox_regression"}
    assert_same_losses(losses, {name: expected[other] for name, other in names.items()})
    pairs = [
        (ours.backbone.bottom_up.conv5_1.weight, theirs.backbone.extra[0][1].weight),
        (ours.backbone.bottom_up.fc6.weight, theirs.backbone.extra[0][7][1].weight),
        (ours.backbone.adapters[0].scale, theirs.backbone.scale_weight),
        (ours.backbone.extra_blocks[0].conv2.weight, theirs.backbone.extra[1][2].weight),
        (
            ours.head.levels[1].bbox_pred.weight,
            theirs.head.regression_head.module_list[1].weight,
        ),
    ]
    mine = torch.autograd.grad(sum(losses.values()), [a for a, _ in pairs])
    wanted = torch.autograd.grad(sum(expected.values()), [b for _, b in pairs])
    for gradient, other in zip(mine, wanted, strict=True):
        assert (scale := other.abs().max()) > 0
        assert (gradient - other).abs().max() < 1e-5 * scale
