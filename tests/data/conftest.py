"""Small data sets in every format, made on the spot."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from d2proj.data import DetectionData, load_dataset

# Of the seven pictures of the small COCO data set.
SIZES = [(60, 40), (40, 60), (50, 50), (64, 32), (32, 64), (60, 40), (40, 60)]


def write_image(path: Path, size: tuple[int, int], seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def make_image() -> Callable[..., Path]:
    """Writes a picture of noise: make_image(path, (width, height), seed=0)."""
    return write_image


@pytest.fixture
def coco_document() -> dict[str, Any]:
    """Seven images of different shapes; image i has i % 3 boxes, category ids with gaps."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, (width, height) in enumerate(SIZES):
        images.append({"id": 10 + i, "file_name": f"{i}.png", "width": width, "height": height})
        for k in range(i % 3):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 + i,
                    "category_id": [3, 7][k],
                    "bbox": [2.5 + k, 3.25 + i, 10, 12],
                    "area": 77.0,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def coco_node(tmp_path: Path, coco_document: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """Writes a COCO document and its pictures; gives the ``dataset`` node for it."""

    def make(document: Any = None, **extra: Any) -> dict[str, Any]:
        for i, size in enumerate(SIZES):
            write_image(tmp_path / "images" / f"{i}.png", size, i)
        path = tmp_path / "instances.json"
        text = (
            document
            if isinstance(document, str)
            else json.dumps(coco_document if document is None else document)
        )
        path.write_text(text)
        paths = {"json": str(path), "images": str(tmp_path / "images")}
        return {"format": "coco", "train": paths, "val": paths, **extra}

    return make


@pytest.fixture
def small(coco_node: Callable[..., dict[str, Any]]) -> DetectionData:
    return load_dataset(coco_node(), "train")
