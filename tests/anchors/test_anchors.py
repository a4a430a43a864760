"""Anchors: k-means with 1 - IoU against loops, scikit-learn's Euclidean k-means and the paper."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.cluster import KMeans

from d2proj.anchors import best_iou, fit_anchors
from d2proj.anchors.__main__ import main
from d2proj.engine.config import load_config

ROOT = Path(__file__).resolve().parents[2]


def mixture(seed: int, n: int = 3000) -> np.ndarray:
    """Shapes like a detection set's: sizes over two orders of magnitude, all proportions."""
    rng = np.random.default_rng(seed)
    size, ratio = np.exp(rng.normal(4, 0.9, n)), np.exp(rng.normal(0, 0.4, n))
    return np.stack([size * ratio, size / ratio], 1)


def test_iou_is_that_of_loops():
    rng = np.random.default_rng(0)
    shapes, anchors = rng.uniform(1, 50, (40, 2)), rng.uniform(1, 50, (6, 2))
    iou, which = best_iou(shapes, anchors)
    for (w, h), found, number in zip(shapes, iou, which, strict=True):
        table = []
        for a, b in anchors:
            inter = min(w, a) * min(h, b)
            table.append(inter / (w * h + a * b - inter))
        assert number == int(np.argmax(table))
        assert found == pytest.approx(max(table), rel=1e-5)


def test_clusters_are_found():
    centres = np.array([[10.0, 12], [30, 90], [95, 33], [120, 130], [300, 280]])
    rng = np.random.default_rng(1)
    shapes = np.concatenate(
        [
            c * rng.normal(1, 0.04, (n, 2))
            for c, n in zip(centres, (900, 40, 300, 80, 10), strict=True)
        ]
    )
    fit = fit_anchors(shapes, 5)
    np.testing.assert_allclose(fit.anchors, centres, rtol=0.05)
    assert np.bincount(fit.nearest).tolist() == [900, 40, 300, 80, 10]
    assert fit.recall(0.5) == 1.0
    assert fit.mean_iou > 0.9


@pytest.mark.parametrize("k", [3, 5, 9])
@pytest.mark.parametrize("seed", range(3))
def test_better_than_euclidean(seed, k):
    shapes = mixture(seed)
    euclidean = KMeans(k, n_init=5, random_state=0).fit(shapes).cluster_centers_
    ours = fit_anchors(shapes, k)
    # The paper's reason for its distance: squared errors care for the large boxes alone.
    assert ours.mean_iou > best_iou(shapes, euclidean)[0].mean() + 0.02


def test_average_iou_grows_with_k():
    """Figure 2 of YOLO9000."""
    means = [fit_anchors(mixture(0), k).mean_iou for k in range(1, 12, 2)]
    assert (np.diff(means) > 0).all()
    assert means[0] < 0.4 < 0.6 < means[-1]


def test_the_same_seed_gives_the_same_anchors():
    shapes = mixture(3, 30_000)  # more than are compared by
    first, again = fit_anchors(shapes, 6, seed=5), fit_anchors(shapes, 6, seed=5)
    assert np.array_equal(first.anchors, again.anchors)
    assert (np.diff(first.anchors.prod(1)) >= 0).all()
    # The refinement looks at all boxes.
    whole = fit_anchors(shapes, 6, seed=6)
    assert whole.mean_iou == pytest.approx(first.mean_iou, abs=5e-3)


def test_few_shapes():
    shapes = [[4.0, 5.0]] * 10 + [[8.0, 9.0]]
    assert fit_anchors(shapes, 2).anchors.tolist() == [[4, 5], [8, 9]]
    with pytest.raises(ValueError, match="the data has 2"):
        fit_anchors(shapes, 3)
    with pytest.raises(ValueError, match="positive"):
        fit_anchors([[0.0, 5.0]], 1)


@pytest.fixture
def data_set(tmp_path):
    """YOLO txt: 200 x 100 pictures with boxes of two shapes."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (200, 100)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("0 .5 .5 .1 .1\n0 .5 .5 .4 .8\n")
    (folder / "classes.txt").write_text("thing\n")
    return [f"dataset.train.images={folder}", "dataset.format=yolo"]


def test_command_gives_overrides_that_load(data_set, capsys):
    # From 200 x 100 to 416 x 416: 41.6 x 41.6 and 166.4 x 332.8 pixels.
    config = str(ROOT / "configs" / "yolo9000" / "yolo9000.py")
    main(["--config-file", config, "--size", "416", "--num", "2", *data_set])
    out = capsys.readouterr().out
    override = re.search(r"train_net.py: '(.*)'", out)[1]
    cfg = load_config(config, [override])
    # YOLOv2's anchors are in cells.
    np.testing.assert_allclose(cfg.model.anchors, [[1.3, 1.3], [5.2, 10.4]])
    assert "cfg, [yolo]: anchors = 41.6,41.6, 166.4,332.8" in out
    assert "cfg, [region]: anchors = 1.3,1.3, 5.2,10.4" in out
    assert "the config has 3" in out
    assert "average IoU 1.0000" in out


def test_command_resizes_as_the_config_does(data_set, capsys):
    # A shortest side of 288, the longest at most 480: 200 x 100 becomes 480 x 240.
    config = str(ROOT / "configs" / "retinanet" / "retinanet_tiny.py")
    main(["--config-file", config, "--num", "2", *data_set])
    assert "cfg, [yolo]: anchors = 48,24, 192,192" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num", "0"], "must be at least 1"),
        (["--size", "4x"], "--size must be W or WxH"),
        (["--num", "3"], "3 anchors need as many different box shapes, the data has 2"),
        (["dataset.format=coco"], "dataset"),
        ([], "has no model.anchors"),
    ],
)
def test_command_errors(data_set, capsys, arguments, message):
    config = str(ROOT / "configs" / "retinanet" / "retinanet_tiny.py")
    with pytest.raises(SystemExit) as stop:
        main(
            ["--config-file", config, *(["--num", "2"] * (arguments != [])), *data_set, *arguments]
        )
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
