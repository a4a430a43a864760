"""Pictures and videos on disk: what is to be looked at, reading, writing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from detectron2.data.detection_utils import read_image

from d2proj.errors import InputError

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")


@dataclass(frozen=True)
class Source:
    """A picture or a video to look at.

    Attributes:
        path: the file.
        output_name: name of the drawn file, different from every other one's.
        is_video: whether it is a video.
        numbered: whether the files of this call are called by number, as COCO's are.
    """

    path: Path
    output_name: str
    is_video: bool
    numbered: bool


def find_sources(paths: Sequence[str], output: Path) -> list[Source]:
    """Files and the pictures and videos of folders (not their sub-folders), sorted within each.

    Raises:
        InputError: a path does not exist, is of an unknown kind or a folder without pictures; or a
            drawn file would replace its source.
    """
    files: list[Path] = []
    for text in paths:
        path = Path(text)
        if path.is_dir():
            found = sorted(f for f in path.iterdir() if f.suffix.lower() in IMAGES + VIDEOS)
            if not found:
                raise InputError(f"The folder {path} has no pictures or videos.")
            files += found
        elif not path.is_file():
            raise InputError(f"{path} does not exist.")
        elif path.suffix.lower() not in IMAGES + VIDEOS:
            raise InputError(f"{path} is neither a picture ({', '.join(IMAGES)}) nor a video.")
        else:
            files.append(path)
    if not files:
        raise InputError("No picture, folder or video was given.")
    if any(f.resolve().parent == output.resolve() for f in files):
        raise InputError(f"--output {output} is the folder of the pictures: choose another.")
    return _named(files)


def _named(files: Sequence[Path]) -> list[Source]:
    stems = [f.stem for f in files]
    numbered = len(set(stems)) == len(stems) and all(
        s.isdecimal() and f.suffix.lower() in IMAGES for s, f in zip(stems, files, strict=True)
    )
    sources: list[Source] = []
    used: set[str] = set()
    for file in files:
        is_video = file.suffix.lower() in VIDEOS
        ending = ".mp4" if is_video else file.suffix
        name, number = f"{file.stem}{ending}", 1
        while name in used:
            number += 1
            name = f"{file.stem}_{number}{ending}"
        used.add(name)
        sources.append(Source(file, name, is_video, numbered))
    return sources


def read_picture(path: Path) -> np.ndarray:
    """A picture, (H, W, 3) uint8 BGR, turned as its EXIF data say."""
    try:
        image: np.ndarray = read_image(str(path), "BGR")
    except (OSError, ValueError, SyntaxError) as error:
        # Pillow's errors for truncated and unknown files; SyntaxError is its word for broken PNGs.
        raise InputError(f"The picture {path} cannot be read: {error}.") from error
    return np.ascontiguousarray(image)


def video_frames(path: Path) -> Iterator[tuple[np.ndarray, float]]:
    """The frames of a video, (H, W, 3) uint8 BGR, each with the frame rate."""
    capture = cv2.VideoCapture(str(path))
    try:
        rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
        found, frame = capture.read()
        if not found:
            raise InputError(f"The video {path} cannot be read.")
        while found:
            yield frame, rate
            found, frame = capture.read()
    finally:
        capture.release()


class VideoSink:
    """Writes frames to an MP4 file."""

    def __init__(self, path: Path, size: tuple[int, int], rate: float) -> None:
        """Open ``path`` for frames of ``size`` (height, width)."""
        height, width = size
        codec = cv2.VideoWriter.fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(str(path), codec, rate, (width, height))
        if not self._writer.isOpened():
            raise InputError(f"The video {path} cannot be written by this OpenCV (codec mp4v).")

    def write(self, frame: np.ndarray) -> None:
        """Add a frame."""
        self._writer.write(frame)

    def close(self) -> None:
        """Finish the file."""
        self._writer.release()
