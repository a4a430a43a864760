"""``python -m d2proj.predict`` on pictures, a folder and a video."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from d2proj import predict
from d2proj.evaluation.coco_classes import coco_classes


@pytest.fixture
def trained(toy, tmp_path) -> Path:
    """A run's folder."""
    assert toy("train.max_iter=2") == 0
    return tmp_path / "run"


@pytest.fixture
def call(trained, tmp_path):
    """Call the command; gives the exit status."""

    def run(*args: object, config: Path | None = None, out: str = "found") -> int:
        weights = trained / "model_final.pth"
        common = ["--config-file", config or trained / "config.yaml", "--weights", weights]
        common += ["--output", tmp_path / out, "--score-threshold", 0.0]
        try:
            predict.main([str(a) for a in [*common, *args]])
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, size in (("a.png", (40, 60)), ("b.jpg", (70, 50))):
        cv2.imwrite(str(folder / name), np.random.default_rng(0).integers(0, 255, (*size, 3)))
    return folder


def entries(folder: Path) -> list[dict]:
    return json.loads((folder / "predictions.json").read_text())


def test_a_folder(call, pictures, tmp_path):
    assert call(pictures) == 0
    found = entries(tmp_path / "found")
    assert {e["file_name"] for e in found} == {str(pictures / n) for n in ("a.png", "b.jpg")}
    assert len(found) == 20
    assert {e["image_id"] for e in found} == {1, 2}
    first = found[0]
    # The toy's box is (0.1 W, 0.1 H, 0.6 W, 0.7 H), here of 60x40 pixels.
    assert first["bbox"] == pytest.approx([6, 4, 30, 24], abs=1e-2)
    assert first["category"] == str(first["category_id"] - 1) or first["category"] in "0123456789"
    drawn = cv2.imread(str(tmp_path / "found" / "a.png"))
    assert drawn.shape[0] / drawn.shape[1] == pytest.approx(40 / 60)
    assert (tmp_path / "found" / "b.jpg").exists()


def test_threshold_and_class_ids_of_the_data_set(call, pictures, tmp_path, trained):
    assert call(pictures / "a.png") == 0
    scores = sorted(e["score"] for e in entries(tmp_path / "found"))
    assert call(pictures / "a.png", "--score-threshold", scores[4], out="some") == 0
    assert len(entries(tmp_path / "some")) in (5, 6)  # scores are rounded in the file
    assert call(pictures / "a.png", "--score-threshold", 1.0, out="none") == 0
    assert entries(tmp_path / "none") == []
    reference = json.loads(next((trained / "evaluation").glob("coco_instances*.json")).read_text())
    ids = {e["category_id"] for e in reference}
    assert {e["category_id"] for e in entries(tmp_path / "found")} == ids


def test_files_called_by_number_keep_it(call, pictures, tmp_path):
    (pictures / "a.png").rename(pictures / "000000000139.png")
    assert call(pictures / "000000000139.png") == 0
    assert {e["image_id"] for e in entries(tmp_path / "found")} == {139}


def test_a_video(call, tmp_path):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    for shade in (0, 100, 200):
        writer.write(np.full((48, 64, 3), shade, np.uint8))
    writer.release()
    assert call(path) == 0
    found = entries(tmp_path / "found")
    assert {(e["frame"], e["image_id"]) for e in found} == {(0, 1), (1, 2), (2, 3)}
    drawn = cv2.VideoCapture(str(tmp_path / "found" / "clip.mp4"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert drawn.get(cv2.CAP_PROP_FPS) == pytest.approx(10)


def test_same_names_do_not_overwrite_each_other(call, pictures, tmp_path):
    other = tmp_path / "more"
    other.mkdir()
    (other / "a.png").write_bytes((pictures / "a.png").read_bytes())
    assert call(pictures / "a.png", other / "a.png") == 0
    assert {p.name for p in (tmp_path / "found").glob("*.png")} == {"a.png", "a_2.png"}


def test_class_names_without_a_data_set(call, pictures, tmp_path):
    """The config file alone knows no classes; the checkpoint does."""
    toy_config = Path(__file__).with_name("toy_config.py")
    assert call(pictures, config=toy_config) == 0
    assert {e["category"] for e in entries(tmp_path / "found")} == set("0123456789")


def test_coco_names(shared_data):
    """Against the annotations themselves."""
    file = shared_data / "coco_val74" / "instances_val2017_subset.json"
    categories = json.loads(file.read_text())["categories"]
    assert coco_classes() == ([c["name"] for c in categories], [c["id"] for c in categories])


def test_real_pictures(call, shared_data, tmp_path):
    assert call(shared_data / "darknet" / "images" / "dog.jpg") == 0
    image = cv2.imread(str(shared_data / "darknet" / "images" / "dog.jpg"))
    assert cv2.imread(str(tmp_path / "found" / "dog.jpg")).shape == image.shape
    boxes = [e["bbox"] for e in entries(tmp_path / "found")]
    assert boxes[0] == pytest.approx([0.1 * 768, 0.1 * 576, 0.5 * 768, 0.6 * 576], abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/no/such.jpg"], "/no/such.jpg does not exist"),
        (["text.txt"], "neither a picture"),
        (["empty"], "no pictures"),
        (["broken.jpg"], "broken.jpg cannot be read"),
        (["broken.mp4"], "broken.mp4 cannot be read"),
        (["ok.png", "data.image_fromat=RGB"], "did you mean data.image_format?"),
        (["ok.png", "--score-threshold", "2"], "--score-threshold"),
        (["ok.png", "--weights", "/no/such.pth"], "/no/such.pth"),
        (["ok.png", "--output", "."], "folder of the pictures"),
        (["ok.png", "model.num_classes=3"], "model.num_classes is 3"),
        (["train.seed=1"], "No picture"),
    ],
)
def test_bad_input(call, tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("broken.jpg", "broken.mp4"):
        (tmp_path / name).write_bytes(b"\xff\xd8\xff no picture")
    cv2.imwrite("ok.png", np.zeros((8, 8, 3), np.uint8))
    capsys.readouterr()
    assert call(*arguments) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert len(lines) == 1
    assert words in lines[0]
    assert not (tmp_path / "found" / "predictions.json").exists()


def test_predictions_are_not_overwritten(call, pictures, tmp_path):
    assert call(pictures) == 0
    assert call(pictures) == 2
    assert call(pictures / "a.png", "--overwrite") == 0
    assert len(entries(tmp_path / "found")) == 10


def test_bad_pictures_can_be_skipped(call, pictures, tmp_path):
    (pictures / "c.png").write_bytes(b"nothing")
    assert call(pictures) == 2
    assert call(pictures, "data.on_bad_image=skip", out="some") == 0
    assert len(entries(tmp_path / "some")) == 20
