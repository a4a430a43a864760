"""A data set that needs no download: real handwritten digits on generated backgrounds.

The digits are scikit-learn's copy of the UCI "Optical Recognition of Handwritten Digits" test set
(1797 pictures of 8 x 8 pixels). They are drawn at varied size, rotation, colour and contrast, some
overlapping, and written once as a COCO data set. Train and val use different handwritten samples.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from d2proj.data.datasets.coco import read_coco_json
from d2proj.data.datasets.raw import RawDataset
from d2proj.data.datasets.textures import draw_texture
from d2proj.errors import InputError

KEYS: dict[str, Any] = {
    "root": None,
    "train_images": None,
    "val_images": None,
    "image_size": None,
    "seed": None,
}
DEFAULT_ROOT = "datasets/digits"

Plane = npt.NDArray[np.float32]  # [H, W] or [H, W, 3], 0 to 1

# Part of the fingerprint: to be raised when the same parameters give other pictures.
_VERSION = 1
_FINGERPRINT = "digits.json"
_EMPTY_FRACTION = 0.04
_MOST_DIGITS = 8
# Of the smaller of two boxes, how much the other may cover.
_MOST_OVERLAP = 0.2
_LEAST_CONTRAST = 0.25
# Ink thinner than this is not seen, and does not count for the box.
_INK = 0.35


@dataclass(frozen=True)
class DigitsParameters:
    """What the data set is a function of.

    Attributes:
        train_images: number of pictures to train on.
        val_images: number of pictures for validation.
        image_size: width and height of a picture in pixels.
        seed: of everything drawn at random.
    """

    train_images: int = 5000
    val_images: int = 250
    image_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("train_images", 1),
            ("val_images", 1),
            ("image_size", 32),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"digits: {name} must be at least {least}, not {value!r}.")

    def fingerprint(self) -> dict[str, int]:
        """Parameters and version: two data sets with equal fingerprints are the same."""
        return {"version": _VERSION, **asdict(self)}


def read(node: dict[str, Any], split: str) -> RawDataset:
    """Read ``dataset.root`` (default datasets/digits), generating it if it does not exist."""
    names = ("train_images", "val_images", "image_size", "seed")
    parameters = DigitsParameters(**{name: node[name] for name in names if name in node})
    root = generate(Path(str(node.get("root", DEFAULT_ROOT))).expanduser(), parameters)
    return read_coco_json(root / "annotations" / f"{split}.json", root / "images" / split)


def generate(root: Path, parameters: DigitsParameters) -> Path:
    """Write the data set into ``root``, or find it there from an earlier call.

    It is written to a folder beside and renamed, so that it is there whole or not at all, and
    several processes may ask for it at once.

    Raises:
        InputError: ``root`` holds something else, which is left alone.
    """
    if _is_there(root, parameters):
        return root
    logging.getLogger(__name__).info("generating the digits data set in %s", root)
    unfinished = root.with_name(f".{root.name}.{os.getpid()}.tmp")
    try:
        for split in ("train", "val"):
            _write_split(unfinished, split, parameters)
        (unfinished / _FINGERPRINT).write_text(json.dumps(parameters.fingerprint()) + "\n")
        unfinished.rename(root)
    except OSError as error:
        # Another process may have been faster.
        if not _is_there(root, parameters):
            raise InputError(f"{root}: the digits cannot be written there: {error}.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return root


def _is_there(root: Path, parameters: DigitsParameters) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / _FINGERPRINT).read_text())
    except (OSError, ValueError):
        raise InputError(
            f"{root} exists and holds no digits data set: choose another folder."
        ) from None
    if found != parameters.fingerprint():
        raise InputError(
            f"{root} holds digits generated with {found}, not {parameters.fingerprint()}: "
            f"delete it or choose another folder."
        )
    return True


def _write_split(root: Path, split: str, parameters: DigitsParameters) -> None:
    folder = root / "images" / split
    folder.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    size = parameters.image_size
    for number, (picture, digits) in enumerate(_pictures(split, parameters), start=1):
        name = f"{number:06d}.png"
        # Level 1 takes a third of the time of the default and 5 % more space.
        Image.fromarray(picture).save(folder / name, compress_level=1)
        images.append({"id": number, "file_name": name, "width": size, "height": size})
        for label, (x, y, width, height) in digits:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
    document = {
        "info": {"description": f"d2proj digits, {split}", **parameters.fingerprint()},
        "categories": [{"id": digit + 1, "name": str(digit)} for digit in range(10)],
        "images": images,
        "annotations": annotations,
    }
    path = root / "annotations" / f"{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document))


Digit = tuple[int, tuple[int, int, int, int]]  # label; x, y, width, height


def _pictures(
    split: str, parameters: DigitsParameters
) -> Iterator[tuple[npt.NDArray[np.uint8], list[Digit]]]:
    glyphs, labels = _handwriting(split, parameters.seed)
    count = parameters.train_images if split == "train" else parameters.val_images
    for i in range(count):
        # A generator for each picture: the first n are the same however many are asked for.
        rng = np.random.default_rng([parameters.seed, split == "val", i])
        canvas = draw_texture(rng, parameters.image_size)
        digits: list[Digit] = []
        wanted = 0 if rng.random() < _EMPTY_FRACTION else int(rng.integers(1, _MOST_DIGITS + 1))
        for _ in range(wanted):
            chosen = int(rng.integers(len(glyphs)))
            box = _place(rng, canvas, glyphs[chosen], [box for _, box in digits])
            if box is not None:
                digits.append((int(labels[chosen]), box))
        yield (canvas * 255 + 0.5).astype(np.uint8), digits


def _handwriting(split: str, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The 8 x 8 digits of one split, uint8 [n, 8, 8]: four fifths for train, one for val."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "The digits data set needs scikit-learn, which is not installed: "
            "pip install scikit-learn."
        ) from error
    bunch = load_digits()
    order = np.random.default_rng([seed, 2]).permutation(len(bunch.target))
    cut = len(order) * 4 // 5
    chosen = order[:cut] if split == "train" else order[cut:]
    return (bunch.images[chosen] * (255 / 16)).astype(np.uint8), bunch.target[chosen]


def _place(
    rng: np.random.Generator,
    canvas: Plane,
    glyph: npt.NDArray[np.uint8],
    taken: list[tuple[int, int, int, int]],
) -> tuple[int, int, int, int] | None:
    """Draw a glyph somewhere on the canvas; its box, or None where there was no room."""
    size = canvas.shape[0]
    height = float(np.exp(rng.uniform(np.log(0.14 * size), np.log(0.5 * size))))
    ink = _render(glyph, height, height * rng.uniform(0.8, 1.15), rng.uniform(-30, 30))
    rows, columns = np.flatnonzero((ink > _INK).any(1)), np.flatnonzero((ink > _INK).any(0))
    if not len(rows) or max(ink.shape) > size:
        return None
    top, left = int(rows[0]), int(columns[0])
    box_height, box_width = int(rows[-1]) - top + 1, int(columns[-1]) - left + 1
    for _ in range(10):
        x = int(rng.integers(0, size - ink.shape[1] + 1))
        y = int(rng.integers(0, size - ink.shape[0] + 1))
        box = (x + left, y + top, box_width, box_height)
        if all(_overlap(box, other) <= _MOST_OVERLAP for other in taken):
            _blend(rng, canvas[y : y + ink.shape[0], x : x + ink.shape[1]], ink)
            return box
    return None


def _render(glyph: npt.NDArray[np.uint8], height: float, width: float, degrees: float) -> Plane:
    """How much ink covers each pixel: the glyph enlarged, turned, its edges made crisp."""
    # The strokes reach the border of the 8 x 8 pixels; without a margin their ends would be cut.
    padded = Image.fromarray(np.pad(glyph, 2))
    enlarged = padded.resize(
        (max(round(width * 12 / 8), 1), max(round(height * 12 / 8), 1)), Image.Resampling.BICUBIC
    )
    turned = enlarged.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    level = np.asarray(turned, dtype=np.float32) / 255
    level = np.clip((level - 0.35) / 0.3, 0, 1)
    ink: Plane = (level * level * (3 - 2 * level)).astype(np.float32)
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    if not len(rows):
        return ink[:0, :0]
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0) / min(a[2] * a[3], b[2] * b[3])


def _blend(rng: np.random.Generator, patch: Plane, ink: Plane) -> None:
    """Paint the ink onto a part of the canvas, lighter or darker than what is there."""
    ground = float(patch.mean())
    contrast = rng.uniform(_LEAST_CONTRAST, 0.8) * rng.choice([-1.0, 1.0])
    if not 0 <= ground + contrast <= 1 and abs(np.clip(ground + contrast, 0, 1) - ground) < 0.25:
        contrast = -contrast
    tint = rng.uniform(-0.12, 0.12, 3)
    colour = np.clip(ground + contrast + tint - tint.mean(), 0, 1).astype(np.float32)
    patch += ink[:, :, None] * (colour - patch)
