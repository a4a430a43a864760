"""The json that evaluation runs against, through pycocotools."""

from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from d2proj.data import load_dataset


@pytest.mark.parametrize("class_names", [None, ["WBC", "RBC", "Platelets"]])
def test_the_truth_scores_100_percent(
    class_names: list[str] | None, shared_data: Path, tmp_path: Path
) -> None:
    node = {
        "format": "voc",
        "class_names": class_names,
        "val": {"root": str(shared_data / "bccd"), "split": "val"},
    }
    data = load_dataset(node, "val")
    truth = COCO(data.evaluation_json(tmp_path))
    results = [
        {
            "image_id": record["image_id"],
            "category_id": data.category_ids[a["category_id"]],
            "bbox": [*a["bbox"][:2], *np.subtract(a["bbox"][2:], a["bbox"][:2]).tolist()],
            "score": 1.0,
        }
        for record in data.dicts
        for a in record["annotations"]
    ]
    evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)
    # COCOEvaluator pairs class names with pycocotools' categories in order of their ids.
    by_id = [category["name"] for _, category in sorted(truth.cats.items())]
    assert by_id == data.class_names
