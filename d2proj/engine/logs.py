"""Logging of a command: on stdout at once, and in ``log.txt`` once the run may write there."""

import logging
import logging.handlers
import sys
from pathlib import Path

from detectron2.utils import comm
from tqdm import tqdm

_FORMAT = logging.Formatter("[%(asctime)s] %(message)s", datefmt="%m/%d %H:%M:%S")
_FILE_FORMAT = logging.Formatter("[%(asctime)s %(name)s] %(levelname)s %(message)s")
_MANY = 100_000


class _Screen(logging.Handler):
    """Prints above a progress bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


class RunLog:
    """Shows the main process's messages, and keeps all until there is a file for them."""

    def __init__(self) -> None:
        """Start showing."""
        self._logger = logging.getLogger("d2proj")
        self._logger.setLevel(logging.DEBUG)  # the file has what a progress bar shows, too
        self._logger.propagate = False
        self._kept = logging.handlers.MemoryHandler(_MANY, flushLevel=logging.CRITICAL + 1)
        self._handlers: list[logging.Handler] = [self._kept]
        screen = _Screen()
        screen.setFormatter(_FORMAT)
        screen.setLevel(logging.INFO if comm.is_main_process() else logging.ERROR)
        self._handlers.append(screen)
        for handler in self._handlers:
            self._logger.addHandler(handler)

    def write_to(self, folder: Path) -> None:
        """Send everything so far and from now on to ``folder/log.txt`` (``.rankN`` for others)."""
        rank = comm.get_rank()
        file = logging.FileHandler(folder / f"log.txt{f'.rank{rank}' if rank else ''}")
        file.setFormatter(_FILE_FORMAT)
        self._kept.setTarget(file)
        self._kept.close()  # flushes
        self._logger.removeHandler(self._kept)
        self._handlers[0] = file
        self._logger.addHandler(file)

    def close(self) -> None:
        """Stop."""
        for handler in self._handlers:
            self._logger.removeHandler(handler)
            handler.close()
