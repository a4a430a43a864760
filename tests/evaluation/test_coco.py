"""The evaluation against pycocotools used directly, on real annotations."""

import json

import numpy as np
import pytest
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from d2proj.data import load_dataset
from d2proj.evaluation import CocoEvaluation, results_table, run_inference
from d2proj.evaluation.coco import METRICS


class Oracle(torch.nn.Module):
    """Gives prepared detections by image id."""

    def __init__(self, detections: dict[int, list[dict]], index_of: dict[int, int]) -> None:
        super().__init__()
        self.detections, self.index_of = detections, index_of
        self.calls = 0

    def forward(self, batch: list[dict]) -> list[dict]:
        self.calls += 1
        assert not self.training
        assert not torch.is_grad_enabled()
        return [{"instances": self._instances(x)} for x in batch]

    def _instances(self, sample: dict) -> Instances:
        found = self.detections.get(sample["image_id"], [])
        instances = Instances((sample["height"], sample["width"]))
        boxes = torch.tensor([d["bbox"] for d in found], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances.pred_boxes = Boxes(boxes.float())
        instances.scores = torch.tensor([d["score"] for d in found])
        instances.pred_classes = torch.tensor(
            [self.index_of[d["category_id"]] for d in found], dtype=torch.long
        )
        return instances


@pytest.fixture(scope="module")
def coco(shared_data):
    folder = shared_data / "coco_val74"
    json_file = folder / "instances_val2017_subset.json"
    node = {
        "format": "coco",
        "val": {"json": str(json_file), "images": str(folder / "images")},
    }
    return load_dataset(node, "val"), json_file


@pytest.fixture(scope="module")
def detections(coco) -> dict[int, list[dict]]:
    """Ground truth, shaken, with wrong classes and false alarms among it."""
    rng = np.random.default_rng(0)
    annotations = json.loads(coco[1].read_text())["annotations"]
    categories = sorted({a["category_id"] for a in annotations})
    found: dict[int, list[dict]] = {}
    for a in annotations:
        if a["iscrowd"]:
            continue
        box = np.array(a["bbox"]) * (1 + 0.1 * rng.standard_normal(4))
        box[2:] = np.abs(box[2:]) + 1
        category = a["category_id"] if rng.random() > 0.1 else int(rng.choice(categories))
        found.setdefault(a["image_id"], []).append(
            {
                "image_id": a["image_id"],
                "category_id": category,
                "bbox": box.astype(np.float32).tolist(),
                "score": float(rng.random()),
            }
        )
    return found


def reference(json_file, detections, image_ids=None) -> list[float]:
    truth = COCO(str(json_file))
    found = truth.loadRes([d for group in detections.values() for d in group])
    evaluation = COCOeval(truth, found, "bbox")
    if image_ids is not None:
        evaluation.params.imgIds = image_ids
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [100 * float(v) for v in evaluation.stats[:6]]


def evaluate(coco, detections, tmp_path, **options) -> tuple[dict, Oracle]:
    data, _ = coco
    index_of = {category: i for i, category in enumerate(data.category_ids)}
    model = Oracle(detections, index_of).train()
    evaluation = CocoEvaluation(data, output_dir=tmp_path, augmentations=[], **options)
    evaluation.prepare()
    results = evaluation(model)
    assert model.training
    return results["bbox"], model


def test_metrics_equal_pycocotools(coco, detections, tmp_path):
    ours, model = evaluate(coco, detections, tmp_path, batch_size=4, visualize=2)
    assert [ours[name] for name in METRICS] == pytest.approx(reference(coco[1], detections))
    assert model.calls == 19  # 74 images, four at a time
    assert {f"AP-{name}" for name in coco[0].class_names} <= ours.keys()
    assert ours["AP-hair drier"] is None or ours["AP-hair drier"] >= 0
    assert len(list((tmp_path / "pictures").glob("0000[01]_*.png"))) == 2


def test_first_images_only(coco, detections, tmp_path):
    ours, _ = evaluate(coco, detections, tmp_path, max_images=10, batch_size=4)
    ids = [int(i) for i in coco[0].dicts.image_ids[:10]]
    subset = {i: detections[i] for i in ids if i in detections}
    expected = [None if v < 0 else v for v in reference(coco[1], subset, ids)]
    assert [ours[name] for name in METRICS] == [
        None if v is None else pytest.approx(v) for v in expected
    ]


def test_no_detection_at_all(coco, tmp_path):
    ours, _ = evaluate(coco, {}, tmp_path, max_images=4)
    assert ours["AP"] == ours["AP50"] == 0.0


def test_table_shows_every_class_and_what_does_not_exist():
    results = {"bbox": {"AP": 12.345, "APs": None, "AP-cat": 50.0, "AP-sea-lion": None}}
    table = results_table(results, ["cat", "sea-lion"])
    assert "12.35" in table or "12.34" in table
    assert "sea-lion" in table
    assert "50.00" in table
    assert "-" in table


class Counter(DatasetEvaluator):
    def reset(self) -> None:
        self.seen = 0

    def process(self, inputs, outputs) -> None:
        self.seen += len(inputs)


@pytest.mark.parametrize("batches", [0, 1, 3, 4, 9])
def test_speed_is_of_what_follows_the_warm_up(batches):
    model, counter = Oracle({}, {}), Counter()
    samples = [[{"image_id": i, "height": 5, "width": 5}] * 2 for i in range(batches)]
    speed = run_inference(model, samples, counter)
    assert counter.seen == 2 * batches
    assert speed.images == (0 if not batches else 2 if batches <= 3 else 2 * (batches - 3))
    assert speed.total_images_per_second <= speed.model_images_per_second
    assert (speed.model_images_per_second > 0) == bool(batches)
