"""The mapper: Detectron2's format, Detectron2's augmentations, empty images, bad files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from d2proj.data import DetectionData, DetectionMapper, load_dataset
from d2proj.data.bad_image import BadImageError

MakeImage = Callable[..., Path]

AUGMENTATIONS = [
    [T.Resize((30, 45))],
    [T.ResizeShortestEdge((20, 60), 80), T.RandomFlip()],
    [T.ResizeScale(0.5, 2.0, 64, 64), T.FixedSizeCrop((64, 64))],
    [T.RandomFlip(horizontal=False, vertical=True), T.RandomCrop("relative_range", (0.3, 0.3))],
    [T.RandomExtent((0.5, 1.5), (0.2, 0.2))],
    [T.RandomRotation([-30, 30])],
    [T.RandomBrightness(0.5, 1.5), T.RandomContrast(0.5, 1.5), T.RandomSaturation(0.5, 1.5)],
    [T.RandomLighting(0.7), T.RandomApply(T.RandomFlip(), 0.5)],
    [T.MinIoURandomCrop()],
]


@pytest.mark.parametrize("augmentations", AUGMENTATIONS[:8])
def test_equals_detectron2s_mapper(augmentations: list[Any], shared_data: Path) -> None:
    root = shared_data / "coco_val74"
    paths = {"json": str(root / "instances_val2017_subset.json"), "images": str(root / "images")}
    data = load_dataset({"format": "coco", "train": paths}, "train")
    ours = DetectionMapper(augmentations, image_format="BGR", training=True)
    theirs = DatasetMapper(is_train=True, augmentations=augmentations, image_format="BGR")
    for index in (0, 7, 31):
        results = []
        for mapper in (ours, theirs):
            np.random.seed(index)  # noqa: NPY002 - Detectron2 draws from the global one
            results.append(mapper(data.dicts[index]))
        a, b = results
        assert torch.equal(a["image"], b["image"])
        assert a["image"].dtype == torch.uint8
        one, other = (result["instances"].gt_boxes.tensor.numpy() for result in results)
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-4)
        assert torch.equal(a["instances"].gt_classes, b["instances"].gt_classes)
        assert a["instances"].image_size == b["instances"].image_size
        assert {k: a[k] for k in ("file_name", "image_id", "height", "width")} == {
            k: b[k] for k in ("file_name", "image_id", "height", "width")
        }


@pytest.mark.parametrize("augmentations", AUGMENTATIONS)
def test_every_augmentation_takes_images_without_boxes(
    augmentations: list[Any], small: DetectionData
) -> None:
    mapper = DetectionMapper(augmentations, image_format="RGB", training=True)
    output = mapper(small.dicts[0])
    assert len(output["instances"]) == 0
    assert output["instances"].gt_boxes.tensor.shape == (0, 4)
    assert output["instances"].gt_classes.dtype == torch.int64
    assert output["image"].shape[1:] == output["instances"].image_size


def test_min_iou_crop_is_given_the_boxes(small: DetectionData) -> None:
    mapper = DetectionMapper([T.MinIoURandomCrop(min_ious=(0.9,))], training=True)
    shapes = set()
    for seed in range(20):
        np.random.seed(seed)  # noqa: NPY002 - Detectron2 draws from the global one
        shapes.add(tuple(mapper(small.dicts[2])["image"].shape))
    assert len(shapes) > 3


def test_crowd_boxes_are_not_trained_on_and_formats_are_honoured(
    tmp_path: Path, make_image: MakeImage
) -> None:
    path = make_image(tmp_path / "a.png", (60, 40))
    boxes = [([5, 5, 10, 10], 0), ([0, 0, 60, 40], 1)]
    record = {
        "file_name": str(path),
        "annotations": [
            {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 4, "iscrowd": crowd}
            for box, crowd in boxes
        ],
    }
    pixels = np.asarray(Image.open(path))
    output = DetectionMapper([], image_format="BGR", training=True)(record)
    assert output["instances"].gt_boxes.tensor.tolist() == [[5, 5, 15, 15]]
    assert output["instances"].gt_classes.tolist() == [4]
    assert (output["height"], output["width"]) == (40, 60)
    np.testing.assert_array_equal(output["image"].numpy(), pixels[:, :, ::-1].transpose(2, 0, 1))
    plain = DetectionMapper([], image_format="RGB", training=False)(record)
    np.testing.assert_array_equal(plain["image"].numpy(), pixels.transpose(2, 0, 1))
    assert "instances" not in plain
    assert DetectionMapper([], image_format="L", training=False)(record)["image"].shape[0] == 1


def test_files_that_cannot_be_used(tmp_path: Path, make_image: MakeImage) -> None:
    path = make_image(tmp_path / "a.jpg", (60, 40))
    whole = path.read_bytes()
    record = {"file_name": str(path), "width": 60, "height": 40}
    mapper = DetectionMapper([], training=False)
    contents = {
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "not an image": b"hello" * 100,
        "a broken header": whole[:4] + b"\xff" * 60,
    }
    for what, content in contents.items():
        path.write_bytes(content)
        with pytest.raises(BadImageError) as caught:
            mapper(record)
        assert caught.value.path == str(path), what
    path.write_bytes(whole)
    with pytest.raises(BadImageError, match="60 x 40 pixels where its annotation says 60 x 41"):
        mapper({**record, "height": 41})
    with pytest.raises(BadImageError, match="it does not exist"):
        mapper({**record, "file_name": str(tmp_path / "no.jpg")})


class _Broken(T.Augmentation):
    def get_transform(self, image: np.ndarray) -> Any:
        raise KeyError("oh")


def test_a_failing_augmentation_names_the_file(small: DetectionData) -> None:
    mapper = DetectionMapper([_Broken()], training=True)
    with pytest.raises(RuntimeError, match=r"an augmentation failed on .*0\.png: 'oh'"):
        mapper(small.dicts[0])


def test_labels_without_boxes(tmp_path: Path) -> None:
    """What YOLO9000 learns mere labels from: the whole image, told apart by gt_has_box."""
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    label = {"category_id": 7}
    box = {"bbox": [2, 3, 20, 15], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    mapper = DetectionMapper([T.Resize((40, 80))], training=True)

    def read(*annotations: dict[str, Any]) -> Any:
        record = {"file_name": str(tmp_path / "a.png"), "annotations": list(annotations)}
        return mapper(record)["instances"]

    found = read(label, box)
    assert found.gt_boxes.tensor.tolist() == [[4, 6, 40, 30], [0, 0, 80, 40]]
    assert found.gt_classes.tolist() == [1, 7]
    assert found.gt_has_box.tolist() == [True, False]
    assert read(label).gt_has_box.tolist() == [False]
    assert not read(box).has("gt_has_box")
