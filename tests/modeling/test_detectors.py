"""Both detectors end to end: what they are fed in practice, and what they should survive."""

import copy
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from d2proj.errors import InputError
from d2proj.modeling.meta_arch import FasterRCNN, RetinaNet
from tests.parity.detection_batches import make_batch

MODELS = Path(__file__).resolve().parents[2] / "configs" / "common" / "models"
NUM_CLASSES = 4
LOSSES = {
    "faster_rcnn_tiny": {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"},
    "retinanet_tiny": {"loss_cls", "loss_box_reg"},
}
SIZES = [(96, 128), (70, 100)]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    settings = LazyConfig.load(str(MODELS / f"{name}.py")).model
    settings.num_classes = NUM_CLASSES
    return instantiate(settings)


@pytest.fixture(params=sorted(LOSSES))
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


@pytest.fixture
def batch() -> list[dict]:
    return make_batch(SIZES, num_classes=NUM_CLASSES)


def test_registered_beside_detectron2s() -> None:
    assert META_ARCH_REGISTRY.get("d2proj.FasterRCNN") is FasterRCNN
    assert META_ARCH_REGISTRY.get("d2proj.RetinaNet") is RetinaNet


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_parameter_learns(name: str, batch: list[dict]) -> None:
    model = build(name).train()
    losses = model(batch)
    assert set(losses) == LOSSES[name]
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_a_batch_can_be_learnt_by_heart(model: nn.Module, batch: list[dict]) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    batch = make_batch([(64, 64)] * 2, num_classes=NUM_CLASSES, boxes_per_image=1)
    for _ in range(50):
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # In evaluation but with the batch's statistics: 50 steps are too few for running averages.
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    for item, result in zip(batch, model(batch), strict=True):
        found, truth = result["instances"], item["instances"]
        assert found.pred_classes[0] == truth.gt_classes[0]
        assert (found.pred_boxes.tensor[0] - truth.gt_boxes.tensor[0]).abs().max() < 8


def test_images_without_ground_truth(model: nn.Module, batch: list[dict]) -> None:
    batch[0]["instances"] = batch[0]["instances"][:0]
    assert all(torch.isfinite(loss) for loss in model(batch).values())
    batch[1]["instances"] = batch[1]["instances"][:0]
    losses = model(batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert float(losses["loss_box_reg"]) == 0
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_detections_are_in_the_original_frame(model: nn.Module, batch: list[dict]) -> None:
    loosen(model)
    model.eval()
    small = model(batch)
    for item in batch:
        item["height"], item["width"] = 3 * item["height"], 2 * item["width"]
    large = model(batch)
    for a, b, item in zip(small, large, batch, strict=True):
        a, b = a["instances"], b["instances"]
        assert b.image_size == (item["height"], item["width"])
        assert len(a) == len(b) > 0
        scale = torch.tensor([2.0, 3.0, 2.0, 3.0])
        torch.testing.assert_close(a.pred_boxes.tensor * scale, b.pred_boxes.tensor)


def loosen(model: nn.Module) -> None:
    """Let an untrained model detect something."""
    postprocess = getattr(model, "postprocess", None) or model.roi_heads.box_predictor.postprocess
    postprocess.score_thresh = 0.001


def test_detection_does_not_depend_on_the_rest_of_the_batch(
    model: nn.Module, batch: list[dict]
) -> None:
    loosen(model)
    model.eval()
    with torch.no_grad():
        together, alone = model(batch)[0]["instances"], model(batch[:1])[0]["instances"]
    assert len(together) == len(alone) > 0
    torch.testing.assert_close(together.scores, alone.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [-1, NUM_CLASSES])
def test_labels_out_of_range(model: nn.Module, batch: list[dict], bad: int) -> None:
    batch[1]["instances"].gt_classes[2] = bad
    with pytest.raises(
        InputError, match=rf"image 1\.jpg has the label {bad}, but the model has 4 classes"
    ):
        model(batch)


def test_non_finite_features(model: nn.Module, batch: list[dict]) -> None:
    conv = model.backbone.fpn_output4
    conv.norm.weight.data[:] = float("nan")
    losses = model(batch)
    assert any(torch.isnan(loss) for loss in losses.values())  # the engine stops on it
    model.eval()
    for result in model(batch):
        assert torch.isfinite(result["instances"].pred_boxes.tensor).all()
        assert torch.isfinite(result["instances"].scores).all()
    for p in model.parameters():
        p.data[:] = float("inf")
    assert [len(result["instances"]) for result in model(batch)] == [0, 0]


def test_no_proposals(batch: list[dict]) -> None:
    model = build("faster_rcnn_tiny")
    model.proposal_generator.min_box_size = 1e6
    losses = model(batch)  # ground truth is appended, so there is something to learn from
    assert all(torch.isfinite(loss) for loss in losses.values())
    model.roi_heads.proposal_append_gt = False
    losses = model(batch)
    assert float(losses["loss_cls"].detach()) == 0
    sum(losses.values()).backward()
    assert [len(result["instances"]) for result in model.eval()(batch)] == [0, 0]


def test_bfloat16_autocast(model: nn.Module, batch: list[dict]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch)
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        sum(losses.values()).backward()
        loosen(model)
        found = model.eval()(batch)[0]["instances"]
    assert found.pred_boxes.tensor.dtype == found.scores.dtype == torch.float32
    assert len(found) > 0


def test_same_seed_same_losses(model: nn.Module, batch: list[dict]) -> None:
    twin = copy.deepcopy(model)
    results = []
    for m in (model, twin):
        torch.manual_seed(5)
        losses = m(batch)
        sum(losses.values()).backward()
        results.append((losses, [p.grad for p in m.parameters()]))
    (losses, gradients), (losses2, gradients2) = results
    assert all(torch.equal(losses[name], losses2[name]) for name in losses)
    assert all(torch.equal(a, b) for a, b in zip(gradients, gradients2, strict=True))


def test_retinanets_normaliser_is_state(batch: list[dict]) -> None:
    model = build("retinanet_tiny")
    model(batch)
    moved = float(model.loss_normalizer)
    assert moved != 100.0
    twin = build("retinanet_tiny")
    twin.load_state_dict(model.state_dict())
    assert float(twin.loss_normalizer) == moved
    state = model.state_dict()
    del state["loss_normalizer"]  # as in Detectron2's checkpoints
    result = build("retinanet_tiny").load_state_dict(state)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert "loss_normalizer" not in state, "the caller's dict is left alone"
