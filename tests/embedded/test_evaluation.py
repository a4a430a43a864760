"""COCO's metrics, the evaluation loop, and what is done with results."""

import json
import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    inference_context,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn


@pytest.fixture
def dataset(tmp_path, request):
    """Twelve images with boxes of three classes, as COCO json."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(12):
        images.append({"id": i + 5, "file_name": f"{i}.png", "height": 90, "width": 80})
        for _ in range(rng.integers(0, 5)):
            x, y, w, h = (float(v) for v in rng.random(4) * 40 + 1)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i + 5,
                    "category_id": int(rng.choice([3, 7, 8])),
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i, "name": f"c{i}"} for i in (3, 7, 8, 9)]
    path = tmp_path / "gt.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    name = f"test_{request.node.name}"
    register_coco_instances(name, {}, str(path), str(tmp_path))
    yield name, DatasetCatalog.get(name), path
    DatasetCatalog.pop(name)
    MetadataCatalog.pop(name)


def predict(dicts, seed=0, noise=2.0):
    """Ground truth, moved a little and sometimes of another class."""
    rng = np.random.default_rng(seed)
    outputs = []
    for record in dicts:
        instances = Instances((record["height"], record["width"]))
        boxes, classes = [], []
        for annotation in record["annotations"]:
            box = BoxMode.convert(annotation["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
            for _ in range(2):
                boxes.append(np.asarray(box) + rng.normal(size=4) * noise)
                wrong = rng.random() < 0.2
                classes.append(int(rng.integers(4)) if wrong else annotation["category_id"])
        instances.pred_boxes = Boxes(torch.tensor(np.array(boxes).reshape(-1, 4)).float())
        instances.scores = torch.tensor(rng.random(len(boxes))).float()
        instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
        outputs.append({"instances": instances})
    return outputs


def test_equals_cocoeval(dataset, tmp_path):
    name, dicts, path = dataset
    evaluator = COCOEvaluator(name, output_dir=str(tmp_path / "out"), use_fast_impl=False)
    evaluator.reset()
    evaluator.process(dicts, predict(dicts))
    results = evaluator.evaluate()["bbox"]

    truth = COCO(str(path))
    found = truth.loadRes(str(tmp_path / "out" / "coco_instances_results.json"))
    judged = COCOeval(truth, found, "bbox")
    judged.evaluate()
    judged.accumulate()
    judged.summarize()
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert 5 < results["AP"] < 95
    for metric, score in zip(names, judged.stats, strict=False):
        assert results[metric] == pytest.approx(score * 100, nan_ok=True) or score == -1
    per_class = []
    for category in (3, 7, 8):
        judged.params.catIds = [category]
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
        per_class.append(judged.stats[0] * 100)
        assert results[f"AP-c{category}"] == pytest.approx(per_class[-1])
    assert results["AP"] == pytest.approx(np.mean(per_class))
    assert math.isnan(results["AP-c9"])


def test_perfect_and_no_predictions(dataset):
    name, dicts, _ = dataset
    evaluator = COCOEvaluator(name, use_fast_impl=False)
    evaluator.reset()
    perfect = predict(dicts, noise=0.0)
    for record, output in zip(dicts, perfect, strict=False):
        classes = [a["category_id"] for a in record["annotations"] for _ in range(2)]
        output["instances"].pred_classes = torch.tensor(classes, dtype=torch.int64)
    evaluator.process(dicts, [{"instances": p["instances"][::2]} for p in perfect])
    assert evaluator.evaluate()["bbox"]["AP50"] == pytest.approx(100)
    evaluator.reset()
    assert evaluator.evaluate() == {}
    evaluator.process(dicts, [{"instances": p["instances"][:0]} for p in perfect])
    assert all(math.isnan(v) for v in evaluator.evaluate()["bbox"].values())


def test_a_class_that_is_not_there(dataset):
    name, dicts, _ = dataset
    evaluator = COCOEvaluator(name)
    evaluator.reset()
    outputs = predict(dicts)
    for output in outputs:
        output["instances"].pred_classes[:] = 80
    evaluator.process(dicts, outputs)
    with pytest.raises(AssertionError, match="class=80"):
        evaluator.evaluate()


class Counter(DatasetEvaluator):
    def __init__(self, task):
        self.task, self.seen, self.resets = task, [], 0

    def reset(self):
        self.resets += 1
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += outputs

    def evaluate(self):
        return {self.task: {"sum": float(sum(self.seen))}}


class Double(nn.Module):
    def forward(self, batch):
        assert not self.training
        assert not torch.is_grad_enabled()
        return [2 * x for x in batch]


def test_inference_loop():
    model = Double()
    moments = []
    names = ("on_start", "before_inference", "after_inference", "on_end")
    callbacks = {n: lambda n=n: moments.append(n) for n in names}
    results = inference_on_dataset(
        model, [[1, 2], [3]], [Counter("a"), Counter("b")], callbacks=callbacks
    )
    assert results == {"a": {"sum": 12.0}, "b": {"sum": 12.0}}
    assert model.training
    assert moments == ["on_start", *["before_inference", "after_inference"] * 2, "on_end"]
    assert inference_on_dataset(model, [[1]] * 12, None) == {}
    with pytest.raises(AssertionError, match="same key"):
        DatasetEvaluators([Counter("a"), Counter("a")]).evaluate()


def test_inference_context_restores_the_mode():
    for mode in (True, False):
        model = nn.Linear(1, 1).train(mode)
        with inference_context(model):
            assert not model.training
        assert model.training == mode


def test_results_are_printed_and_compared(monkeypatch):
    results = {"bbox": {"AP": 1.23456, "AP50": 2.5, "AP-x": 3.0}}
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("detectron2.evaluation.testing")
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "isEnabledFor", lambda level: True)
    print_csv_format(results)
    assert lines == ["copypaste: Task: bbox", "copypaste: AP,AP50", "copypaste: 1.2346,2.5000"]
    assert flatten_results_dict({"a": {"b": {"c": 1}}, "d": 2}) == {"a/b/c": 1, "d": 2}

    def expecting(score):
        test = SimpleNamespace(EXPECTED_RESULTS=[["bbox", "AP", score, 0.1]])
        return SimpleNamespace(TEST=test)

    assert verify_results(expecting(1.2), results)
    with pytest.raises(SystemExit):
        verify_results(expecting(1.0), results)
