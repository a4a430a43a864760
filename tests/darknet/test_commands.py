"""What a user types: evaluation, prediction and training of cfg files."""

import json
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from d2proj import predict
from d2proj.engine import command_line
from d2proj.evaluation.coco_classes import coco_classes

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "darknet" / "from_cfg.py"
# shared/data/README.md: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl.
PUBLISHED = {
    "yolo-fastest-1.1-xl": (
        ".2398 .4543 .2330 .0754 .2146 .4671 .2283 .3009 .3098 .1042 .3039 .5391"
    ),
    "MobileNetV2-YOLOv3-Nano-coco": (
        ".1864 .3661 .1730 .0696 .1378 .3746 .1855 .2445 .2503 .0930 .2130 .4677"
    ),
}


def run(main, *args: object) -> int:
    try:
        main([str(arg) for arg in args])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def of(data: Path, name: str) -> tuple[str, Path]:
    """The cfg as an override, and the weights."""
    folder = data / "weights"
    return f"model.cfg_file={folder / name}.cfg", folder / f"{name}.weights"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_twelve_published_numbers(name: str, data, coco_val74, tmp_path: Path) -> None:
    """By --eval-only; the recalls, which it does not print, from the detections that it saves."""
    cfg, weights = of(data, name)
    truth = coco_val74 / "instances_val2017_subset.json"
    status = run(
        command_line.main,
        *("--config-file", CONFIG, "--eval-only", cfg, f"train.init_checkpoint={weights}"),
        *("dataset.format=coco", f"dataset.val.json={truth}"),
        *(f"dataset.val.images={coco_val74 / 'images'}", "data.workers=0", "train.device=cpu"),
        f"train.output_dir={tmp_path}",
    )
    assert status == 0
    published = [float(number) for number in PUBLISHED[name].split()]
    ours = json.loads((tmp_path / "results.json").read_text())["bbox"]
    named = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    assert [ours[key] / 100 for key in named] == pytest.approx(published[:6], abs=0.002)
    ground = COCO(str(truth))
    saved = next((tmp_path / "evaluation").glob("*results.json"))
    evaluation = COCOeval(ground, ground.loadRes(str(saved)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats.tolist() == pytest.approx(published, abs=0.002)


@pytest.mark.parametrize(
    ("name", "picture", "expected"),
    [
        ("yolo-fastest-1.1", "dog.jpg", {"dog", "bicycle"}),
        ("yolo-fastest-1.1-xl", "dog.jpg", {"dog", "bicycle", "car"}),
        ("yolo-fastest-1.1-xl", "person.jpg", {"person", "dog"}),
    ],
)
def test_prediction_needs_no_number_of_classes(
    name: str, picture: str, expected: set[str], data, tmp_path: Path
) -> None:
    cfg, weights = of(data, name)
    assert (
        run(
            predict.main,
            *("--config-file", CONFIG, "--weights", weights, "--output", tmp_path),
            *("--score-threshold", 0.4, "--device", "cpu", cfg, data / "images" / picture),
        )
        == 0
    )
    found = json.loads((tmp_path / "predictions.json").read_text())
    assert expected <= {entry["category"] for entry in found}
    _, ids = coco_classes()
    assert {entry["category_id"] for entry in found} <= set(ids)


def test_names_from_a_file(data, tmp_path: Path, capsys) -> None:
    """COCO's, written in another language; and what is wrong with such a file, in a sentence."""
    cfg, weights = of(data, "yolo-fastest-1.1")
    own = tmp_path / "own.names"
    english = (data / "names" / "coco.names").read_text().splitlines()
    own.write_text("\n".join({"dog": "Hund"}.get(name, name) for name in english) + "\n\n")
    common = ("--config-file", CONFIG, "--weights", weights, "--output", tmp_path / "out")
    picture = ("--device", "cpu", cfg, data / "images" / "dog.jpg")
    assert run(predict.main, *common, *picture, f"dataset.class_names={own}") == 0
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert "Hund" in {entry["category"] for entry in found}
    short, broken, empty = tmp_path / "short", tmp_path / "broken", tmp_path / "empty"
    short.write_text("cat\ndog\n")
    broken.write_text("cat\n\ndog\n")
    empty.write_text("\n")
    for file, message in (
        (short, "is for 80 classes, but dataset.class_names has 2 classes"),
        (broken, "broken, line 2: expected a class name, got ''"),
        (empty, "is no file of class names: it is empty"),
        (weights, "is no file of class names: it is not text"),
        (tmp_path / "absent", "cannot read the class names"),
    ):
        status = run(predict.main, *common, *picture, "--overwrite", f"dataset.class_names={file}")
        assert status == 2
        assert message in capsys.readouterr().err


def test_a_cfg_that_predicts_no_boxes(data, capsys, tmp_path: Path) -> None:
    _, weights = of(data, "yolo-fastest-1.1")
    cfg = f"model.cfg_file={data / 'cfg' / 'darknet19.cfg'}"
    common = ("--config-file", CONFIG, "--weights", weights, "--output", tmp_path)
    assert run(predict.main, *common, cfg, data / "images" / "dog.jpg") == 2
    assert "[net]: the network predicts no boxes" in capsys.readouterr().err


SMALL = """[net]
width=64
height=64
batch=4
learning_rate=0.004
momentum=0.8
decay=0.0002
burn_in=2
power=1
policy=steps
steps=50
scales=.1
max_batches=100
[convolutional]
batch_normalize=1
filters=8
size=3
stride=16
pad=1
activation=leaky
[convolutional]
filters=30
activation=linear
[yolo]
classes=10
num=2
anchors=12,16,20,20
iou_loss=ciou
"""


@pytest.mark.parametrize("overridden", [False, True])
def test_training_takes_the_files_rate(overridden: bool, tmp_path: Path) -> None:
    """Four iterations of the generated digits, two images each: half of the file's batch."""
    (tmp_path / "x.cfg").write_text(SMALL)
    options = ["optimizer.lr=0.01"] if overridden else []
    status = run(
        command_line.main,
        *("--config-file", CONFIG, f"model.cfg_file={tmp_path / 'x.cfg'}"),
        *("dataset.format=digits", f"dataset.root={tmp_path / 'digits'}"),
        *("dataset.train_images=8", "dataset.val_images=2", "dataset.image_size=64"),
        *("data.batch_size=2", "data.workers=0", "train.max_iter=4", "train.log_period=1"),
        *(f"train.output_dir={tmp_path / 'run'}", "train.device=cpu", "train.tensorboard=false"),
        *options,
    )
    assert status == 0
    lines = (tmp_path / "run" / "metrics.json").read_text().splitlines()
    rates = [json.loads(line)["lr"] for line in lines if "lr" in json.loads(line)]
    base = 0.01 if overridden else 0.004 * 2 / 4
    # Burn-in of two iterations; the step at 50 of 100 batches is at 2 of 4.
    assert rates[:4] == pytest.approx([base / 2, base * 0.1, base * 0.1, base * 0.1])
    optimizer = torch.load(tmp_path / "run" / "model_final.pth", weights_only=False)["optimizer"]
    assert optimizer["param_groups"][0]["momentum"] == 0.8
