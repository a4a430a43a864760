"""What every model of the YOLO family is put through: a batch by heart, images of any kind."""

from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from d2proj.ops import box_iou


def sample(height: int, width: int, boxes: list[list[float]], seed: int = 0) -> dict[str, Any]:
    """Noise, in which each box is bright in the colour of its class."""
    g = torch.Generator().manual_seed(seed)
    truth = Instances((height, width))
    truth.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    truth.gt_classes = torch.arange(len(boxes)) % 3
    image = torch.randint(0, 100, (3, height, width), dtype=torch.uint8, generator=g)
    for k, box in enumerate(boxes):
        x0, y0, x1, y1 = map(int, box)
        image[k % 3, y0:y1, x0:x1] += 155
    return {"image": image, "instances": truth}


def learn_by_heart(
    model: nn.Module, *, steps: int, score_thresh: float
) -> tuple[list[dict[str, float]], int]:
    """Train on two images, one of them empty; what is in the other must be found.

    Returns:
        The losses of each step, and how many boxes were found in the empty image.
    """
    model.train()
    truth = [[6.0, 8.0, 40.0, 50.0], [50.0, 10.0, 90.0, 60.0]]
    batch = [sample(64, 96, truth), sample(64, 96, [], seed=1)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for _ in range(steps):
        losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 35.0)
        optimizer.step()
        history.append({key: float(loss.detach()) for key, loss in losses.items()})
    # Statistics of so few images lag behind.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        for _ in range(2):
            model(batch)
        model.eval().postprocess.score_thresh = score_thresh
        full, empty = (x["instances"] for x in model(batch))
    iou = box_iou(torch.tensor(truth), full.pred_boxes.tensor)
    assert (iou.amax(1) > 0.6).all(), iou
    assert full.pred_classes[iou.argmax(1)].tolist() == [0, 1]
    return history, len(empty)


def take_any_images(model: nn.Module, *, autocast: bool) -> None:
    """Odd sizes, no boxes at all, boxes of a pixel, bfloat16: finite losses and gradients."""
    model.train()
    batches = [
        [sample(45, 77, [[0, 0, 77, 45], [3, 3, 4, 4]]), sample(33, 20, [[0, 0, 20, 33]])],
        [sample(32, 32, []), sample(64, 64, [])],
    ]
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = model(batch)
        assert all(bool(loss.isfinite()) for loss in losses.values())
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        model.zero_grad()
        sum(losses.values()).backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = model([{**x, "height": 90, "width": 154} for x in batches[0]])
    assert all(x["instances"].image_size == (90, 154) for x in found)
