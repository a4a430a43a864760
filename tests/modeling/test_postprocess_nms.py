"""DIoU-NMS as the YOLOv4 configs have it, against a direct loop."""

from pathlib import Path

import pytest
import torch

from d2proj.engine.config import build, load_config
from d2proj.modeling.postprocess import PerClassDIoUNMS, PerClassNMS

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "yolov4"


def criterion(a: list[float], b: list[float], beta: float) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(w, 0) * max(h, 0)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    apart = ((a[0] + a[2] - b[0] - b[2]) ** 2 + (a[1] + a[3] - b[1] - b[3]) ** 2) / 4
    hull = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    return inter / (areas - inter) - (apart / hull) ** beta


def loop(boxes, scores, classes, threshold: float, beta: float) -> list[int]:
    order = sorted(range(len(boxes)), key=lambda i: -scores[i])
    kept: list[int] = []
    for i in order:
        rivals = [j for j in kept if classes[j] == classes[i]]
        if all(criterion(boxes[j], boxes[i], beta) <= threshold for j in rivals):
            kept.append(i)
    return kept


@pytest.mark.parametrize(("name", "beta"), [("yolov4", 0.6), ("yolov4_paper", 1.0)])
def test_configs_keep_what_a_loop_keeps(name: str, beta: float) -> None:
    postprocess = build(load_config(CONFIGS / f"{name}.py"), "model.postprocess")
    assert isinstance(postprocess, PerClassDIoUNMS)
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(150, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 20 + torch.rand(150, 2, generator=generator) * 40], 1)
    scores = torch.rand(150, generator=generator)
    classes = torch.randint(0, 2, (150,), generator=generator)
    found = postprocess(boxes, scores, classes, (120, 120))
    kept = loop(boxes.double().tolist(), scores.tolist(), classes.tolist(), 0.45, beta)
    assert torch.equal(found.pred_boxes.tensor, boxes[kept][:100])
    assert torch.equal(found.scores, scores[kept][:100])
    assert torch.equal(found.pred_classes, classes[kept][:100])
    plain = PerClassNMS(nms_thresh=0.45)(boxes, scores, classes, (120, 120))
    assert len(plain) < len(found)  # what is spared makes the difference


def test_not_finite_boxes_are_dropped_and_the_best_are_kept() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, float("nan"), 9], [20, 20, 29, 29], [0, 0, 9, 8]])
    scores = torch.tensor([0.5, 0.9, 0.7, 0.4])
    classes = torch.zeros(4, dtype=torch.int64)
    postprocess = PerClassDIoUNMS(nms_thresh=0.5, max_detections=1, clip=False)
    found = postprocess(boxes, scores, classes, (32, 32))
    assert found.pred_boxes.tensor.tolist() == [[20, 20, 29, 29]]
    empty = postprocess(boxes[:0], scores[:0], classes[:0], (32, 32))
    assert len(empty) == 0
