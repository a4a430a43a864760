"""Images read from files, annotations made into instances."""

import numpy as np
import pytest
import torch
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image, ImageOps


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def test_formats(tmp_path, pixels):
    path = str(tmp_path / "a.png")
    Image.fromarray(pixels).save(path)
    assert np.array_equal(utils.read_image(path), pixels)
    assert np.array_equal(utils.read_image(path, "RGB"), pixels)
    assert np.array_equal(utils.read_image(path, "BGR"), pixels[:, :, ::-1])
    assert utils.read_image(path, "L").shape == (6, 9, 1)
    for name in ("RGB", "BGR"):
        back = utils.convert_image_to_rgb(utils.read_image(path, name), name)
        assert np.array_equal(back, pixels)
    yuv = utils.read_image(path, "YUV-BT.601")
    assert yuv[..., 0].max() <= 1
    assert np.abs(utils.convert_image_to_rgb(torch.as_tensor(yuv), "YUV-BT.601") - pixels).max() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert upright.shape[:2] == ((9, 6) if orientation >= 5 else (6, 9))
    assert np.array_equal(utils.read_image(str(path), "RGB"), upright)


def test_image_size_is_checked(pixels):
    record = {}
    utils.check_image_size(record, pixels)
    assert record == {"width": 9, "height": 6}
    with pytest.raises(utils.SizeMismatchError, match=r"b\.png"):
        utils.check_image_size({"file_name": "b.png", "width": 6, "height": 9}, pixels)


def test_annotations_are_transformed_and_collected():
    annotations = [
        {"bbox": [10, 10, 30, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 3},
        {"bbox": [90, 10, 99, 20], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1},
    ]
    transforms = T.TransformList([T.HFlipTransform(100), T.CropTransform(5, 0, 80, 25)])
    done = [utils.transform_instance_annotations(a, transforms, (25, 80)) for a in annotations]
    assert done[0]["bbox"].tolist() == [55, 10, 80, 25]
    assert done[0]["bbox_mode"] == BoxMode.XYXY_ABS
    instances = utils.annotations_to_instances(done, (25, 80))
    assert instances.gt_classes.tolist() == [3, 1]
    assert instances.image_size == (25, 80)
    kept, mask = utils.filter_empty_instances(instances, box_threshold=8, return_mask=True)
    assert mask.tolist() == [True, False]
    assert kept.gt_boxes.tensor.tolist() == [[55, 10, 80, 25]]


def test_no_annotations():
    instances = utils.annotations_to_instances([], (4, 5))
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_classes.dtype == torch.int64
    assert len(utils.filter_empty_instances(instances)) == 0


def test_crop_holds_the_instance():
    rng = np.random.default_rng(0)
    for seed in range(30):
        np.random.seed(seed)
        x, y = rng.random(2) * 60
        box = [x, y, x + 30, y + 20]
        crop = utils.gen_crop_transform_with_instance(
            (20, 25), (100, 110), {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS}
        )
        # To a pixel, as the crop's corner is a whole one.
        assert crop.x0 - 1 < x + 15 < crop.x0 + crop.w + 1
        assert crop.y0 - 1 < y + 10 < crop.y0 + crop.h + 1
        assert 0 <= crop.x0 <= 110 - 25


def test_what_is_not_covered_says_so(embedded):
    annotation = {"bbox": [1, 1, 2, 2], "bbox_mode": BoxMode.XYXY_ABS, "segmentation": {"size": 3}}
    with pytest.raises(ValueError, match="real Detectron2"):
        utils.transform_instance_annotations(annotation, T.TransformList([]), (5, 5))
