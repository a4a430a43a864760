"""SSD's parts against torchvision's and against loops over the paper's definitions."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.structures import Boxes, Instances
from torch import nn
from torchvision.models.detection import _utils as tv
from torchvision.models.detection import ssd as tv_ssd
from torchvision.ops import box_iou

from d2proj.engine.config import load_config
from d2proj.layers import L2Norm
from d2proj.modeling.backbones import VGG
from d2proj.modeling.losses import HardNegativeSoftmaxLoss
from d2proj.modeling.matching import BipartiteMatcher
from d2proj.modeling.necks import SSDNeck
from d2proj.modeling.priors import DefaultBoxGenerator
from tests.parity.detection_batches import make_batch

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NUM_CLASSES = 4


def build(name: str, num_classes: int = NUM_CLASSES) -> nn.Module:
    torch.manual_seed(0)
    settings = LazyConfig.load(str(CONFIGS / "common" / "models" / f"{name}.py")).model
    settings.num_classes = num_classes
    return instantiate(settings)


# The sizes of networks and the number of their boxes.


@pytest.mark.parametrize(
    ("name", "num_classes", "parameters"),
    [
        ("ssd", 80, 34_305_206),  # mmdetection's ssd300_coco: 34.31 M
        ("ssd", 90, tv_ssd.SSD300_VGG16_Weights.COCO_V1.meta["num_params"]),
        ("ssd512", 80, 36_038_196),  # mmdetection's ssd512_coco: 36.04 M
        ("rfb", 20, 36_531_296),  # the authors' code with 21 scores
        ("rfb512", 20, 37_417_910),
    ],
)
def test_parameters(name: str, num_classes: int, parameters: int) -> None:
    model = build(name, num_classes)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("config", "size", "sides", "boxes"),
    [
        ("ssd/ssd300", 300, [38, 19, 10, 5, 3, 1], 8732),
        ("ssd/ssd512", 512, [64, 32, 16, 8, 4, 2, 1], 24564),
        ("rfb/rfb300", 300, [38, 19, 10, 5, 3, 1], 11620),
        ("rfb/rfb512", 512, [64, 32, 16, 8, 4, 2, 1], 32756),
    ],
)
def test_maps_and_boxes(config: str, size: int, sides: list[int], boxes: int) -> None:
    settings = load_config(CONFIGS / f"{config}.py").model
    settings.num_classes = 3
    with torch.device("meta"):
        backbone, head = instantiate(settings.backbone).eval(), instantiate(settings.head)
        maps = backbone(torch.zeros(1, 3, size, size))
        logits, deltas = head([maps[name] for name in settings.head_in_features])
    assert [x.shape[-1] for x in maps.values()] == sides
    assert list(maps) == list(settings.head_in_features) == list(backbone.output_shape())
    for name, shape in backbone.output_shape().items():
        assert maps[name].shape[1] == shape.channels
    generator = instantiate(settings.anchor_generator)
    assert list(generator.num_anchors) == list(settings.head.num_anchors)
    grids = generator([torch.zeros(1, 1, n, n) for n in sides])
    assert sum(map(len, grids)) == boxes
    assert [len(g) for g in grids] == [x.shape[1] for x in logits] == [x.shape[1] for x in deltas]


def test_default_boxes_by_the_papers_formula() -> None:
    sizes, ratios, strides = [30.0, 60.0, 111.0], [[2], [2, 3]], [8, 16]
    generator = DefaultBoxGenerator(sizes=sizes, aspect_ratios=ratios, strides=strides)
    found = torch.cat(generator([torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 2, 2)]))
    expected = []
    for k, (rows, columns) in enumerate([(3, 4), (2, 2)]):
        for i in range(rows):
            for j in range(columns):
                x, y = (j + 0.5) * strides[k], (i + 0.5) * strides[k]
                shapes = [(sizes[k],) * 2, (math.sqrt(sizes[k] * sizes[k + 1]),) * 2]
                for r in ratios[k]:
                    for a in (r, 1 / r):
                        shapes.append((sizes[k] * math.sqrt(a), sizes[k] / math.sqrt(a)))
                expected += [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for w, h in shapes]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert generator.num_anchors == [4, 6]
    short = DefaultBoxGenerator(sizes=[30, 60], aspect_ratios=[[2]], strides=[8], max_size=32)
    boxes = torch.cat(short([torch.zeros(1, 1, 1, 1)]))
    assert (boxes[:, 2:] - boxes[:, :2]).amax() == 32
    with pytest.raises(ValueError, match="2 levels take 3 sizes, got 2"):
        DefaultBoxGenerator(sizes=[1, 2], aspect_ratios=[[2]], strides=[8, 16])


# Matching.


def greedy(quality: np.ndarray, threshold: float) -> tuple[list[int], list[int]]:
    """The authors' rule, pair after pair."""
    truths, predictions = quality.shape
    match, label = [0] * predictions, [0] * predictions
    for p in range(predictions):
        match[p] = max(range(truths), key=lambda g: quality[g, p])
        label[p] = int(quality[match[p], p] >= threshold)
    free_truths, free_predictions = set(range(truths)), set(range(predictions))
    while free_truths and free_predictions:
        pairs = [(quality[g, p], -g, -p) for g in free_truths for p in free_predictions]
        best, g, p = max(pairs)
        if best <= 0:
            break
        match[-p], label[-p] = -g, 1
        free_truths.remove(-g)
        free_predictions.remove(-p)
    return match, label


@pytest.mark.parametrize("shape", [(1, 1), (5, 12), (12, 5), (6, 30)])
@pytest.mark.parametrize("seed", range(6))
def test_bipartite_matcher(shape: tuple[int, int], seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    # Few different values: ground truths contend for predictions, some overlap nothing.
    quality = torch.randint(0, 8, shape, generator=g) / 8.0
    matches, labels = BipartiteMatcher(threshold=0.5)(quality)
    match, label = greedy(quality.numpy(), 0.5)
    assert labels.tolist() == label
    assert [m for m, one in zip(matches.tolist(), label, strict=True) if one] == [
        m for m, one in zip(match, label, strict=True) if one
    ]


def test_matcher_equals_torchvisions_without_contention() -> None:
    compared = 0
    for seed in range(30):
        quality = torch.rand(4, 60, generator=torch.Generator().manual_seed(seed)) ** 3
        if len(quality.argmax(dim=1).unique()) < 4:
            continue
        compared += 1
        expected = tv.SSDMatcher(0.5)(quality)
        matches, labels = BipartiteMatcher(threshold=0.5)(quality)
        assert torch.equal(labels == 1, expected >= 0)
        assert torch.equal(matches[labels == 1], expected[expected >= 0])
    assert compared > 10


def test_a_truth_keeps_its_box_though_another_overlaps_it_more() -> None:
    quality = torch.tensor([[0.9, 0.8], [0.1, 0.7]])
    matches, labels = BipartiteMatcher()(quality)
    assert matches.tolist() == [0, 1]
    assert labels.tolist() == [1, 1]
    empty = BipartiteMatcher()(torch.zeros(0, 3))
    assert [t.tolist() for t in empty] == [[0, 0, 0], [0, 0, 0]]
    assert [len(t) for t in BipartiteMatcher()(torch.zeros(3, 0))] == [0, 0]


# Losses and decoding, with random predictions in place of a network.


class Given(nn.Module):
    """A head whose predictions are given."""

    def __init__(self, logits: torch.Tensor, deltas: torch.Tensor) -> None:
        super().__init__()
        self.predictions = ([logits], [deltas])


def scene(num_boxes: list[int], seed: int) -> tuple[nn.Module, list, Given, list[Instances]]:
    """A model, its maps, random predictions on 60 cells and ground truth."""
    model = build("ssd_tiny")
    model.anchor_generator = DefaultBoxGenerator(
        sizes=[20, 50], aspect_ratios=[[2, 3]], strides=[12]
    )
    g = torch.Generator().manual_seed(seed)
    maps = [torch.zeros(len(num_boxes), 1, 6, 10)]
    logits = 3 * torch.randn(len(num_boxes), 360, NUM_CLASSES + 1, generator=g)
    deltas = torch.randn(len(num_boxes), 360, 4, generator=g)
    truth = []
    for n in num_boxes:
        item = make_batch([(72, 120)], num_classes=NUM_CLASSES, boxes_per_image=n, seed=seed)[0]
        truth.append(item["instances"])
        seed += 1
    return model, maps, Given(logits, deltas), truth


def background_first(logits: torch.Tensor) -> torch.Tensor:
    return logits[..., [NUM_CLASSES, *range(NUM_CLASSES)]]


@pytest.mark.parametrize("num_boxes", [[3, 0, 6], [1], [0, 0], [2, 5]])
def test_losses_equal_torchvisions(num_boxes: list[int]) -> None:
    for seed in range(5):
        model, maps, given, truth = scene(num_boxes, seed)
        logits, deltas = (part[0].requires_grad_() for part in given.predictions)
        losses = model.prediction_losses(maps, ([logits], [deltas]), truth, (72, 120))
        anchors = torch.cat(model.anchor_generator(maps))
        matched = []
        for t in truth:
            # torchvision's matcher lets two ground truths contend: ours, tested above.
            match, label = model.anchor_matcher(box_iou(t.gt_boxes.tensor, anchors))
            matched.append(torch.where(label == 1, match, -1))
        theirs = SimpleNamespace(
            box_coder=tv.BoxCoder((10.0, 10.0, 5.0, 5.0)), neg_to_pos_ratio=3.0
        )
        targets = [{"boxes": t.gt_boxes.tensor, "labels": t.gt_classes + 1} for t in truth]
        outputs = {"bbox_regression": deltas, "cls_logits": background_first(logits)}
        expected = tv_ssd.SSD.compute_loss(
            theirs, targets, outputs, [anchors] * len(truth), matched
        )
        torch.testing.assert_close(losses["loss_cls"], expected["classification"])
        torch.testing.assert_close(losses["loss_box_reg"], expected["bbox_regression"])
        assert (float(losses["loss_cls"].detach()) > 0) == any(num_boxes)
        ours = torch.autograd.grad(sum(losses.values()), [logits, deltas])
        wanted = torch.autograd.grad(sum(expected.values()), [logits, deltas])
        for a, b in zip(ours, wanted, strict=True):
            torch.testing.assert_close(a, b)


def test_hard_negatives_by_hand() -> None:
    """One positive, so three negatives: those that are most surely called an object."""
    logits = torch.zeros(2, 6, 3)
    logits[0, :, 0] = torch.tensor([0.0, 5, 1, 4, 3, 2])  # class 0 against the background, 2
    classes = torch.full((2, 6), 2)
    classes[0, 0] = 1
    losses = -logits.log_softmax(dim=-1)
    expected = losses[0, 0, 1] + losses[0, [1, 3, 4], 2].sum()
    torch.testing.assert_close(HardNegativeSoftmaxLoss()(logits, classes), expected)
    # More are wanted than there are: each counts once.
    classes[0, :4] = 1
    expected = losses[0, :4, 1].sum() + losses[0, 4:, 2].sum()
    torch.testing.assert_close(HardNegativeSoftmaxLoss()(logits, classes), expected)


@pytest.mark.parametrize("topk", [7, 400, -1])
def test_detections_equal_torchvisions(topk: int) -> None:
    model, maps, given, _ = scene([1], seed=3)
    logits, deltas = (part[0] for part in given.predictions)
    model.postprocess.topk_candidates = topk
    candidates = model.decode(maps, (list(logits), list(deltas)), (72, 120))
    found = model.postprocess(*candidates, (72, 120))
    theirs = SimpleNamespace(
        box_coder=tv.BoxCoder((10.0, 10.0, 5.0, 5.0)),
        score_thresh=0.01,
        topk_candidates=topk if topk >= 0 else 10**6,
        nms_thresh=0.45,
        detections_per_img=200,
    )
    anchors = torch.cat(model.anchor_generator(maps))
    outputs = {"bbox_regression": deltas, "cls_logits": background_first(logits)}
    (expected,) = tv_ssd.SSD.postprocess_detections(theirs, outputs, [anchors], [(72, 120)])
    assert len(found) == len(expected["scores"]) > 20
    torch.testing.assert_close(found.scores, expected["scores"])
    torch.testing.assert_close(found.pred_boxes.tensor, expected["boxes"])
    assert torch.equal(found.pred_classes, expected["labels"] - 1)


# Networks.


def test_l2norm_cell_by_cell() -> None:
    layer = L2Norm(5, scale=20.0)
    layer.scale.data = torch.rand(5)
    x = torch.randn(2, 5, 3, 4)
    x[0, :, 1, 2] = 0
    expected = torch.zeros_like(x)
    for n, i, j in np.ndindex(2, 3, 4):
        length = math.sqrt(sum(float(v) ** 2 for v in x[n, :, i, j]))
        if length:
            expected[n, :, i, j] = x[n, :, i, j] / length * layer.scale
    torch.testing.assert_close(layer(x), expected)
    large = (1e3 * x).half()  # squares beyond what half formats hold
    assert layer(large).dtype == torch.float16
    torch.testing.assert_close(layer(large).float(), expected, rtol=5e-3, atol=1e-3)


def test_vgg_options() -> None:
    model = VGG(
        channels=(4, 4, 8, 8, 8), depths=(1, 1, 2, 2, 2), fc_channels=12, norm="BN", freeze_at=2,
        out_features=["conv3_2", "fc7"],
    )  # fmt: skip
    maps = model(torch.rand(2, 3, 75, 100))
    assert {n: tuple(x.shape) for n, x in maps.items()} == {
        "conv3_2": (2, 8, 18, 25),
        "fc7": (2, 12, 4, 6),  # 9 x 13 after the third pooling, which rounds up
    }
    trained = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        "conv3_1", "conv3_2", "conv4_1", "conv4_2", "conv5_1", "conv5_2", "fc6", "fc7",
    }  # fmt: skip
    with pytest.raises(ValueError, match="conv9"):
        VGG(out_features=["conv9"])
    with pytest.raises(ValueError, match="an adapter"):
        SSDNeck(bottom_up=model, in_features=["fc7"], adapters=[], extra_blocks=[])


@pytest.fixture(params=["ssd_tiny", "rfb_tiny"])
def tiny(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


def test_every_parameter_learns(tiny: nn.Module) -> None:
    losses = tiny.train()(make_batch([(96, 128), (160, 100)], num_classes=NUM_CLASSES))
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    sum(losses.values()).backward()
    assert [n for n, p in tiny.named_parameters() if p.grad is None] == []


def test_a_batch_can_be_learnt_by_heart() -> None:
    model = build("ssd_tiny").train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    batch = make_batch([(64, 64)] * 2, num_classes=NUM_CLASSES, boxes_per_image=1)
    for _ in range(40):
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()  # the batch's statistics: 40 steps are too few for running averages
    for item, result in zip(batch, model(batch), strict=True):
        found, truth = result["instances"], item["instances"]
        assert found.pred_classes[0] == truth.gt_classes[0]
        assert (found.pred_boxes.tensor[0] - truth.gt_boxes.tensor[0]).abs().max() < 8


def test_images_without_ground_truth_and_bfloat16(tiny: nn.Module) -> None:
    batch = make_batch([(96, 128), (96, 128)], num_classes=NUM_CLASSES)
    for item in batch:
        item["instances"] = item["instances"][:0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = tiny.train()(batch)
        assert all(bool(loss.isfinite()) for loss in losses.values())
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        sum(losses.values()).backward()
    assert {float(loss.detach()) for loss in losses.values()} == {0.0}
    assert all(bool(p.grad.isfinite().all()) for p in tiny.parameters())
    found = tiny.eval()(batch)[0]["instances"]
    assert found.pred_boxes.tensor.dtype == torch.float32
    for p in tiny.parameters():
        p.data[:] = float("nan")
    assert [len(result["instances"]) for result in tiny(batch)] == [0, 0]


def test_zero_sized_truth_is_harmless() -> None:
    model, maps, given, truth = scene([2], seed=1)
    truth[0].gt_boxes = Boxes(torch.tensor([[5.0, 5.0, 5.0, 9.0], [10.0, 10.0, 40.0, 40.0]]))
    losses = model.prediction_losses(maps, given.predictions, truth, (72, 120))
    assert all(bool(loss.isfinite()) for loss in losses.values())
