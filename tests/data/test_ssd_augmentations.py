"""SSD's augmentations: single steps against independent code, draws against torchvision's."""

import colorsys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from torchvision import tv_tensors
from torchvision.ops import box_iou
from torchvision.transforms import v2

from d2proj.data import DetectionData, DetectionMapper, load_dataset
from d2proj.data.augmentations import PhotometricDistort, RandomExpand, SSDRandomCrop
from d2proj.data.augmentations.photometric import ColorDistortion
from d2proj.data.mapper import training_boxes

N = 1000
BOXES = np.array([[10.0, 10, 60, 60], [100, 50, 180, 110], [150, 10, 195, 40]])


def seed(value: int) -> None:
    np.random.seed(value)  # noqa: NPY002 - Detectron2 draws from the global one
    torch.manual_seed(value)


def picture(height: int = 12, width: int = 17) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


# Colours.


def test_a_distortion_by_default_changes_nothing() -> None:
    image = picture()
    assert np.array_equal(ColorDistortion()(image), image)
    assert ColorDistortion()(image.astype(np.float64)).dtype == np.float64


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_hue_equals_torchvisions(image_format: str) -> None:
    image = picture()
    rgb = image if image_format == "RGB" else image[..., ::-1].copy()
    tensor = torch.from_numpy(rgb).permute(2, 0, 1).double() / 255
    for degrees in (-18.0, 5.0, 18.0):
        expected = v2.functional.adjust_hue(tensor, degrees / 360).permute(1, 2, 0).numpy() * 255
        found = ColorDistortion(hue=degrees, image_format=image_format)(image.astype(np.float64))
        found = found if image_format == "RGB" else found[..., ::-1]
        assert np.abs(found - expected).max() < 1e-2


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_saturation_pixel_by_pixel(factor: float) -> None:
    image = picture(5, 6)
    found = ColorDistortion(saturation=factor, image_format="RGB")(image)
    for i, j in np.ndindex(5, 6):
        h, s, v = colorsys.rgb_to_hsv(*(image[i, j] / 255.0))
        expected = np.array(colorsys.hsv_to_rgb(h, min(s * factor, 1.0), v)) * 255
        assert np.abs(found[i, j] - expected).max() <= 0.51


def test_brightness_contrast_and_their_order() -> None:
    image = picture()
    x = image.astype(np.float64)
    expected = np.clip(np.clip(x + 30, 0, 255) * 1.4, 0, 255)
    found = ColorDistortion(brightness=30, contrast=1.4)(x)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(ColorDistortion(brightness=30, contrast=1.4)(image) - expected).max() <= 0.51
    # With contrast last it multiplies what saturation has made, clipped in between.
    alone = ColorDistortion(saturation=1.5)(x)
    last = ColorDistortion(saturation=1.5, contrast=1.4, contrast_last=True)(x)
    np.testing.assert_allclose(last, np.clip(alone * 1.4, 0, 255), atol=1e-3)
    first = ColorDistortion(saturation=1.5, contrast=1.4)(x)
    assert np.abs(first - last).max() > 1
    swapped = ColorDistortion(channels=(2, 0, 1))(image)
    assert np.array_equal(swapped, image[..., [2, 0, 1]])


def test_colours_are_drawn_as_the_paper_says() -> None:
    seed(0)
    augmentation = PhotometricDistort()
    drawn = [augmentation.get_transform(picture(1, 1)).op for _ in range(4 * N)]
    ranges = {
        "brightness": (0.0, -32, 32),
        "contrast": (1.0, 0.5, 1.5),
        "saturation": (1.0, 0.5, 1.5),
        "hue": (0.0, -18, 18),
    }
    for name, (neutral, low, high) in ranges.items():
        values = np.array([getattr(d, name) for d in drawn])
        changed = values[values != neutral]
        assert abs(len(changed) / len(values) - 0.5) < 0.04
        assert low <= changed.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < changed.max() <= high
        assert abs(changed.mean() - (low + high) / 2) < 0.03 * (high - low)  # uniform
    assert abs(np.mean([d.contrast_last for d in drawn]) - 0.5) < 0.04
    orders, counts = np.unique([d.channels for d in drawn], axis=0, return_counts=True)
    assert len(orders) == 6
    shares = dict(zip(map(tuple, orders.tolist()), counts / len(drawn), strict=True))
    assert abs(shares.pop((0, 1, 2)) - (0.5 + 0.5 / 6)) < 0.04
    assert all(abs(share - 0.5 / 6) < 0.02 for share in shares.values())
    with pytest.raises(ValueError, match="BGR or RGB, got 'L'"):
        PhotometricDistort(image_format="L")


# Expansion.


def test_expand_equals_padding() -> None:
    seed(1)
    image = picture()
    data = T.AugInput(image, boxes=np.array([[2.0, 3, 9, 8]]))
    transform = RandomExpand(prob=1.0, fill=(1, 20, 255))(data)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    sides = [transform.x0, transform.y0, transform.x1, transform.y1]
    assert min(sides) >= 0
    expected = v2.functional.pad(tensor, sides, fill=[1, 20, 255])
    assert np.array_equal(data.image, expected.permute(1, 2, 0).numpy())
    x, y = transform.x0, transform.y0
    assert data.boxes.tolist() == [[2 + x, 3 + y, 9 + x, 8 + y]]
    assert np.array_equal(transform.inverse().apply_image(data.image), image)


def test_canvases_are_drawn_as_torchvisions() -> None:
    """Ratio of sides, and place on the canvas (0 to 1), where it happens."""
    height, width = 100, 150
    image = np.zeros((height, width, 3), np.uint8)
    seed(2)
    ours, theirs = RandomExpand(), v2.RandomZoomOut(p=1.0)
    drawn = [ours.get_transform(image) for _ in range(N)]
    moved = [t for t in drawn if not isinstance(t, T.NoOpTransform)]
    assert abs(len(moved) / N - 0.5) < 0.06
    mine = np.array([(t.x0, t.y0, t.x1, t.y1) for t in moved], dtype=float)
    tensor = [torch.zeros(3, height, width)]
    other = np.array([theirs.make_params(tensor)["padding"] for _ in range(N)], dtype=float)
    for sides in (mine, other):
        ratio = 1 + (sides[:, 0] + sides[:, 2]) / width
        place = (sides[:, 1] + 0.5) / (sides[:, 1] + sides[:, 3] + 1)
        for values, low, high in ((ratio, 1, 4), (place, 0, 1)):
            quantiles = np.quantile(values, [0.1, 0.25, 0.5, 0.75, 0.9])
            expected = low + (high - low) * np.array([0.1, 0.25, 0.5, 0.75, 0.9])
            assert np.abs(quantiles - expected).max() < 0.09 * (high - low)


# Crops.


def test_crops_are_drawn_as_torchvisions() -> None:
    """Shares of whole images, the patches' areas and shapes, and how many boxes are left."""
    height, width = 120, 200
    image = np.zeros((height, width, 3), np.uint8)
    ours = SSDRandomCrop()
    theirs = v2.RandomIoUCrop(trials=50)
    tensor = torch.zeros(3, height, width)
    boxes = tv_tensors.BoundingBoxes(BOXES, format="XYXY", canvas_size=(height, width))
    statistics: list[list[tuple[float, ...]]] = [[], []]
    seed(3)
    for _ in range(N // 2):
        t = ours.get_transform(image, BOXES)
        if isinstance(t, T.NoOpTransform):
            statistics[0].append((1, width * height, width / height, 3))
        else:
            left = (t.apply_box(BOXES) != 0).any(axis=1).sum()
            statistics[0].append((0, t.w * t.h, t.w / t.h, left))
        p = theirs.make_params([tensor, boxes])
        if not p:
            statistics[1].append((1, width * height, width / height, 3))
        else:
            left = int(p["is_within_crop_area"].sum())
            statistics[1].append((0, p["width"] * p["height"], p["width"] / p["height"], left))
    mine, other = (np.array(s, dtype=float) for s in statistics)
    error = np.sqrt((mine.var(axis=0) + other.var(axis=0)) / (N // 2))
    assert (np.abs(mine.mean(axis=0) - other.mean(axis=0)) < 4 * error).all()
    spread = np.abs(np.log(mine.std(axis=0) / other.std(axis=0)))
    assert (spread < 0.15).all()


def test_patches_are_what_was_asked_for() -> None:
    seed(4)
    image = np.zeros((120, 200, 3), np.uint8)
    crop = SSDRandomCrop(min_ious=(0.4,), min_scale=0.2)
    # Only the option of an IoU: the others are tested by what every patch obeys.
    reached = []
    for _ in range(300):
        t = crop.get_transform(image, BOXES)
        if isinstance(t, T.NoOpTransform):
            continue
        patch = np.array([t.x0, t.y0, t.x0 + t.w, t.y0 + t.h])
        assert 0 <= t.x0 < t.x0 + t.w <= 200
        assert 0 <= t.y0 < t.y0 + t.h <= 120
        assert 0.5 <= t.w / t.h <= 2
        assert t.w >= 40
        assert t.h >= 24
        kept = t.apply_box(BOXES)
        centres = (BOXES[:, :2] + BOXES[:, 2:]) / 2
        inside = ((centres > patch[:2]) & (centres < patch[2:])).all(axis=1)
        assert inside.any()
        assert np.array_equal((kept != 0).any(axis=1), inside)
        np.testing.assert_array_equal(kept[inside], BOXES[inside] - [t.x0, t.y0, t.x0, t.y0])
        overlap = box_iou(torch.from_numpy(BOXES[inside]), torch.from_numpy(patch[None]).double())
        reached.append(float(overlap.max()))
    assert 0.35 < np.mean(np.array(reached) >= 0.4) < 0.75  # half of the patches ask for it


def test_images_without_boxes_stay_whole() -> None:
    image = picture()
    for boxes in (None, np.zeros((0, 4)), np.array([[3.0, 3, 3, 9]])):
        assert isinstance(SSDRandomCrop().get_transform(image, boxes), T.NoOpTransform)


def test_boxes_outside_are_dropped_by_both_mappers(shared_data: Path) -> None:
    """Empty boxes stand for them, which leave with their classes; nothing else is lost."""
    root = shared_data / "coco_val74"
    paths = {"json": str(root / "instances_val2017_subset.json"), "images": str(root / "images")}
    data: DetectionData = load_dataset({"format": "coco", "train": paths}, "train")
    crop = SSDRandomCrop(min_ious=(), min_scale=0.3)
    steps = [crop, T.RandomFlip(prob=1.0), T.Resize((96, 96))]
    ours = DetectionMapper(steps, image_format="BGR", training=True)
    dropped = 0
    for index, start in ((0, 0), (7, 1), (31, 2), (1, 5), (2, 6), (3, 7), (4, 8)):
        record = data.dicts[index]
        seed(start)
        found = ours(record)
        seed(start)
        boxes, classes = training_boxes(record)
        patch = crop.get_transform(ours.read(record), boxes)
        if isinstance(patch, T.NoOpTransform):
            inside = np.ones(len(boxes), bool)
        else:
            x, y = ((boxes[:, :2] + boxes[:, 2:]) / 2).T - [[patch.x0], [patch.y0]]
            inside = (x > 0) & (x < patch.w) & (y > 0) & (y < patch.h)
        assert found["instances"].gt_classes.tolist() == classes[inside].tolist()
        dropped += int((~inside).sum())

        class Fixed(T.Augmentation):
            """The same patch: Detectron2's mapper does not show its augmentations the boxes."""

            def get_transform(self, image, patch=patch):
                del image
                return patch

        fixed = Fixed()
        fixed.input_args = ("image",)
        theirs = DatasetMapper(
            is_train=True, augmentations=[fixed, *steps[1:]], image_format="BGR"
        )(record)
        assert torch.equal(found["image"], theirs["image"])
        assert torch.equal(found["instances"].gt_classes, theirs["instances"].gt_classes)
        torch.testing.assert_close(
            found["instances"].gt_boxes.tensor,
            theirs["instances"].gt_boxes.tensor.float(),
            rtol=1e-6,
            atol=1e-4,
        )
    assert dropped > 3
