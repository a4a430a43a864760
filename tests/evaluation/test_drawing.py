"""Boxes land where they should, with a colour for each class."""

import numpy as np
import pytest

from d2proj.evaluation.drawing import class_color, draw_boxes, enlarge, side_by_side


def test_a_box_is_drawn_on_its_edge():
    image = np.zeros((200, 300, 3), np.uint8)
    draw_boxes(image, np.array([[50.0, 60.0, 150.0, 120.0]]), [1], ["x"])
    assert tuple(image[90, 50]) == class_color(1) == tuple(image[120, 100])
    assert not image[90, 100].any()
    assert not image[150:].any()


def test_the_first_box_is_on_top():
    # The label of a lesser detection of another class hid the best one's.
    image = np.zeros((200, 300, 3), np.uint8)
    draw_boxes(image, np.array([[50.0, 60.0, 150.0, 120.0]] * 2), [1, 2], ["best", "second"])
    assert tuple(image[90, 50]) == class_color(1)


@pytest.mark.parametrize("box", [[-20, -20, 50, 50], [0, 0, 300, 200], [290, 190, 400, 400]])
def test_boxes_over_the_edge_do_not_fail(box):
    image = np.zeros((200, 300, 3), np.uint8)
    draw_boxes(image, np.array([box], np.float32), [0], ["a very long label " * 5])
    assert image.any()


def test_colors_differ():
    colors = [np.array(class_color(i), float) for i in range(12)]
    distances = [np.abs(a - b).max() for i, a in enumerate(colors) for b in colors[:i]]
    assert min(distances) > 20


def test_small_pictures_are_enlarged_and_large_ones_are_not():
    small, factor = enlarge(np.zeros((64, 128, 3), np.uint8))
    assert factor == 4
    assert small.shape == (256, 512, 3)
    assert enlarge(np.zeros((700, 900, 3), np.uint8))[1] == 1


def test_side_by_side():
    left, right = np.full((50, 80, 3), 10, np.uint8), np.full((50, 60, 3), 20, np.uint8)
    picture = side_by_side([left, right], ["a", "b"])
    assert picture.shape == (78, 146, 3)
    assert (picture[28:, :80] == 10).all()
    assert (picture[28:, 86:] == 20).all()
