"""Every configuration file loads and builds; the small ones train a step and infer."""

from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig
from detectron2.structures import Boxes, Instances

from d2proj.engine import setup
from d2proj.engine.config import build, load_config, save_config
from d2proj.engine.options import NODES

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted(p for p in (ROOT / "configs").glob("*/*.py") if p.parent.name != "common")
NUM_CLASSES = 3
SMALL = 22_000_000  # parameters; the R-18 of each family and what is below


# A network for the config that takes its network from a darknet cfg file.
DARKNET = """[net]
width=96
height=64
[convolutional]
batch_normalize=1
filters=16
size=3
stride=16
pad=1
activation=leaky
[convolutional]
filters=16
activation=linear
[yolo]
classes=3
num=2
anchors=20,20,60,50
iou_loss=ciou
iou_thresh=0.2
"""


def config_id(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def sample(height: int, width: int, boxes: list[list[float]]) -> dict:
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.arange(len(boxes)) % NUM_CLASSES
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": 2 * height, "width": 2 * width}


def test_there_are_configs():
    assert len(CONFIGS) >= 12


@pytest.mark.parametrize("path", CONFIGS, ids=config_id)
def test_config(path, tmp_path):
    cfg = load_config(path)
    cfg.model.num_classes = NUM_CLASSES
    if "cfg_file" in cfg.model:
        cfg.model.cfg_file = str(tmp_path / "darknet.cfg")
        (tmp_path / "darknet.cfg").write_text(DARKNET)
    torch.manual_seed(0)
    model = setup.build_model(cfg, torch.device("cpu"), seed=0)
    assert model.num_classes == NUM_CLASSES
    optimizer = setup.build_optimizer(cfg, model)
    setup.build_schedule(cfg)
    build(cfg, "data.train_augmentations")
    build(cfg, "data.batch_augmentations")
    build(cfg, "data.val_augmentations")

    save_config(cfg, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml").model.num_classes == NUM_CLASSES
    if sum(p.numel() for p in model.parameters()) < SMALL:
        check_step(model, optimizer)


def check_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One step changes weights, losses are finite, boxes are of the original frame's size."""
    batch = [sample(64, 96, [[8, 8, 40, 44], [30, 20, 90, 60]]), sample(64, 64, [])]
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    losses = model.train()(batch)
    assert all(bool(loss.isfinite()) for loss in losses.values()), losses
    sum(losses.values()).backward()
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    optimizer.step()
    after = [p.detach() for p in model.parameters() if p.requires_grad]
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))

    with torch.no_grad():
        outputs = model.eval()(batch)
    assert [o["instances"].image_size for o in outputs] == [(128, 192), (128, 128)]
    assert all(len(o["instances"]) <= 1000 for o in outputs)


def test_common_files_have_exactly_the_known_keys():
    """What the command line checks (engine/options.py) is what configs/common sets."""

    def keys(node, prefix="") -> set[str]:
        found: set[str] = set()
        for name, value in node.items():
            nested = isinstance(value, dict) or hasattr(value, "items")
            found |= keys(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}"}
        return found

    for name, options in NODES.items():
        cfg = LazyConfig.load(str(ROOT / "configs" / "common" / f"{name}.py"))
        assert keys(cfg[name]) == set(options)


def test_every_key_is_documented():
    text = (ROOT / "docs" / "command_line.md").read_text()
    for name, options in NODES.items():
        for key in options:
            assert f"`{name}.{key}`" in text, f"{name}.{key}"
