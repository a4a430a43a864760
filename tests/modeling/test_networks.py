"""Backbone, neck, pooler and heads: shapes, names, arguments, and torchvision's same parts."""

import pytest
import torch
import torchvision
from torch import nn

from d2proj.layers import FrozenBatchNorm2d
from d2proj.modeling.backbones import BasicStem, ConvStem, ResNet, resnet_stages
from d2proj.modeling.dense_heads import RetinaNetHead
from d2proj.modeling.necks import FPN, LastLevelMaxPool, LastLevelP6P7
from d2proj.modeling.postprocess import PerClassNMS
from d2proj.modeling.roi_heads import FastRCNNConvFCHead, RoIPooler
from d2proj.ops.reference.multilevel_roi_align import assign_levels
from tests.modeling.test_parts import random_boxes


def tiny(**arguments: object) -> ResNet:
    options: dict = {"out_features": ["res3", "res4", "res5"]} | arguments
    return ResNet(
        stem=ConvStem(mid_channels=4, out_channels=8),
        stages=resnet_stages(depth=10, in_channels=8, width=8),
        **options,
    )


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_resnet_has_torchvisions_parameters(depth: int) -> None:
    with torch.device("meta"):
        ours = ResNet(stem=BasicStem(), stages=resnet_stages(depth=depth), out_features=["res5"])
        theirs = getattr(torchvision.models, f"resnet{depth}")()
    theirs.fc = nn.Identity()
    count = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    assert count[0] == count[1]


def test_resnet_18_equals_torchvisions() -> None:
    from d2proj.checkpoint.naming import torchvision_resnet_name

    ours = ResNet(stem=BasicStem(), stages=resnet_stages(depth=18), out_features=["res2", "res5"])
    theirs = torchvision.models.resnet18().eval()
    state = {
        torchvision_resnet_name(k): v for k, v in theirs.state_dict().items() if "fc." not in k
    }
    ours.load_state_dict(state)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found = ours.eval()(x)
        y = theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x)))))
        torch.testing.assert_close(found["res2"], y, rtol=1e-4, atol=1e-4)
        y = theirs.layer4(theirs.layer3(theirs.layer2(y)))
        torch.testing.assert_close(found["res5"], y, rtol=1e-4, atol=1e-4)


def test_output_shapes_are_those_announced() -> None:
    backbone = tiny(out_features=["stem", "res2", "res4"])
    maps = backbone(torch.zeros(1, 3, 64, 128))
    assert list(maps) == ["stem", "res2", "res4"]
    assert not hasattr(backbone, "res5")
    for name, shape in backbone.output_shape().items():
        assert maps[name].shape == (1, shape.channels, 64 // shape.stride, 128 // shape.stride)


def test_freeze_at() -> None:
    backbone = tiny(freeze_at=2)
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(name.startswith(("stem", "res2")) for name in frozen)
    assert isinstance(backbone.res2[0].conv1.norm, FrozenBatchNorm2d)
    assert isinstance(backbone.res3[0].conv1.norm, nn.BatchNorm2d)
    maps = backbone(torch.randn(2, 3, 64, 64))
    sum(x.sum() for x in maps.values()).backward()
    assert all((p.grad is None) == (name in frozen) for name, p in backbone.named_parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"out_features": ["res6"]}, "out_features"), ({"out_features": []}, "out_features")],
)
def test_resnet_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**arguments)
    with pytest.raises(ValueError, match=r"depth must be one of .*, got 20"):
        resnet_stages(depth=20)


@pytest.mark.parametrize(
    ("top_block", "levels"),
    [
        (None, [3, 4, 5]),
        (LastLevelMaxPool(), [3, 4, 5, 6]),
        (LastLevelP6P7(in_channels=64, out_channels=16), [3, 4, 5, 6, 7]),
        (LastLevelP6P7(in_channels=16, out_channels=16, in_feature="p5"), [3, 4, 5, 6, 7]),
    ],
)
def test_fpn_levels(top_block: nn.Module | None, levels: list[int]) -> None:
    fpn = FPN(
        bottom_up=tiny(), in_features=["res3", "res4", "res5"], out_channels=16, top_block=top_block
    )
    maps = fpn(torch.randn(1, 3, 128, 256))
    assert list(maps) == [f"p{k}" for k in levels] == list(fpn.output_shape())
    for k in levels:
        assert maps[f"p{k}"].shape == (1, 16, 128 // 2**k, 256 // 2**k)
        assert fpn.output_shape()[f"p{k}"].stride == 2**k
    assert fpn.size_divisibility == 32


def test_fpn_equals_torchvisions() -> None:
    ours = FPN(bottom_up=tiny(), in_features=["res3", "res4", "res5"], out_channels=16)
    theirs = torchvision.ops.FeaturePyramidNetwork([16, 32, 64], 16)
    for i in range(3):
        theirs.inner_blocks[i][0] = getattr(ours, f"fpn_lateral{i + 3}")
        theirs.layer_blocks[i][0] = getattr(ours, f"fpn_output{i + 3}")
    x = torch.randn(2, 3, 64, 64)
    ours.eval()
    with torch.no_grad():
        for a, b in zip(ours(x).values(), theirs(ours.bottom_up(x)).values(), strict=True):
            torch.testing.assert_close(a, b)


def test_fpn_wants_doubling_strides() -> None:
    with pytest.raises(ValueError, match="strides double"):
        FPN(bottom_up=tiny(), in_features=["res3", "res5"], out_channels=16)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_pooler_equals_torchvisions(sampling_ratio: int) -> None:
    maps = [torch.randn(2, 5, 256 // s, 256 // s) for s in (4, 8, 16, 32)]
    boxes = [random_boxes(40, 1, 250.0) * torch.tensor([1, 1, 2, 2]), random_boxes(30, 2, 60.0)]
    boxes[0] = boxes[0].clamp(max=256)
    ours = RoIPooler(
        output_size=7,
        scales=[1 / 4, 1 / 8, 1 / 16, 1 / 32],
        sampling_ratio=sampling_ratio,
        aligned=False,
        canonical_size=112,
    )
    theirs = torchvision.ops.MultiScaleRoIAlign(
        list("0123"), 7, max(sampling_ratio, -1), canonical_scale=112
    )
    expected = theirs(dict(zip("0123", maps, strict=True)), boxes, [(256, 256)] * 2)
    torch.testing.assert_close(ours(maps, boxes), expected)
    levels = assign_levels(torch.cat(boxes), min_level=2, max_level=5, canonical_size=112)
    assert len(levels.unique()) > 1, "the boxes should fall on several levels"


def test_pooler_edges() -> None:
    pooler = RoIPooler(output_size=2, scales=[1 / 4, 1 / 8])
    maps = [torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4)]
    assert pooler(maps, [torch.zeros(0, 4)] * 2).shape == (0, 3, 2, 2)
    odd = torch.tensor([[float("nan")] * 4, [0, 0, float("inf"), 9], [5, 5, 5, 5], [9, 9, 1, 1]])
    assert pooler(maps, [odd, odd]).shape == (8, 3, 2, 2)
    with pytest.raises(ValueError, match="halving powers of two"):
        RoIPooler(output_size=2, scales=[1 / 4, 1 / 16])


def test_box_head() -> None:
    head = FastRCNNConvFCHead(
        in_channels=6, pooler_size=3, conv_dims=[8, 8], fc_dims=[10, 12], conv_norm="BN"
    )
    assert head(torch.randn(4, 6, 3, 3)).shape == (4, 12) == (4, head.out_features)
    assert head.eval()(torch.zeros(0, 6, 3, 3)).shape == (0, 12)
    assert {"conv1.norm.weight", "conv2.weight", "fc1.weight", "fc2.bias"} <= set(head.state_dict())


@pytest.mark.parametrize("norm", ["", "BN", "GN"])
def test_retinanet_head(norm: str) -> None:
    head = RetinaNetHead(
        in_channels=32, num_classes=3, num_anchors=2, num_levels=2, conv_dims=[32, 32], norm=norm
    )
    logits, deltas = head([torch.randn(2, 32, 4, 6), torch.randn(2, 32, 2, 3)])
    assert [tuple(x.shape) for x in logits] == [(2, 48, 3), (2, 12, 3)]
    assert [tuple(x.shape) for x in deltas] == [(2, 48, 4), (2, 12, 4)]
    assert abs(logits[0].sigmoid().mean() - 0.01) < 0.005  # the prior


def test_predictions_are_ordered_as_anchors() -> None:
    head = RetinaNetHead(in_channels=4, num_classes=3, num_anchors=2, conv_dims=[])
    x = torch.randn(1, 4, 5, 7)
    logits, _ = head([x])
    raw = head.cls_score(x)  # channel a * 3 + k
    row, column, anchor, kind = 3, 2, 1, 2
    assert (
        logits[0][0, (row * 7 + column) * 2 + anchor, kind]
        == raw[0, anchor * 3 + kind, row, column]
    )


def test_nms_postprocess() -> None:
    boxes = torch.tensor(
        [[0.0, 0, 10, 10], [1, 1, 10, 10], [1, 1, 10, 10], [50, 50, 99, 99], [float("nan")] * 4]
    )
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.95])
    classes = torch.tensor([0, 0, 1, 0, 0])
    found = PerClassNMS()(boxes, scores, classes, (60, 80))
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert found.pred_classes.tolist() == [0, 1, 0]
    assert found.pred_boxes.tensor[2].tolist() == [50, 50, 80, 60]
    assert len(PerClassNMS(max_detections=1)(boxes, scores, classes, (60, 80))) == 1
    assert len(PerClassNMS()(boxes[:0], scores[:0], classes[:0], (60, 80))) == 0
