"""Our detectors, configured as torchvision's and given the same weights, give the same numbers."""

from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.config import LazyConfig, instantiate
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig
from torch import nn

from d2proj.checkpoint import load_weights
from d2proj.modeling.priors import RoundedAnchorGenerator
from tests.parity.detection_batches import (
    assert_same_detections,
    assert_same_losses,
    calibrate_batch_norms,
    make_batch,
    spread_predictions,
)

MODELS = Path(__file__).resolve().parents[2] / "configs" / "common" / "models"
NUM_CLASSES = 7
# The coarsest map's stride divides the sides: torchvision takes strides from the maps' sizes.
SIZES = [(128, 128), (128, 128)]


def torchvision_settings(name: str) -> DictConfig:
    """Our model with torchvision's choices."""
    model = LazyConfig.load(str(MODELS / f"{name}.py")).model
    model.num_classes = NUM_CLASSES
    model.input_format = "RGB"
    model.pixel_mean = [255 * v for v in (0.485, 0.456, 0.406)]
    model.pixel_std = [255 * v for v in (0.229, 0.224, 0.225)]
    model.backbone.bottom_up.stages.stride_in_1x1 = False
    return model


def faster_rcnn_settings() -> DictConfig:
    model = torchvision_settings("faster_rcnn")
    rpn, roi = model.proposal_generator, model.roi_heads
    rpn.anchor_generator._target_ = RoundedAnchorGenerator
    rpn.box_loss.beta = roi.box_predictor.box_loss.beta = 1 / 9
    rpn.pre_nms_topk, rpn.post_nms_topk = [2000, 1000], [2000, 1000]
    roi.box_pooler.sampling_ratio, roi.box_pooler.aligned = 2, False
    return model


def retinanet_settings() -> DictConfig:
    model = torchvision_settings("retinanet")
    model.backbone.top_block.in_feature = "p5"
    model.backbone.top_block.in_channels = 256
    model.anchor_generator._target_ = RoundedAnchorGenerator
    # torchvision truncates the sizes of the octaves to whole pixels.
    model.anchor_generator.sizes = [
        [int(s) for s in level] for level in model.anchor_generator.sizes
    ]
    model.postprocess.max_detections, model.postprocess.clip = 300, True
    model.loss_normalizer_momentum = 0.0
    return model


def pair(
    theirs: nn.Module, settings: DictConfig, scales: dict[str, float], folder: Path
) -> tuple[nn.Module, nn.Module]:
    """torchvision's model with sane random weights and fixed batch norms, and its twin of ours."""
    batch = make_batch(SIZES, num_classes=NUM_CLASSES, seed=1)
    images = torch.stack([(item["image"] / 255 - 0.45) / 0.225 for item in batch])
    calibrate_batch_norms(theirs.backbone, images)
    spread_predictions(theirs, scales)
    # In double precision: a random network multiplies the rounding of its input by thousands.
    theirs.double()
    torch.save(theirs.state_dict(), folder / "weights.pth")
    ours = instantiate(settings).double()
    load_weights(ours, folder / "weights.pth", strict_classes=True)
    for name in ("pixel_mean", "pixel_std"):  # these were rounded to float32
        values = torch.tensor(list(settings[name]), dtype=torch.float64)
        setattr(ours, name, values.view(-1, 1, 1))
    return ours, theirs


@pytest.fixture(scope="module")
def faster_rcnn(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    theirs = torchvision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1, min_size=128, max_size=256
    )
    scales = {
        "rpn.head.cls_logits": 0.05,
        "rpn.head.bbox_pred": 0.01,
        "roi_heads.box_predictor.cls_score": 0.05,
        "roi_heads.box_predictor.bbox_pred": 0.05,
    }
    return pair(theirs, faster_rcnn_settings(), scales, tmp_path_factory.mktemp("frcnn"))


@pytest.fixture(scope="module")
def retinanet(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    theirs = torchvision.models.detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES, min_size=128, max_size=256
    )
    convs = [
        f"head.{kind}_head.conv.{i}.0"
        for kind in ("classification", "regression")
        for i in range(4)
    ]
    scales = dict.fromkeys(convs, 0.03) | {
        "head.classification_head.cls_logits": 0.02,
        "head.regression_head.bbox_reg": 0.002,
    }
    return pair(theirs, retinanet_settings(), scales, tmp_path_factory.mktemp("retinanet"))


def torchvision_detections(
    model: nn.Module, batch: list[dict], first_label: int
) -> list[Instances]:
    model.eval()
    with torch.no_grad():
        outputs = model([item["image"].double() / 255 for item in batch])
    results = [
        Instances(
            (item["height"], item["width"]),
            pred_boxes=Boxes(out["boxes"]),
            scores=out["scores"],
            pred_classes=out["labels"] - first_label,
        )
        for item, out in zip(batch, outputs, strict=True)
    ]
    # What lies outside the image is clipped to nothing: torchvision gives it out, we do not.
    return [found[found.pred_boxes.nonempty()] for found in results]


def torchvision_losses(model: nn.Module, batch: list[dict], first_label: int) -> dict:
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    targets = [
        {
            "boxes": item["instances"].gt_boxes.tensor,
            "labels": item["instances"].gt_classes + first_label,
        }
        for item in batch
    ]
    return model([item["image"].double() / 255 for item in batch], targets)


def in_order(n: int, **_: object) -> torch.Tensor:
    """Replaces ``torch.randperm``: both sides then sample the same."""
    return torch.arange(n)


def test_faster_rcnn_detections(faster_rcnn: tuple[nn.Module, nn.Module]) -> None:
    ours, theirs = faster_rcnn
    batch = make_batch(SIZES, num_classes=NUM_CLASSES)
    expected = torchvision_detections(theirs, batch, first_label=1)
    with torch.no_grad():
        found = ours.eval()(batch)
    for a, b in zip(found, expected, strict=True):
        assert_same_detections(a["instances"], b)


def test_faster_rcnn_losses(
    faster_rcnn: tuple[nn.Module, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = faster_rcnn
    batch = make_batch(SIZES, num_classes=NUM_CLASSES)
    monkeypatch.setattr(torch, "randperm", in_order)
    expected = torchvision_losses(theirs, batch, first_label=1)
    names = {
        "loss_cls": "loss_classifier",
        "loss_box_reg": "loss_box_reg",
        "loss_rpn_cls": "loss_objectness",
        "loss_rpn_loc": "loss_rpn_box_reg",
    }
    losses = ours.train()(batch)
    assert_same_losses(losses, {name: expected[theirs] for name, theirs in names.items()})
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    assert_same_gradients(
        {
            ours.backbone.bottom_up.res3[0].conv1.weight: theirs.backbone.body.layer2[
                0
            ].conv1.weight,
            ours.roi_heads.box_head.fc1.weight: theirs.roi_heads.box_head.fc6.weight,
        }
    )


def test_retinanet_detections(retinanet: tuple[nn.Module, nn.Module]) -> None:
    ours, theirs = retinanet
    batch = make_batch(SIZES, num_classes=NUM_CLASSES)
    expected = torchvision_detections(theirs, batch, first_label=0)
    with torch.no_grad():
        found = ours.eval()(batch)
    for a, b in zip(found, expected, strict=True):
        assert_same_detections(a["instances"], b)


def test_retinanet_losses(retinanet: tuple[nn.Module, nn.Module]) -> None:
    ours, theirs = retinanet
    batch = make_batch(SIZES, num_classes=NUM_CLASSES)
    expected = torchvision_losses(theirs, batch, first_label=0)
    # torchvision divides by each image's own number of positives and averages.
    ours.train()
    single = [ours([item]) for item in batch]
    mean = {name: sum(loss[name] for loss in single) / len(batch) for name in single[0]}
    names = {"loss_cls": "classification", "loss_box_reg": "bbox_regression"}
    assert_same_losses(mean, {name: expected[theirs] for name, theirs in names.items()})
    sum(mean.values()).backward()
    sum(expected.values()).backward()
    assert_same_gradients(
        {
            ours.backbone.bottom_up.res3[0].conv1.weight: theirs.backbone.body.layer2[
                0
            ].conv1.weight,
            ours.head.cls_subnet[0].weight: theirs.head.classification_head.conv[0][0].weight,
        }
    )


def assert_same_gradients(pairs: dict[nn.Parameter, nn.Parameter]) -> None:
    for ours, theirs in pairs.items():
        scale = theirs.grad.abs().max()
        assert scale > 0
        assert (ours.grad - theirs.grad).abs().max() < 1e-5 * scale
