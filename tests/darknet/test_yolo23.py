"""Hand-written YOLOv2 and YOLOv3 against the networks of their cfg files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, Instances

from d2proj.checkpoint import load_weights
from d2proj.checkpoint.darknet import Header, save_darknet_weights
from d2proj.darknet.detector import DarknetDetector
from d2proj.engine.config import build, load_config
from d2proj.modeling.meta_arch import YOLO

ROOT = Path(__file__).resolve().parents[2]
#: Config, and the cfg file that it writes out.
PAIRS = {
    "yolov2/yolov2": "yolov2",
    "yolov2/yolov2_voc": "yolov2-voc",
    "yolov2/yolov2_tiny": "yolov2-tiny",
    "yolov3/yolov3": "yolov3",
    "yolov3/yolov3_spp": "yolov3-spp",
    "yolov3/yolov3_tiny": "yolov3-tiny",
}
SIZES = [(64, 96), (64, 64)]


@pytest.fixture(autouse=True)
def no_initial_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test fills all weights itself; drawing 60 M of them first takes seconds."""
    monkeypatch.setattr(torch.nn.Conv2d, "reset_parameters", lambda self: None)


def config_model(name: str, **changes: Any) -> YOLO:
    cfg = load_config(ROOT / "configs" / f"{name}.py", [f"{k}={v}" for k, v in changes.items()])
    return build(cfg, "model")


def images(generator: torch.Generator) -> list[dict[str, Any]]:
    """Two pictures with three boxes and with none."""
    found = []
    for (height, width), count in zip(SIZES, (3, 0), strict=True):
        corner = torch.rand(count, 2, generator=generator) * 30
        size = torch.rand(count, 2, generator=generator) * 30 + 4
        truth = Instances((height, width))
        truth.gt_boxes = Boxes(torch.cat([corner, corner + size], 1))
        truth.gt_classes = torch.randint(0, 20, (count,), generator=generator)
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        found.append({"image": image, "instances": truth})
    return found


@pytest.mark.parametrize("name", PAIRS)
def test_equals_its_cfg_file(name: str, data, randomise, tmp_path: Path) -> None:
    """Weights through a file both ways, raw maps, detections and losses."""
    theirs = DarknetDetector(cfg_file=data / "cfg" / f"{PAIRS[name]}.cfg", max_detections=300)
    randomise(theirs.backbone.network)
    path, again = tmp_path / "x.weights", tmp_path / "again.weights"
    save_darknet_weights(theirs.backbone.network, path, Header(seen=32013312))
    ours = config_model(name)
    ours.postprocess.max_detections = 300
    report = load_weights(ours, str(path), strict_classes=True)
    assert not report.missing
    assert "trained on 32013312 images" in report.notes
    save_darknet_weights(ours, again, Header(seen=32013312))
    assert again.read_bytes() == path.read_bytes()

    generator = torch.Generator().manual_seed(1)
    batch = images(generator)
    for model in (theirs, ours):
        model.eval()
        model.postprocess.score_thresh = 0.05 if "v3" in name else 0.008  # exclusive classes
    image = torch.rand(1, 3, 64, 96, generator=generator)
    with torch.no_grad():
        (maps,) = ours.head([ours.backbone(image)[name] for name in ours.head_in_features])
        expected = theirs.backbone.network(image)
        assert len(maps) == len(expected)
        for found, wanted in zip(maps[::-1], expected, strict=True):  # darknet begins with coarse
            assert wanted.std() > 0.05
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
        detections = [[x["instances"] for x in model(batch)] for model in (ours, theirs)]
    for found, wanted in zip(*detections, strict=True):
        assert len(found) == len(wanted) > 10
        torch.testing.assert_close(found.scores, wanted.scores, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            found.pred_boxes.tensor, wanted.pred_boxes.tensor, rtol=1e-5, atol=1e-4
        )
        assert torch.equal(found.pred_classes, wanted.pred_classes)

    losses = [model.train()(batch) for model in (ours, theirs)]
    assert losses[0].keys() == losses[1].keys() == {"loss_box", "loss_obj", "loss_cls"}
    for key, value in losses[0].items():
        assert value > 0
        torch.testing.assert_close(value, losses[1][key], rtol=1e-5, atol=1e-6)
