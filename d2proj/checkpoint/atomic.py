"""Writes files so that, whenever the process or the machine stops, the old or the new is there."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

PARTIAL_SUFFIX = ".partial"


class Writable(Protocol):
    """What ``torch.save`` and plain code need of an open file."""

    def write(self, data: Any, /) -> int:
        """Write all of the bytes and give their number."""

    def flush(self) -> None:
        """Hand everything written to the operating system."""


def write_atomically(path: Path, write: Callable[[Writable], object]) -> None:
    """Write a file beside its final place, force it to the disk, and rename it over the old one.

    Args:
        path: the final place. Its folder must exist.
        write: given an open binary file, writes the content.

    Raises:
        OSError: the folder cannot be written or the disk is full; the old file is untouched and
            nothing is left behind. (Killed in the middle, a hidden ``.partial`` file stays; see
            :func:`remove_partial_files`.)
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        with _RawWriter(partial) as file:
            write(file)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partial_files(folder: Path) -> list[Path]:
    """Remove what interrupted writes left in a folder.

    Returns:
        The files that were removed.
    """
    removed = []
    for leftover in sorted(folder.glob(f".*{PARTIAL_SUFFIX}")):
        with contextlib.suppress(OSError):
            leftover.unlink()
            removed.append(leftover)
    return removed


class _RawWriter:
    """An unbuffered file that is on the disk when it closes, and tells why a write failed.

    torch's zip writer turns a failing ``write`` into a RuntimeError about positions in the archive;
    leaving the ``with`` block raises the OSError behind it instead.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._error: OSError | None = None

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        total = len(view)
        while len(view):
            try:
                view = view[os.write(self._descriptor, view) :]
            except OSError as error:
                self._error = self._error or error
                raise
        return total

    def flush(self) -> None:
        pass  # nothing is held back

    def __enter__(self) -> "_RawWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: object) -> None:
        try:
            if kind is None:
                os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)
        if self._error is not None:
            raise self._error from None
