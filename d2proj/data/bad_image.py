"""Image files that cannot be used: how one is recognised, carried to the main process, counted."""

import logging
import struct
import zlib
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from d2proj.errors import InputError

# What Pillow's decoders are known to raise for damaged files: none of them checks all it reads.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class BadImageError(Exception):
    """An image file is missing, damaged, or not of the size that its data set says.

    Args:
        path: the file.
        reason: a clause, such as "it does not exist".
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason


def explain(error: BaseException) -> str:
    """A clause that says what is wrong with an image file."""
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image that can be decoded, or is empty"
    return " ".join(str(error).split()) or type(error).__name__


@dataclass(frozen=True)
class BadImage:
    """A BadImageError on its way from a worker, which cannot raise it as one sentence."""

    path: str
    reason: str


class BadImageLog:
    """Raises for bad images, or counts them and warns once of each.

    Args:
        on_bad_image: "raise" or "skip".

    Attributes:
        counts: path -> how many times it was met.
    """

    def __init__(self, on_bad_image: str) -> None:
        if on_bad_image not in ("raise", "skip"):
            raise InputError(f"data.on_bad_image must be raise or skip, not {on_bad_image!r}.")
        self._skip = on_bad_image == "skip"
        self.counts: dict[str, int] = {}

    def add(self, bad: BadImage) -> None:
        """Note one.

        Raises:
            InputError: bad images are not to be skipped.
        """
        if not self._skip:
            raise InputError(
                f"{bad.path}: the image cannot be used: {bad.reason} "
                f"(data.on_bad_image=skip leaves such images out)."
            )
        if bad.path not in self.counts:
            logging.getLogger(__name__).warning("skipped %s: %s", bad.path, bad.reason)
        self.counts[bad.path] = self.counts.get(bad.path, 0) + 1
