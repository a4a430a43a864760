"""Inputs and comparisons for whole detectors."""

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn


def make_batch(
    sizes: list[tuple[int, int]], *, num_classes: int, boxes_per_image: int = 4, seed: int = 0
) -> list[dict]:
    """Random pictures with random boxes, as Detectron2's input dicts."""
    g = torch.Generator().manual_seed(seed)
    batch = []
    for i, (h, w) in enumerate(sizes):
        corner = torch.rand(boxes_per_image, 2, generator=g) * torch.tensor([0.5 * w, 0.5 * h])
        extent = torch.rand(boxes_per_image, 2, generator=g) * torch.tensor([0.4 * w, 0.4 * h]) + 8
        truth = Instances(
            (h, w),
            gt_boxes=Boxes(torch.cat((corner, corner + extent), dim=1)),
            gt_classes=torch.randint(num_classes, (boxes_per_image,), generator=g),
        )
        # Smooth pictures: independent pixels would average out to nothing on coarse levels.
        coarse = torch.rand(1, 3, h // 8, w // 8, generator=g)
        image = nn.functional.interpolate(coarse, size=(h, w), mode="bilinear")[0] * 255
        batch.append(
            {
                "image": image.to(torch.uint8),
                "height": h,
                "width": w,
                "instances": truth,
                "file_name": f"{i}.jpg",
            }
        )
    return batch


def assert_same_losses(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Equal to 1e-5 of their values."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert float(value.detach()) > 0, f"{name} is 0: nothing is compared"
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=0, check_dtype=False)


def assert_same_detections(ours: Instances, theirs: Instances, at_least: int = 10) -> None:
    """Equal in number and classes, boxes within 1e-3 pixels, scores within 1e-5.

    Detections whose scores differ by less than rounding may come in either order, so both are
    sorted by class and position first.
    """
    assert len(ours) == len(theirs) >= at_least
    ours, theirs = _sorted(ours), _sorted(theirs)
    assert ours.pred_classes.tolist() == theirs.pred_classes.tolist()
    assert (ours.pred_boxes.tensor - theirs.pred_boxes.tensor).abs().max() < 1e-3
    assert (ours.scores - theirs.scores).abs().max() < 1e-5


def _sorted(found: Instances) -> Instances:
    keys = [
        (c, *(round(v) for v in box))
        for c, box in zip(
            found.pred_classes.tolist(), found.pred_boxes.tensor.tolist(), strict=True
        )
    ]
    return found[sorted(range(len(keys)), key=keys.__getitem__)]


def spread_predictions(model: nn.Module, scales: dict[str, float], seed: int = 0) -> None:
    """Redraw the weights of prediction layers with the given standard deviations.

    Freshly initialised predictors give the same score everywhere: nothing would be detected, and
    what is best would be decided by rounding.
    """
    g = torch.Generator().manual_seed(seed)
    layers = dict(model.named_modules())
    for name, std in scales.items():
        weight = layers[name].weight
        weight.data = torch.randn(weight.shape, generator=g) * std


def calibrate_batch_norms(backbone: nn.Module, images: Tensor) -> None:
    """Set running statistics to those of the images: random weights then give sane activations."""
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
    backbone.train()
    with torch.no_grad():
        backbone(images)
    backbone.eval()
