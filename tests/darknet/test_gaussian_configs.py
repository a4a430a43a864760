"""Hand-written Gaussian YOLOv3 against the network of darknet's cfg file for BDD100K."""

from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes, Instances

from d2proj.checkpoint import load_weights
from d2proj.checkpoint.darknet import Header, save_darknet_weights
from d2proj.darknet.detector import DarknetDetector
from d2proj.engine.config import build, load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "gaussian_yolov3"


def test_equals_its_cfg_file(data, randomise, tmp_path: Path, monkeypatch) -> None:
    """Weights through a file both ways, raw maps, detections and losses."""
    # Every weight comes from the file; drawing 62 M of them first takes seconds.
    monkeypatch.setattr(torch.nn.Conv2d, "reset_parameters", lambda self: None)
    theirs = DarknetDetector(cfg_file=data / "cfg" / "Gaussian_yolov3_BDD.cfg")
    randomise(theirs.backbone.network)
    path, again = tmp_path / "x.weights", tmp_path / "again.weights"
    save_darknet_weights(theirs.backbone.network, path, Header(seen=32013312))
    ours = build(load_config(CONFIGS / "gaussian_yolov3.py"), "model")
    assert not load_weights(ours, str(path), strict_classes=True).missing
    save_darknet_weights(ours, again, Header(seen=32013312))
    assert again.read_bytes() == path.read_bytes()

    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, 32, 64), dtype=torch.uint8, generator=generator)
    truth = Instances((32, 64), gt_boxes=Boxes(torch.tensor([[4.0, 4, 20, 22], [15, 10, 60, 30]])))
    truth.gt_classes = torch.tensor([3, 9])
    nothing = Instances((32, 64), gt_boxes=Boxes(torch.zeros(0, 4)))
    nothing.gt_classes = torch.zeros(0, dtype=torch.int64)
    batch = [{"image": image, "instances": truth}, {"image": 255 - image, "instances": nothing}]
    for model in (theirs, ours):
        model.eval()
        model.postprocess.score_thresh = 0.05
    x = image[None] / 255
    with torch.no_grad():
        (maps,) = ours.head([ours.backbone(x)[name] for name in ours.head_in_features])
        for found, wanted in zip(maps[::-1], theirs.backbone.network(x), strict=True):
            assert wanted.std() > 0.05
            assert torch.equal(found, wanted)
        detections = [[x["instances"] for x in model(batch)] for model in (ours, theirs)]
    for found, wanted in zip(*detections, strict=True):
        assert len(found) == len(wanted) > 10
        torch.testing.assert_close(found.scores, wanted.scores, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.pred_boxes.tensor, wanted.pred_boxes.tensor)
        assert torch.equal(found.pred_classes, wanted.pred_classes)
    losses = [model.train()(batch) for model in (ours, theirs)]
    assert losses[0].keys() == losses[1].keys()
    for key, value in losses[0].items():
        assert value > 0
        torch.testing.assert_close(value, losses[1][key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("classes", [1, 7])
def test_one_key_changes_the_classes(classes: int) -> None:
    cfg = load_config(CONFIGS / "gaussian_yolov3_tiny.py")
    assert cfg.model.num_classes is None
    cfg.model.num_classes = classes
    model = build(cfg, "model")
    assert [level[-1].out_channels for level in model.head.levels] == [3 * (9 + classes)] * 2
    assert {part.num_classes for part in (*model.decoders, *model.level_losses)} == {classes}
