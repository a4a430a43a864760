"""The generated digits: reproducible, tight boxes, written whole or not at all."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2proj.data import load_dataset
from d2proj.data.datasets import digits
from d2proj.data.datasets.digits import DigitsParameters, generate
from d2proj.data.digits import main
from d2proj.errors import InputError

FEW = DigitsParameters(train_images=12, val_images=8, image_size=96, seed=3)


def digest(root: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file():
            total.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return total.hexdigest()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("digits") / "set", FEW)


def test_same_seed_same_bytes(root: Path, tmp_path: Path) -> None:
    assert digest(generate(tmp_path / "again", FEW)) == digest(root)
    other = DigitsParameters(train_images=12, val_images=8, image_size=96, seed=4)
    assert digest(generate(tmp_path / "other", other)) != digest(root)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "other"]


def test_it_is_reused_and_nothing_is_overwritten(root: Path, tmp_path: Path) -> None:
    before = root.stat().st_mtime_ns
    assert generate(root, FEW) == root
    assert root.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="holds digits generated with"):
        generate(root, DigitsParameters())
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="holds no digits data set"):
        generate(tmp_path, FEW)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_an_interrupted_generation_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(digits, "_write_split", fail)
    with pytest.raises(InputError, match="cannot be written there: No space left"):
        generate(tmp_path / "set", FEW)
    assert list(tmp_path.iterdir()) == []


def test_loads_as_a_data_set(root: Path) -> None:
    parameters = {"train_images": 12, "val_images": 8, "image_size": 96, "seed": 3}
    node = {"format": "digits", "root": str(root), **parameters}
    train, val = (load_dataset(node, split) for split in ("train", "val"))
    assert train.class_names == val.class_names == [str(digit) for digit in range(10)]
    assert (len(train), len(val)) == (12, 8)
    assert not train.report.dropped
    assert not train.report.clipped
    assert train.json_file is not None


def test_train_and_val_use_different_handwriting() -> None:
    train, val = (digits._handwriting(split, 0)[0] for split in ("train", "val"))
    assert (len(train), len(val)) == (1437, 360)
    seen = {glyph.tobytes() for glyph in train}
    assert not seen & {glyph.tobytes() for glyph in val}


def test_boxes_are_tight_around_the_ink(monkeypatch: pytest.MonkeyPatch) -> None:
    def flat(rng: np.random.Generator, size: int) -> np.ndarray:
        return np.full((size, size, 3), 0.5, dtype=np.float32)

    monkeypatch.setattr(digits, "draw_texture", flat)
    monkeypatch.setattr(digits, "_MOST_OVERLAP", 0.0)
    found = 0
    for picture, drawn in digits._pictures("train", DigitsParameters(40, 1, 128, 0)):
        ink = np.abs(picture.astype(int) - 128).max(axis=2) > 40
        covered = np.zeros_like(ink)
        for _, (x, y, width, height) in drawn:
            part = ink[y : y + height, x : x + width]
            # Every side of the box touches the ink, give or take its soft edge.
            assert part[:2].any()
            assert part[-2:].any()
            assert part[:, :2].any()
            assert part[:, -2:].any()
            covered[y : y + height, x : x + width] = True
            found += 1
        outside = ink & ~covered
        assert outside.sum() <= 0.02 * ink.sum() + 4
    assert found > 100


def test_digits_vary_and_overlap_within_bounds(root: Path) -> None:
    counts, sizes, worst = [], [], 0.0
    for _, drawn in digits._pictures("train", DigitsParameters(150, 1, 128, 0)):
        counts.append(len(drawn))
        boxes = [box for _, box in drawn]
        sizes += [box[3] for box in boxes]
        pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
        worst = max([worst, *(digits._overlap(a, b) for a, b in pairs)])
    assert 0 < counts.count(0) < 15
    assert max(counts) >= 7
    assert min(sizes) < 20
    assert max(sizes) > 55
    assert 0.1 < worst <= 0.2


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "a" / "b"
    arguments = ["--output", str(target), "--train", "3", "--val", "2", "--size", "48"]
    assert main(arguments) == 0
    document = json.loads((target / "annotations" / "val.json").read_text())
    assert len(document["images"]) == 2
    assert Image.open(target / "images" / "val" / "000001.png").size == (48, 48)
    assert main([*arguments, "--seed", "1"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert main(["--output", str(tmp_path / "c"), "--train", "0"]) == 2
    assert not (tmp_path / "c").exists()
