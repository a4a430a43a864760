"""Pictures of boxes: what is drawn where, whatever the style."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.visualizer import ColorMode, Visualizer
from PIL import Image


class Names:
    """The part of a data set's metadata that is drawn."""

    thing_classes = ("cat", "dog")
    thing_colors = ((250, 0, 0), (0, 0, 250))

    def get(self, key: str, default: object = None) -> object:
        return getattr(self, key, default)


def image(height: int = 80, width: int = 120) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (height, width, 3)).astype(np.uint8)


def predictions() -> Instances:
    instances = Instances((80, 120))
    instances.pred_boxes = Boxes([[10.0, 20, 60, 70], [5, 5, 100, 78]])
    instances.scores = torch.tensor([0.974, 0.5])
    instances.pred_classes = torch.tensor([0, 1])
    return instances


def drawn(visualizer: Visualizer) -> tuple[list[tuple[float, ...]], list[str]]:
    axes = visualizer.output.ax
    boxes = [tuple(patch.get_bbox().extents.tolist()) for patch in axes.patches]
    return boxes, [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.3, 2.0])
def test_the_result_has_the_scaled_size(scale: float) -> None:
    picture = Visualizer(image(), scale=scale).output.get_image()
    assert picture.shape == (int(80 * scale), int(120 * scale), 3)
    assert picture.dtype == np.uint8


def test_nothing_drawn_is_the_image_itself(tmp_path: Path) -> None:
    output = Visualizer(image()).get_output()
    assert np.array_equal(output.get_image(), image())
    output.save(str(tmp_path / "x.png"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png").convert("RGB")), image())


def test_predictions_are_drawn_large_first_and_labelled() -> None:
    visualizer = Visualizer(image(), Names())
    output = visualizer.draw_instance_predictions(predictions())
    assert output is visualizer.output
    assert drawn(visualizer) == (
        [(5, 5, 100, 78), (10, 20, 60, 70)],
        ["dog 50%", "cat 97%"],
    )
    changed = (output.get_image() != image()).any(axis=2)
    assert changed[40, 9:12].any()
    assert changed[78 - 1 : 78 + 2, 50].any()
    assert not changed[45, 30:50].any()


def test_labels_without_names_or_scores() -> None:
    visualizer = Visualizer(image())
    visualizer.draw_instance_predictions(predictions())
    assert drawn(visualizer)[1] == ["1 50%", "0 97%"]
    bare = Instances((80, 120), pred_boxes=predictions().pred_boxes)
    visualizer = Visualizer(image(), Names())
    visualizer.draw_instance_predictions(bare)
    assert drawn(visualizer)[1] == []


def test_annotations_are_drawn_in_every_mode_of_boxes() -> None:
    annotations = [
        {"bbox": [10, 20, 50, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 1},
        {"bbox": [5.0, 5, 100, 78], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1},
    ]
    visualizer = Visualizer(image(), Names())
    visualizer.draw_dataset_dict({"annotations": annotations})
    assert drawn(visualizer) == (
        [(5, 5, 100, 78), (10, 20, 60, 60)],
        ["dog", "cat|crowd"],
    )
    assert drawn_nothing({"annotations": []})
    assert drawn_nothing({})


def drawn_nothing(dataset_dict: dict[str, object]) -> bool:
    visualizer = Visualizer(image())
    visualizer.draw_dataset_dict(dataset_dict)
    return drawn(visualizer) == ([], [])


def test_instances_have_the_colours_given() -> None:
    visualizer = Visualizer(np.zeros((80, 120, 3)))
    boxes = np.array([[10.0, 20, 60, 70]])
    red, green, blue = visualizer.overlay_instances(boxes=boxes, assigned_colors=["r"]).get_image()[
        45, 10
    ]
    assert red > 100
    assert green == blue == 0
    output = visualizer.draw_box(boxes[0] + 10, alpha=1.0, edge_color="b")
    assert output.get_image()[45, 20].tolist() == [0, 0, 255]
    with pytest.raises(AssertionError):
        visualizer.overlay_instances(boxes=boxes, labels=["a", "b"])


def test_gray_mode_takes_the_colours_away() -> None:
    visualizer = Visualizer(image(), Names(), instance_mode=ColorMode.IMAGE_BW)
    picture = visualizer.draw_instance_predictions(predictions()[:0]).get_image()
    assert np.array_equal(picture[..., 0], picture[..., 1])
    assert np.array_equal(picture[..., 0], picture[..., 2])


def test_classes_have_the_colours_of_the_data_set(embedded: None) -> None:
    mode = ColorMode.SEGMENTATION  # Detectron2 jitters them
    visualizer = Visualizer(image(), Names(), instance_mode=mode)
    visualizer.draw_instance_predictions(predictions())
    colors = [patch.get_edgecolor()[:3] for patch in visualizer.output.ax.patches]
    assert np.allclose(colors, [(0, 0, 250 / 255), (250 / 255, 0, 0)])


def test_drawing_leaves_the_random_generators_alone(embedded: None) -> None:
    np.random.seed(0)  # noqa: NPY002 - the global generator is what must not move
    state = torch.get_rng_state()
    Visualizer(image()).draw_instance_predictions(predictions())
    assert np.random.rand() == np.random.RandomState(0).rand()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), state)
