"""Losses against torchvision's and against their formulae."""

import pytest
import torch
import torchvision
from torch.nn import functional as F

from d2proj.modeling.box_coding import Box2BoxTransform
from d2proj.modeling.losses import FocalLoss, GIoUBoxLoss, SmoothL1BoxLoss
from tests.modeling.test_parts import random_boxes


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.75, 1.5)])
def test_focal_loss(alpha: float, gamma: float) -> None:
    g = torch.Generator().manual_seed(0)
    logits = (torch.randn(50, 4, generator=g, dtype=torch.float64) * 4).requires_grad_()
    classes = torch.randint(-1, 5, (50,), generator=g)
    one_hot = F.one_hot(classes.clamp(min=0), 5)[:, :4].to(logits.dtype)
    valid = classes >= 0
    expected = torchvision.ops.sigmoid_focal_loss(
        logits[valid], one_hot[valid], alpha, gamma, reduction="sum"
    )
    loss = FocalLoss(alpha=alpha, gamma=gamma)(logits, classes)
    torch.testing.assert_close(loss, expected)
    (ours,), (theirs,) = (torch.autograd.grad(x, logits) for x in (loss, expected))
    torch.testing.assert_close(ours, theirs)


def test_focal_loss_of_extreme_logits_is_finite() -> None:
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    loss = FocalLoss()(logits, torch.tensor([0, 0]))
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(0.25 * 1e4 + 0.75 * 1e4))
    assert torch.isfinite(logits.grad).all()


def test_focal_loss_without_anchors_and_in_half_precision() -> None:
    assert FocalLoss()(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)) == 0
    x, classes = torch.randn(9, 3).bfloat16(), torch.arange(9) % 4
    assert torch.equal(FocalLoss()(x, classes), FocalLoss()(x.float(), classes))


def test_giou_loss() -> None:
    references, targets = random_boxes(40, 1).double(), random_boxes(40, 2).double()
    coder = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    deltas = torch.randn(40, 4, dtype=torch.float64, requires_grad=True)
    boxes = coder.apply_deltas(deltas, references)
    expected = 2.0 * torchvision.ops.generalized_box_iou_loss(boxes, targets, reduction="sum")
    loss = GIoUBoxLoss(weight=2.0)(deltas, references, targets, coder)
    torch.testing.assert_close(loss, expected)
    (ours,), (theirs,) = (torch.autograd.grad(x, deltas) for x in (loss, expected))
    torch.testing.assert_close(ours, theirs)


def test_giou_loss_of_empty_boxes_is_finite() -> None:
    point = torch.zeros(1, 4)
    deltas = torch.zeros(1, 4, requires_grad=True)
    GIoUBoxLoss()(deltas, point, point, Box2BoxTransform()).backward()
    assert torch.isfinite(deltas.grad).all()


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_smooth_l1_loss(beta: float) -> None:
    references, targets = random_boxes(40, 1), random_boxes(40, 2)
    coder = Box2BoxTransform()
    deltas = torch.randn(40, 4)
    error = (deltas - coder.get_deltas(references, targets)).abs()
    square = error**2 / (2 * beta) if beta else error
    expected = 3.0 * torch.where(error < beta, square, error - beta / 2).sum()
    loss = SmoothL1BoxLoss(beta=beta, weight=3.0)(deltas, references, targets, coder)
    torch.testing.assert_close(loss, expected)
