"""Scalars, images and histograms of a training run: where they are kept and who writes them."""

import datetime
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import numpy as np
import torch
from fvcore.common.history_buffer import HistoryBuffer

from detectron2.utils.file_io import PathManager

__all__ = [
    "CommonMetricPrinter",
    "EventStorage",
    "EventWriter",
    "JSONWriter",
    "TensorboardXWriter",
    "get_event_storage",
    "has_event_storage",
]

_storages: list["EventStorage"] = []


def get_event_storage() -> "EventStorage":
    """The storage of the innermost ``with EventStorage(...)``.

    Raises:
        AssertionError: there is none.
    """
    assert _storages, "get_event_storage() is called outside of any 'with EventStorage(...)'"
    return _storages[-1]


def has_event_storage() -> bool:
    """Whether the code runs inside a ``with EventStorage(...)``."""
    return bool(_storages)


class EventStorage:
    """Keeps what a training run reports; a context manager that makes itself the current one."""

    def __init__(self, start_iter: int = 0) -> None:
        self._iter = start_iter
        self._prefix = ""
        self._history: dict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothing_hints: dict[str, bool] = {}
        self._latest_scalars: dict[str, tuple[float, int]] = {}
        self._vis_data: list[tuple[str, Any, int]] = []
        self._histograms: list[dict[str, Any]] = []

    def __enter__(self) -> "EventStorage":
        _storages.append(self)
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        assert _storages[-1] is self, "EventStorage contexts are left in the wrong order"
        _storages.pop()

    @property
    def iter(self) -> int:
        """The current iteration; a trainer sets it to its own."""
        return self._iter

    @iter.setter
    def iter(self, value: int) -> None:
        self._iter = int(value)

    @property
    def iteration(self) -> int:
        """The same as ``iter``."""
        return self._iter

    def step(self) -> None:
        """Go to the next iteration."""
        self._iter += 1

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Within the context, put ``name/`` before every scalar's name (scopes do not nest)."""
        outer = self._prefix
        self._prefix = name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._prefix = outer

    def put_scalar(
        self, name: str, value: Any, smoothing_hint: bool = True, cur_iter: int | None = None
    ) -> None:
        """Add a value to the history of ``name``.

        Args:
            name: name of the scalar.
            value: number or one-element tensor.
            smoothing_hint: whether the scalar is noisy, so that writers had better show a median;
                the same for all values of a name.
            cur_iter: the iteration the value belongs to; default: the current one.
        """
        name = self._prefix + name
        at = self._iter if cur_iter is None else cur_iter
        value = float(value)
        assert self._smoothing_hints.setdefault(name, smoothing_hint) == smoothing_hint, (
            f"scalar {name} was put with smoothing_hint={not smoothing_hint} before"
        )
        self._history[name].update(value, at)
        self._latest_scalars[name] = (value, at)

    def put_scalars(
        self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: Any
    ) -> None:
        """``put_scalar`` for each keyword argument."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_image(self, img_name: str, img_tensor: Any) -> None:
        """Keep an image for TensorBoard.

        Args:
            img_name: its title.
            img_tensor: (3, H, W) RGB, tensor or array; uint8 0..255 or float 0..1.
        """
        self._vis_data.append((img_name, img_tensor, self._iter))

    def put_histogram(self, hist_name: str, hist_tensor: torch.Tensor, bins: int = 1000) -> None:
        """Keep the histogram of a tensor's values for TensorBoard.

        Args:
            hist_name: its title.
            hist_tensor: any shape.
            bins: number of equal bins between the smallest and the largest value.
        """
        low, high = hist_tensor.min().item(), hist_tensor.max().item()
        counts = torch.histc(hist_tensor, bins=bins)
        edges = torch.linspace(low, high, bins + 1, dtype=torch.float32)
        self._histograms.append(
            {
                "tag": hist_name,
                "min": low,
                "max": high,
                "num": hist_tensor.numel(),
                "sum": float(hist_tensor.sum()),
                "sum_squares": float(hist_tensor.square().sum()),
                "bucket_limits": edges[1:].tolist(),
                "bucket_counts": counts.tolist(),
                "global_step": self._iter,
            }
        )

    def clear_images(self) -> None:
        """Forget the images, after they were written."""
        self._vis_data = []

    def clear_histograms(self) -> None:
        """Forget the histograms, after they were written."""
        self._histograms = []

    def history(self, name: str) -> HistoryBuffer:
        """The history of a scalar.

        Raises:
            KeyError: nothing was put under this name.
        """
        if name not in self._history:
            raise KeyError(f"no scalar {name} was put into the storage")
        return self._history[name]

    def histories(self) -> Mapping[str, HistoryBuffer]:
        """The history of every scalar."""
        return self._history

    def smoothing_hints(self) -> Mapping[str, bool]:
        """Whether each scalar is noisy, as said when it was put."""
        return self._smoothing_hints

    def latest(self) -> Mapping[str, tuple[float, int]]:
        """Last value of each scalar and the iteration it belongs to."""
        return self._latest_scalars

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Like ``latest``, with noisy scalars replaced by their median.

        Args:
            window_size: the median is over the values of this many last iterations.
        """
        result = {}
        for name, (value, at) in self._latest_scalars.items():
            if self._smoothing_hints[name]:
                value = self._history[name].median(self.count_samples(name, window_size))
            result[name] = (value, at)
        return result

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """Number of values put in the ``window_size`` iterations up to the scalar's last one."""
        if name not in self._history:
            return 0
        newest_first = reversed(self._history[name].values())
        last = self._latest_scalars[name][1]
        count = 0
        for _, at in newest_first:
            if last - at >= window_size:
                break
            count += 1
        return count


class EventWriter:
    """Base of those that take events from the current storage and write them somewhere."""

    def write(self) -> None:
        """Write what is new; called within a storage's context."""
        raise NotImplementedError(f"{type(self).__name__} does not define write()")

    def close(self) -> None:
        """Write what is pending and release resources."""


class JSONWriter(EventWriter):
    """Appends one json object per iteration to a file (``metrics.json``)."""

    def __init__(self, json_file: str, window_size: int = 20) -> None:
        """Open the file.

        Args:
            json_file: continued if it exists; its folder must exist.
            window_size: number of iterations over which noisy scalars are medians.
        """
        self._file = PathManager.open(json_file, "a")
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        """Write one line for every iteration whose scalars are new."""
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        lines: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, at) in latest.items():
            if at > self._last_write:
                lines[at][name] = float(value)
        for at, scalars in lines.items():
            self._file.write(json.dumps({**scalars, "iteration": at}, sort_keys=True) + "\n")
        if lines:
            self._last_write = max(lines)
        self._file.flush()
        # A remote path's stream has no descriptor; flushing is all there is.
        with suppress(AttributeError, OSError):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorboardXWriter(EventWriter):
    """Writes scalars, images and histograms for TensorBoard."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any) -> None:
        """Remember where to write; files are created with the first event.

        Args:
            log_dir: folder of the event files.
            window_size: number of iterations over which noisy scalars are medians.
            **kwargs: further arguments of ``torch.utils.tensorboard.SummaryWriter``.
        """
        self._window_size = window_size
        self._writer_args = {"log_dir": log_dir, **kwargs}
        self._last_write = -1

    @cached_property
    def _writer(self) -> Any:
        # Imported on use: TensorBoard takes a second to import, and is not needed to train.
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(**self._writer_args)

    def write(self) -> None:
        """Write what is new and drop the storage's images and histograms."""
        storage = get_event_storage()
        newest = self._last_write
        latest = storage.latest_with_smoothing_hint(self._window_size)
        for name, (value, at) in latest.items():
            if at > self._last_write:
                self._writer.add_scalar(name, value, at)
                newest = max(newest, at)
        self._last_write = newest
        for name, image, at in storage._vis_data:
            self._writer.add_image(name, image, at)
        for histogram in storage._histograms:
            self._writer.add_histogram_raw(**histogram)
        # Left in place they would be written again next time, and fill the memory.
        storage.clear_images()
        storage.clear_histograms()

    def close(self) -> None:
        """Close the event file, if one was opened."""
        if "_writer" in self.__dict__:
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Logs a line of losses, times, learning rate, memory and time left."""

    def __init__(self, max_iter: int | None = None, window_size: int = 20) -> None:
        """Set up.

        Args:
            max_iter: number of iterations of the training; None: no time left is shown.
            window_size: number of iterations over which losses are medians.
        """
        self.logger = logging.getLogger(__name__)
        self._max_iter = max_iter
        self._window_size = window_size
        # Iteration and clock of the last call, for when nobody reports "time".
        self._last_seen: tuple[int, float] | None = None

    def write(self) -> None:
        """Log the line; nothing once the training is over, where there is no next iteration."""
        storage = get_event_storage()
        iteration = storage.iter
        if iteration == self._max_iter:
            return
        eta = self._eta(storage)
        losses = self._medians(storage, "loss")
        metrics = self._medians(storage, "[metric]")
        head = f" {f'eta: {eta}  ' if eta else ''}iter: {iteration}"
        tail = f" lr: {self._learning_rate(storage)}  {_peak_memory()}"
        self.logger.info("%s  %s  %s  %s%s", head, losses, metrics, self._times(storage), tail)

    def _medians(self, storage: EventStorage, marker: str) -> str:
        shown = []
        for name, history in storage.histories().items():
            if marker in name:
                median = history.median(storage.count_samples(name, self._window_size))
                shown.append(f"{name}: {median:.4g}")
        return "  ".join(shown)

    def _times(self, storage: EventStorage) -> str:
        shown = ""
        histories = storage.histories()
        if "time" in histories:
            history = histories["time"]
            shown += f"time: {history.global_avg():.4f}  last_time: {history.latest():.4f}  "
        if "data_time" in histories:
            history = histories["data_time"]
            average = history.avg(storage.count_samples("data_time", self._window_size))
            shown += f"data_time: {average:.4f}  last_data_time: {history.latest():.4f}  "
        return shown

    def _learning_rate(self, storage: EventStorage) -> str:
        histories = storage.histories()
        return f"{histories['lr'].latest():.5g}" if "lr" in histories else "N/A"

    def _eta(self, storage: EventStorage) -> str | None:
        if self._max_iter is None:
            return None
        remaining = max(self._max_iter - storage.iter - 1, 0)
        histories = storage.histories()
        if "time" in histories:
            # A long window, for a steady estimate.
            seconds = histories["time"].median(1000) * remaining
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
            return _clock(seconds)
        now = (storage.iter, time.perf_counter())
        before, self._last_seen = self._last_seen, now
        if before is None or now[0] == before[0]:
            return None
        return _clock((now[1] - before[1]) / (now[0] - before[0]) * remaining)


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=int(seconds if np.isfinite(seconds) else 0)))


def _peak_memory() -> str:
    if not torch.cuda.is_available():
        return ""
    return f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M"
