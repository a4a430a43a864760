"""Our models equal the real Detectron2's own R50-FPN models, weight names included."""

import copy
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.config import LazyConfig, instantiate
from torch import nn

from d2proj import _detectron2
from d2proj.modeling.meta_arch import FasterRCNN
from tests.parity.detection_batches import (
    assert_same_detections,
    assert_same_losses,
    calibrate_batch_norms,
    make_batch,
    spread_predictions,
)

pytestmark = pytest.mark.skipif(
    _detectron2.is_embedded(),
    reason="compares with Detectron2's own models; only the embedded part of Detectron2 is here "
    "(CONTRIBUTING.md tells how to install the real one)",
)

MODELS = Path(__file__).resolve().parents[2] / "configs" / "common" / "models"
NUM_CLASSES = 7
SIZES = [(128, 160), (150, 100)]  # of two sizes: padding is part of the comparison

SCALES = {
    "faster_rcnn": {
        "proposal_generator.rpn_head.objectness_logits": 0.05,
        "proposal_generator.rpn_head.anchor_deltas": 0.01,
        "roi_heads.box_predictor.cls_score": 0.05,
        "roi_heads.box_predictor.bbox_pred": 0.05,
    },
    "retinanet": dict.fromkeys(
        [f"head.{kind}_subnet.{i}" for kind in ("cls", "bbox") for i in (0, 2, 4, 6)], 0.03
    )
    | {"head.cls_score": 0.02, "head.bbox_pred": 0.002},
}


def detectron2_model(name: str) -> nn.Module:
    from detectron2 import model_zoo  # not in the embedded part

    if name == "retinanet":
        model = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.py").model
        model.num_classes = NUM_CLASSES
        model.smooth_l1_beta = 0.0  # as its published model has it (Base-RetinaNet.yaml)
        return instantiate(model)
    model = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py").model
    for key in ("mask_in_features", "mask_pooler", "mask_head"):
        model.roi_heads.pop(key)
    model.roi_heads.num_classes = NUM_CLASSES
    return instantiate(model)


@pytest.fixture(autouse=True)
def nms_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectron2 gives torchvision's NMS float32 boxes whatever the scores are, which fails."""
    nms = torch.ops.torchvision.nms
    monkeypatch.setattr(
        torchvision.ops.boxes,
        "nms",
        lambda boxes, scores, iou: nms(boxes.to(scores.dtype), scores, iou),
    )


@pytest.fixture(scope="module", params=["faster_rcnn", "retinanet"])
def models(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    """Ours and Detectron2's with the same sane random weights, in double precision."""
    torch.manual_seed(0)
    name = request.param
    settings = LazyConfig.load(str(MODELS / f"{name}.py")).model
    settings.num_classes = NUM_CLASSES
    ours, theirs = instantiate(settings), detectron2_model(name)
    # Fixed statistics cannot be calibrated: borrow those of a twin that has trainable norms.
    bottom_up = settings.backbone.bottom_up
    bottom_up.stem.norm = bottom_up.stages.norm = "BN"
    bottom_up.freeze_at = 0
    twin = instantiate(settings)
    batch = make_batch([SIZES[0]] * 2, num_classes=NUM_CLASSES, seed=1)
    calibrate_batch_norms(twin.backbone, twin.preprocess_image(batch).tensor)
    spread_predictions(twin, SCALES[name])
    weights = {k: v for k, v in twin.state_dict().items() if not k.endswith("num_batches_tracked")}
    ours.load_state_dict(weights)
    weights.pop("loss_normalizer", None)
    theirs.load_state_dict(weights)
    return ours.double(), theirs.double()


def test_state_dict_names(models: tuple[nn.Module, nn.Module]) -> None:
    ours, theirs = (model.state_dict() for model in models)
    ours.pop("loss_normalizer", None)  # a plain attribute there, which a resumed training loses
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_detectron2_weights_load_strictly(models: tuple[nn.Module, nn.Module]) -> None:
    ours, theirs = models
    ours.load_state_dict(theirs.state_dict())


def test_detections(models: tuple[nn.Module, nn.Module]) -> None:
    batch = make_batch(SIZES, num_classes=NUM_CLASSES)
    batch[0]["height"], batch[0]["width"] = 300, 411  # the original picture was larger
    with torch.no_grad():
        found, expected = (model.eval()(batch) for model in models)
    for a, b in zip(found, expected, strict=True):
        assert a["instances"].image_size == b["instances"].image_size
        assert_same_detections(a["instances"], b["instances"])


def test_losses(models: tuple[nn.Module, nn.Module]) -> None:
    batch = make_batch(SIZES, num_classes=NUM_CLASSES)
    compare_losses(models, batch)
    compare_losses(models, batch)  # once more: RetinaNet's normaliser has moved


def test_losses_without_ground_truth(models: tuple[nn.Module, nn.Module]) -> None:
    batch = make_batch(SIZES, num_classes=NUM_CLASSES)
    batch[1]["instances"] = batch[1]["instances"][:0]
    compare_losses(models, batch)


def test_detectron2s_parts_fit_in(models: tuple[nn.Module, nn.Module]) -> None:
    ours, theirs = models
    mixed = copy.deepcopy(ours)
    mixed.backbone = theirs.backbone
    if isinstance(mixed, FasterRCNN):
        mixed.proposal_generator = theirs.proposal_generator
        mixed.roi_heads = theirs.roi_heads
    batch = make_batch(SIZES, num_classes=NUM_CLASSES)
    with torch.no_grad():
        found, expected = (model.eval()(batch) for model in (mixed, theirs))
    for a, b in zip(found, expected, strict=True):
        assert_same_detections(a["instances"], b["instances"])
    compare_losses((mixed, theirs), batch)


def compare_losses(models: tuple[nn.Module, nn.Module], batch: list[dict]) -> None:
    from detectron2.utils.events import EventStorage

    results = []
    for model in models:
        torch.manual_seed(3)  # the same anchors and proposals are drawn
        model.train().zero_grad()
        with EventStorage():
            losses = model(batch)
        sum(losses.values()).backward()
        results.append((losses, dict(model.named_parameters())))
    (losses, ours), (expected, theirs) = results
    assert_same_losses(losses, expected)
    compared = [name for name, p in theirs.items() if p.grad is not None]
    assert len(compared) > 50
    for name in compared:
        difference = (ours[name].grad - theirs[name].grad).abs().max()
        assert difference <= 1e-5 * theirs[name].grad.abs().max(), name
