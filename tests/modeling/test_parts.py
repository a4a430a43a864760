"""Boxes, anchors, matching, sampling and coding against torchvision's implementations."""

import math

import pytest
import torch
import torchvision
from torchvision.models.detection import _utils as tv
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchors
from torchvision.models.detection.image_list import ImageList as TorchvisionImages

from d2proj.modeling.box_coding import Box2BoxTransform
from d2proj.modeling.boxes import are_finite, clip_boxes, pairwise_iou
from d2proj.modeling.matching import Matcher
from d2proj.modeling.priors import AnchorGenerator, RoundedAnchorGenerator
from d2proj.modeling.sampling import subsample


def random_boxes(n: int, seed: int = 0, size: float = 100.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=g) * size
    return torch.cat((corner, corner + torch.rand(n, 2, generator=g) * size / 2 + 1), dim=1)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1), (7, 33)])
def test_pairwise_iou(shape: tuple[int, int]) -> None:
    a, b = random_boxes(shape[0], 1), random_boxes(shape[1], 2)
    torch.testing.assert_close(pairwise_iou(a, b), torchvision.ops.box_iou(a, b))


def test_iou_of_empty_boxes_is_zero() -> None:
    point = torch.tensor([[3.0, 3.0, 3.0, 3.0]])
    assert pairwise_iou(point, point).item() == 0.0


def test_clip_and_finiteness() -> None:
    boxes = random_boxes(20, size=200.0) - 50
    expected = torchvision.ops.clip_boxes_to_image(boxes, (60, 90))
    assert torch.equal(clip_boxes(boxes, (60, 90)), expected)
    boxes[0, 1], boxes[1, 3] = math.nan, math.inf
    scores = torch.zeros(20)
    scores[2] = math.nan
    assert are_finite(boxes, scores).tolist() == [False] * 3 + [True] * 17


def test_anchors_equal_torchvisions_rounded_ones() -> None:
    sizes, ratios = ((16, 20), (32, 40), (64, 80)), ((0.5, 1.0, 2.0),) * 3
    maps = [torch.zeros(2, 1, 64 // s, 96 // s) for s in (8, 16, 32)]
    theirs = TorchvisionAnchors(sizes, ratios)
    images = TorchvisionImages(torch.zeros(2, 3, 64, 96), [(64, 96)] * 2)
    expected = (
        theirs(images, maps)[0].view(-1, 3, 2, 4).transpose(1, 2)
    )  # there: sizes inside ratios
    ours = RoundedAnchorGenerator(sizes=sizes, aspect_ratios=ratios, strides=(8, 16, 32))
    assert ours.num_anchors == [6, 6, 6]
    assert torch.equal(torch.cat(ours(maps)), expected.reshape(-1, 4))


def test_anchors_have_the_area_and_shape_asked_for() -> None:
    generator = AnchorGenerator(
        sizes=[[30.0, 50.0]], aspect_ratios=[[0.25, 4.0]], strides=[10], offset=0.5
    )
    (anchors,) = generator([torch.zeros(1, 1, 2, 3)])
    anchors = anchors.view(2, 3, 4, 4)
    w, h = (anchors[..., 2:] - anchors[..., :2]).unbind(-1)
    torch.testing.assert_close((w * h).sqrt()[1, 2], torch.tensor([30.0, 30.0, 50.0, 50.0]))
    torch.testing.assert_close((h / w)[0, 0], torch.tensor([0.25, 4.0, 0.25, 4.0]))
    centre = (anchors[1, 2, 0, :2] + anchors[1, 2, 0, 2:]) / 2
    assert centre.tolist() == [25.0, 15.0]


def test_anchors_made_in_inference_mode_serve_training() -> None:
    generator = AnchorGenerator(sizes=[[16]], aspect_ratios=[[1.0]], strides=[8])
    with torch.inference_mode():
        generator([torch.zeros(1, 1, 2, 2)])
    (anchors,) = generator([torch.zeros(1, 1, 2, 2)])
    (anchors * torch.ones(4, 1, requires_grad=True)).sum().backward()
    assert (
        len(generator([torch.zeros(1, 1, 3, 2)])[0]) == 6
    )  # another size is not answered from memory


def test_anchor_arguments() -> None:
    with pytest.raises(ValueError, match="anchor sizes: 1 or 2 lists expected, got 3"):
        AnchorGenerator(sizes=[[1], [2], [3]], aspect_ratios=[[1.0]], strides=[8, 16])
    with pytest.raises(ValueError, match="offset must be in"):
        AnchorGenerator(sizes=[[1]], aspect_ratios=[[1.0]], strides=[8], offset=1.0)
    generator = AnchorGenerator(sizes=[[1]], aspect_ratios=[[1.0]], strides=[8, 16])
    with pytest.raises(ValueError, match="anchors for 2 levels, got 1 maps"):
        generator([torch.zeros(1, 1, 2, 2)])


@pytest.mark.parametrize("low_quality", [False, True])
def test_matcher(low_quality: bool) -> None:
    quality = pairwise_iou(random_boxes(6, 1), random_boxes(400, 2))
    quality[3] = quality[3].clamp(max=0.2)  # only a low-quality match for this one
    ours = Matcher(thresholds=[0.3, 0.6], labels=[0, -1, 1], allow_low_quality_matches=low_quality)
    matches, labels = ours(quality)
    expected = tv.Matcher(0.6, 0.3, allow_low_quality_matches=low_quality)(quality)
    assert torch.equal(labels == 1, expected >= 0)
    assert torch.equal(labels == 0, expected == tv.Matcher.BELOW_LOW_THRESHOLD)
    assert torch.equal(matches[expected >= 0], expected[expected >= 0])
    assert (labels[quality[3] == quality[3].max()] == 1).all() == low_quality


def test_a_truth_that_overlaps_nothing_matches_nothing() -> None:
    matcher = Matcher(thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=True)
    _, labels = matcher(torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.2, 0.0]]))
    assert labels.tolist() == [0, 1, 0]


def test_matcher_without_truth_or_predictions() -> None:
    matcher = Matcher(thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=True)
    matches, labels = matcher(torch.zeros(0, 3))
    assert (matches.tolist(), labels.tolist()) == ([0, 0, 0], [0, 0, 0])
    assert [len(t) for t in matcher(torch.zeros(2, 0))] == [0, 0]


@pytest.mark.parametrize(
    "arguments", [([0.5, 0.3], [0, -1, 1]), ([0.5], [0, -1, 1]), ([0.5], [0, 2])]
)
def test_matcher_arguments(arguments: tuple[list, list]) -> None:
    with pytest.raises(ValueError, match="match"):
        Matcher(thresholds=arguments[0], labels=arguments[1])


def test_subsample() -> None:
    labels = torch.tensor([7] * 50 + [-1] * 10 + [0, 1, 2] * 10)  # 7: background
    draw = {"num_samples": 40, "background": 7}
    positive, negative = subsample(labels, positive_fraction=0.25, **draw)
    assert (len(positive), len(set(positive.tolist()))) == (10, 10)
    assert (len(negative), len(set(negative.tolist()))) == (30, 30)
    assert set(labels[positive].tolist()) <= {0, 1, 2}
    assert set(labels[negative].tolist()) == {7}
    positive, negative = subsample(labels, positive_fraction=1.0, **draw)
    assert (len(positive), len(negative)) == (30, 10)  # all there are; negatives fill the rest
    torch.manual_seed(1)
    once = subsample(labels, positive_fraction=0.25, **draw)
    torch.manual_seed(1)
    again = subsample(labels, positive_fraction=0.25, **draw)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_box_coding() -> None:
    references, targets = random_boxes(30, 1), random_boxes(30, 2)
    weights = (10.0, 10.0, 5.0, 5.0)
    ours, theirs = Box2BoxTransform(weights=weights), tv.BoxCoder(weights)
    deltas = ours.get_deltas(references, targets)
    torch.testing.assert_close(deltas, theirs.encode_single(targets, references))
    torch.testing.assert_close(ours.apply_deltas(deltas, references), targets, rtol=1e-4, atol=1e-3)
    many = torch.randn(30, 12)
    many[0, 2] = 1e4  # clamped: exp would overflow
    expected = theirs.decode_single(many, references).reshape(30, 12)
    torch.testing.assert_close(ours.apply_deltas(many, references), expected)
    assert ours.apply_deltas(many.half(), references).dtype == torch.float32
    assert ours.apply_deltas(many[:0], references[:0]).shape == (0, 12)
