"""Logging to the terminal and to files, and logging that does not flood."""

import atexit
import functools
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import IO, Any

from tabulate import tabulate
from termcolor import colored

from detectron2.utils.file_io import PathManager

__all__ = ["log_every_n", "log_every_n_seconds", "log_first_n", "setup_logger"]

_DATE_FORMAT = "%m/%d %H:%M:%S"
_LEVEL_COLORS = {
    logging.WARNING: ("red", ["blink"]),
    logging.ERROR: ("red", ["blink", "underline"]),
    logging.CRITICAL: ("red", ["blink", "underline"]),
}


class _ColorFormatter(logging.Formatter):
    """Marks warnings and errors, and shortens the root module's name."""

    def __init__(self, root_name: str, abbreviation: str) -> None:
        when = colored("[%(asctime)s %(name)s]: ", "green")
        super().__init__(when + "%(message)s", datefmt=_DATE_FORMAT)
        self._root = root_name
        self._abbreviation = abbreviation

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line for the terminal."""
        original = record.name
        record.name = self._shorten(original)
        try:
            line = super().formatMessage(record)
        finally:
            record.name = original  # other handlers see the same record
        if record.levelno not in _LEVEL_COLORS:
            return line
        color, attrs = _LEVEL_COLORS[record.levelno]
        return f"{colored(record.levelname, color, attrs=attrs)} {line}"

    def _shorten(self, name: str) -> str:
        if name != self._root and not name.startswith(self._root + "."):
            return name
        return (self._abbreviation + name[len(self._root) :]).removeprefix(".")


def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Let a logger write everything to the terminal (rank 0) and to a file (each rank its own).

    Calling it again is harmless: the terminal and each file are attached once.

    Args:
        output: a file (``*.txt``, ``*.log``), or a folder in which ``log.txt`` is written; None:
            no file. Ranks above 0 append ``.rank<N>`` to the name.
        distributed_rank: rank of this process.
        color: colour the terminal's lines.
        name: the logger.
        abbrev_name: what the terminal shows for ``name``; default: ``d2`` for ``detectron2``.
        enable_propagation: also hand records to the parent logger.
        configure_stdout: whether to write to the terminal.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    plain = logging.Formatter(
        "[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt=_DATE_FORMAT
    )
    if configure_stdout and distributed_rank == 0:
        if abbrev_name is None:
            abbrev_name = "d2" if name == "detectron2" else name
        formatter = _ColorFormatter(name, abbrev_name) if color else plain
        _attach(logger, sys.stdout, formatter)
    if output is not None:
        _attach(logger, _open_log(_log_path(output, distributed_rank)), plain)
    return logger


def _attach(logger: logging.Logger, stream: IO[str], formatter: logging.Formatter) -> None:
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
            handler.setFormatter(formatter)
            return
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(formatter)
    logger.addHandler(handler)


def _log_path(output: str, rank: int) -> str:
    path = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    return path if rank == 0 else f"{path}.rank{rank}"


@functools.cache
def _open_log(path: str) -> IO[str]:
    """One stream per file, so that several loggers can share it; closed at exit."""
    PathManager.mkdirs(os.path.dirname(path))
    stream = PathManager.open(path, "a")
    atexit.register(stream.close)
    return stream


def _caller() -> tuple[str, tuple[str, int, str]]:
    """Module and position of the first frame outside this file."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__ and frame.f_back is not None:
        frame = frame.f_back
    module = frame.f_globals["__name__"]
    if module == "__main__":
        module = "detectron2"  # a script has no logger of its own
    return module, (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


_times_seen: Counter[Any] = Counter()
_last_logged: dict[Any, float] = {}


def log_first_n(
    lvl: int,
    msg: str,
    n: int = 1,
    *,
    name: str | None = None,
    key: str | tuple[str, ...] = "caller",
) -> None:
    """Log only the first ``n`` times.

    Args:
        lvl: level.
        msg: message.
        n: how many times.
        name: the logger; default: the caller's module.
        key: what counts as the same: ``"caller"`` (the line of code), ``"message"``, or both in a
            tuple.
    """
    keys = (key,) if isinstance(key, str) else tuple(key)
    module, position = _caller()
    identity: tuple[Any, ...] = ("first",)
    if "caller" in keys:
        identity += position
    if "message" in keys:
        identity += (msg,)
    _times_seen[identity] += 1
    if _times_seen[identity] <= n:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log the first of every ``n`` calls from one line of code.

    Args:
        lvl: level.
        msg: message.
        n: period in calls.
        name: the logger; default: the caller's module.
    """
    module, position = _caller()
    _times_seen["every", position] += 1
    if n == 1 or _times_seen["every", position] % n == 1:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n_seconds(lvl: int, msg: str, n: float = 1, *, name: str | None = None) -> None:
    """Log at most once in ``n`` seconds from one line of code.

    Args:
        lvl: level.
        msg: message.
        n: period in seconds.
        name: the logger; default: the caller's module.
    """
    module, position = _caller()
    now = time.time()
    if position not in _last_logged or now - _last_logged[position] >= n:
        logging.getLogger(name or module).log(lvl, msg)
        _last_logged[position] = now


def create_small_table(small_dict: Mapping[str, Any]) -> str:
    """A Markdown table of one row; the keys are the headers, floats have three decimals."""
    return tabulate(
        [list(small_dict.values())],
        headers=list(small_dict.keys()),
        tablefmt="pipe",
        floatfmt=".3f",
        stralign="center",
        numalign="center",
    )
