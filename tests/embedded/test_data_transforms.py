"""Augmentations draw what Detectron2's draw, and transforms move images and boxes together."""

import numpy as np
import pytest
from detectron2.data import transforms as T
from PIL import Image

AUGMENTATIONS = {
    "flip": T.RandomFlip(),
    "apply": T.RandomApply(T.RandomBrightness(0.5, 1.5), 0.7),
    "edge": T.ResizeShortestEdge((30, 50), 60),
    "choice": T.ResizeShortestEdge([30, 40, 50], 60, "choice"),
    "scale": T.ResizeScale(0.2, 2.0, 50, 60),
    "rotate": T.RandomRotation([-30, 30]),
    "crop_pad": T.FixedSizeCrop((50, 100)),
    "relative": T.RandomCrop("relative_range", (0.3, 0.4)),
    "absolute": T.RandomCrop("absolute_range", (20, 40)),
    "extent": T.RandomExtent((0.5, 2.0), (0.3, 0.4)),
    "contrast": T.RandomContrast(0.5, 1.5),
    "saturation": T.RandomSaturation(0.5, 1.5),
    "lighting": T.RandomLighting(30.0),
    "resize": T.RandomResize([(20, 30), (30, 40)]),
    "iou": T.MinIoURandomCrop(),
}

# Size of the image, sum of the boxes and mean of the image that Detectron2 gives for seed 1.
RECORDED = {
    "flip": ((60, 80), 290.0, 128.127),
    "apply": ((60, 80), 220.0, 150.507),
    "edge": ((35, 47), 128.854, 128.139),
    "choice": ((40, 53), 146.146, 128.125),
    "scale": ((43, 57), 157.146, 128.113),
    "rotate": ((67, 85), 243.359, 107.994),
    "crop_pad": ((50, 100), 204.0, 128.096),
    "relative": ((36, 67), 140.0, 129.205),
    "absolute": ((25, 31), 140.0, 128.366),
    "extent": ((67, 90), 280.683, 86.262),
    "contrast": ((60, 80), 220.0, 127.626),
    "saturation": ((60, 80), 220.0, 127.682),
    "lighting": ((60, 80), 220.0, 121.571),
    "resize": ((30, 40), 110.0, 128.249),
    "iou": ((40, 59), 156.0, 128.069),
}


def make_input():
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    boxes = np.array([[5, 5, 30, 30], [20, 10, 70, 50]], dtype=np.float32)
    return T.AugInput(image, boxes=boxes)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_same_seed_same_result_as_detectron2(name):
    np.random.seed(1)
    data = make_input()
    AUGMENTATIONS[name](data)
    size, box_sum, mean = RECORDED[name]
    assert data.image.shape[:2] == size
    assert data.boxes.sum() == pytest.approx(box_sum, abs=2e-3)
    # PIL's and OpenCV's interpolation differ a little between their versions.
    assert data.image.mean() == pytest.approx(mean, abs=0.1)


@pytest.mark.parametrize(
    "name", ["flip", "edge", "scale", "crop_pad", "relative", "absolute", "rotate", "extent"]
)
def test_boxes_follow_the_image(name):
    """A bright rectangle is where its box says, whatever was done to it."""
    for seed in range(20):
        image = np.zeros((80, 100, 3), np.uint8)
        image[30:50, 40:70] = 255
        data = T.AugInput(image, boxes=np.array([[40, 30, 70, 50]], np.float32))
        np.random.seed(seed)
        if name == "crop_pad":
            T.FixedSizeCrop((70, 120), pad_value=0)(data)
        else:
            AUGMENTATIONS[name](data)
        ys, xs = np.nonzero(data.image[:, :, 0] > 127)
        if len(xs) == 0:
            continue
        height, width = data.image.shape[:2]
        expected = np.clip(data.boxes[0], 0, [width, height, width, height])
        found = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert np.abs(found - expected).max() <= 1.5, (seed, found, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (20, 30, 3)])
def test_resize_keeps_rank_and_type(shape, dtype):
    image = (np.random.default_rng(0).random(shape) * 255).astype(dtype)
    out = T.ResizeTransform(20, 30, 40, 45).apply_image(image)
    assert out.shape == (40, 45, *shape[2:])
    assert out.dtype == dtype
    assert abs(out.mean() - image.mean()) < 1
    back = T.ResizeTransform(20, 30, 40, 45).inverse()
    assert np.allclose(back.apply_coords(np.array([[45.0, 40.0]])), [[30, 20]])


def test_float_and_byte_images_resize_alike():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    transform = T.ResizeTransform(20, 30, 40, 60)
    by_torch = transform.apply_image(image.astype(np.float32))
    assert np.abs(by_torch - transform.apply_image(image)).max() <= 1


def test_quarter_turns_are_exact():
    image = np.random.default_rng(0).random((5, 8))
    turn = T.RotationTransform(5, 8, 90)
    assert np.allclose(turn.apply_image(image), image.T[::-1])
    points = np.random.default_rng(1).random((6, 2)) * (8, 5)
    assert np.allclose(turn.inverse().apply_coords(turn.apply_coords(points)), points)


def test_colour_transforms_leave_boxes():
    solarize = T.PILColorTransform(lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    data = make_input()
    flipped, boxes = data.image[:, ::-1], data.boxes.copy()
    data.transform(solarize)
    assert np.array_equal(data.image, flipped)
    assert np.array_equal(data.boxes, boxes)
    with pytest.raises(ValueError, match="callable"):
        T.ColorTransform(3)


def test_policies_see_what_they_ask_for():
    class Shift(T.Augmentation):
        def __init__(self, amount, unit="px"):
            self._init(locals())

        def get_transform(self, image, boxes):
            assert image.shape == (60, 80, 3)
            assert len(boxes) == 2
            return T.CropTransform(self.amount, 0, 40, 40)

    assert str(Shift(7)) == "Shift(amount=7)"
    assert str(Shift(7, "%")) == "Shift(amount=7, unit='%')"
    data = make_input()
    done = T.AugmentationList([Shift(7), T.HFlipTransform(40)])(data)
    assert len(done) == 2
    assert data.boxes[0].tolist() == [17, 5, 42, 30]

    class Nosy(T.Augmentation):
        def get_transform(self, image, depth):
            return T.NoOpTransform()

    with pytest.raises(AttributeError, match="depth"):
        Nosy()(data)


def test_wrong_arguments():
    for make in (
        lambda: T.RandomFlip(horizontal=True, vertical=True),
        lambda: T.RandomFlip(horizontal=False),
        lambda: T.ResizeShortestEdge((1, 2, 3)),
        lambda: T.RandomCrop("some", (1, 1)),
        lambda: T.RandomApply(T.RandomFlip(), 1.5),
    ):
        with pytest.raises((ValueError, AssertionError)):
            make()


def test_min_iou_crop_keeps_its_promise():
    data = make_input()
    for seed in range(30):
        np.random.seed(seed)
        transform = T.MinIoURandomCrop((0.3,)).get_transform(data.image, data.boxes)
        if isinstance(transform, T.NoOpTransform):
            continue
        assert transform.w >= 0.3 * 80 - 1
        assert 0.4 < transform.h / transform.w < 2.2
        centres = (data.boxes[:, :2] + data.boxes[:, 2:]) / 2 - (transform.x0, transform.y0)
        inside = ((centres > 0) & (centres < (transform.w + 1, transform.h + 1))).all(axis=1)
        assert inside.any()
