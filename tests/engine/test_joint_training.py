"""YOLO9000 trained from the command line on boxes of common things and labels of rare ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2proj.engine import command_line

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "yolo9000" / "yolo9000_tiny.py"
COLOURS = {"animal": (0, 0, 255), "vehicle": (255, 255, 0), "cat": (255, 0, 0)}
TINY = (
    *("model.backbone.stages.width=2", "model.head.in_channels=[128]", "model.head.conv_dims=[32]"),
    *("data.train_augmentations=[]", "data.val_augmentations=[]", "data.workers=0"),
    *("data.batch_size=4", "train.max_iter=6", "train.log_period=1", "train.tensorboard=false"),
    *("train.checkpoint.period_iters=3", "eval.period_epochs=0"),
)


def picture(rng: np.random.Generator, colour: tuple[int, int, int]) -> tuple[Image.Image, list]:
    x, y = rng.integers(0, 32, 2).tolist()
    w, h = rng.integers(32, 64, 2).tolist()
    pixels = np.full((96, 96, 3), 60, dtype=np.uint8)
    pixels[y : y + h, x : x + w] = colour
    return Image.fromarray(pixels), [x, y, w, h]


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., int]:
    """Run train_net.py on boxes of animals, vehicles and cats, and pictures of dogs and cats."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for i in range(9):
        image, box = picture(rng, list(COLOURS.values())[i % 3])
        image.save(tmp_path / "images" / f"{i}.png")
        images.append({"id": i + 1, "file_name": f"{i}.png", "width": 96, "height": 96})
        shared = {"id": i + 1, "image_id": i + 1, "area": box[2] * box[3], "iscrowd": 0}
        annotations.append({**shared, "category_id": i % 3 + 1, "bbox": box})
    categories = [{"id": i, "name": name} for i, name in enumerate(COLOURS, start=1)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    for kind in ("n02084071", "cat"):
        (tmp_path / "labelled" / kind).mkdir(parents=True)
        for i in range(4):
            picture(rng, (0, 0, 255))[0].save(tmp_path / "labelled" / kind / f"{i}.png")
    (tmp_path / "x.tree").write_text("animal -1\nvehicle -1\nn02121808 0\nn02084071 0\n")
    (tmp_path / "x.map").write_text("0\n1\n2\n")
    paths = [
        f"dataset.{split}.{key}={tmp_path / value}"
        for split in ("train", "val")
        for key, value in (("json", "boxes.json"), ("images", "images"))
    ]
    tree = [f"model.tree.path={tmp_path / 'x.tree'}", f"model.tree.class_map={tmp_path / 'x.map'}"]
    labelled = f"dataset.train.classification={tmp_path / 'labelled'}"

    def run(*args: str, out: str = "run", config: Path = CONFIG) -> int:
        own = [*tree, *TINY] if config == CONFIG else TINY[3:]
        given = ["dataset.format=coco", f"train.output_dir={tmp_path / out}", *paths, labelled]
        try:
            command_line.main(["--config-file", str(config), *given, *own, *args])
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run


def test_a_run_and_its_resumption(train, losses, tmp_path, capsys):
    assert train() == 0
    output = capsys.readouterr().out
    assert "17 images (8 labelled without boxes, 0 empty), 9 boxes of 3 classes" in output
    assert "labels without boxes, of 2 classes: cat 4, n02084071 4" in output
    # 9 images with boxes, 0.8 of them in a batch of 4 on average.
    assert "(11.3 iterations an epoch)" in output
    whole = losses("run")
    assert sorted(whole) == list(range(6))
    assert np.isfinite(list(whole.values())).all()
    results = json.loads((tmp_path / "run" / "results.json").read_text())["bbox"]
    assert {"AP", "AP-animal", "AP-vehicle", "AP-cat"} <= results.keys()
    assert "AP-n02084071" not in results
    # As if it had been interrupted after the third iteration.
    shutil.copytree(tmp_path / "run", tmp_path / "parts")
    (tmp_path / "parts" / "last_checkpoint").write_text("model_0000002.pth")
    assert train("--resume", "data.workers=2", out="parts") == 0
    assert "training from iteration 3 to 6" in capsys.readouterr().out
    assert losses("parts") == whole
    # Other boxes and labels, other losses.
    assert train("data.classification_share=0.5", out="half") == 0
    assert losses("half") != whole
    # The trained model is evaluated without the pictures, and as it was.
    assert train("--eval-only", "dataset.train.classification=null") == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["bbox"] == results


def test_fast_dev_run(train, tmp_path):
    assert train("train.fast_dev_run=true") == 0
    assert (tmp_path / "run" / "fast_dev_run" / "model_final.pth").exists()


def test_an_unknown_folder(train, tmp_path, capsys):
    (tmp_path / "labelled" / "cat").rename(tmp_path / "labelled" / "vehicles")
    assert train() == 2
    assert capsys.readouterr().err == (
        "error: dataset.train.classification has a folder 'vehicles', which names no class of the "
        "data and no node of the class tree; did you mean 'vehicle'?\n"
    )
    assert not (tmp_path / "run").exists()
    (tmp_path / "x.tree").write_text("animal -1\nvehicles -1\nvehicles 0\nn02084071 0\n")
    assert train() == 2
    assert "names 2 nodes of the class tree" in capsys.readouterr().err


@pytest.mark.parametrize("config", ["retinanet/retinanet_tiny.py", "yolov3/yolov3_tiny.py"])
def test_other_detectors_refuse(train, tmp_path, capsys, config):
    path = ROOT / "configs" / config
    assert train("model.num_classes=null", config=path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 8 images to train on have labels without boxes, which ")
    assert "cannot learn from (YOLO9000 can)" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
    document = json.loads((tmp_path / "boxes.json").read_text())
    document["annotations"][0]["bbox"] = None
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    assert train("dataset.train.classification=null", "model.num_classes=null", config=path) == 2
    assert "error: 1 images to train on" in capsys.readouterr().err
