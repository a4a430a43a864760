"""What happens around the iterations: learning rate, logs, evaluation, checkpoints, signals."""

import json
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage
from tqdm import tqdm

from d2proj.engine.schedule import Schedule

logger = logging.getLogger(__name__)


def is_due(iteration: int, period: int, max_iter: int) -> bool:
    """Whether something periodic happens after ``iteration``; always after the last one."""
    return iteration + 1 == max_iter or (period > 0 and (iteration + 1) % period == 0)


class LearningRate(HookBase):
    """Sets each parameter group's learning rate before every step."""

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: Schedule, scale: float) -> None:
        """``scale`` multiplies the rates that the optimiser was built with."""
        self._optimizer = optimizer
        self._schedule = schedule
        self._base = [group["lr"] * scale for group in optimizer.param_groups]

    def before_step(self) -> None:
        """Set the rates of this iteration."""
        factor = self._schedule.factor(self.trainer.iter, self.trainer.max_iter)
        for group, base in zip(self._optimizer.param_groups, self._base, strict=True):
            group["lr"] = base * factor
        get_event_storage().put_scalar("lr", self._base[0] * factor, smoothing_hint=False)


class ModuleSchedules(HookBase):
    """Tells modules that change in the course of training how far it is.

    Before each iteration every module with a method ``set_progress`` gets the share of the
    iterations that are done: a resumed run needs no other state.
    """

    def before_train(self) -> None:
        """Find the modules."""
        modules = self.trainer.plain_model.modules()
        self._scheduled = [m.set_progress for m in modules if hasattr(m, "set_progress")]

    def before_step(self) -> None:
        """Tell them."""
        for set_progress in self._scheduled:
            set_progress(self.trainer.iter / self.trainer.max_iter)


class Progress(HookBase):
    """A bar on a terminal, a line every ``period`` iterations otherwise."""

    def __init__(self, period: int, iters_per_epoch: float) -> None:
        """Show progress; only the main process does."""
        self._period = period
        self._per_epoch = iters_per_epoch
        self._bar: tqdm[Any] | None = None
        self._step_seconds: list[float] = []
        self._images: list[int] = []

    def before_train(self) -> None:
        """Open the bar."""
        self._last = time.perf_counter()
        if comm.is_main_process() and sys.stderr.isatty():
            start, end = self.trainer.start_iter, self.trainer.max_iter
            self._bar = tqdm(initial=start, total=end, unit="it", dynamic_ncols=True)

    def before_step(self) -> None:
        """Start the clock: evaluations and checkpoints in between do not count."""
        self._last = time.perf_counter()

    def after_step(self) -> None:
        """Measure the iteration and show where the run stands."""
        seconds = time.perf_counter() - self._last
        storage = get_event_storage()
        storage.put_scalar("time", seconds, smoothing_hint=False)
        self._step_seconds = [*self._step_seconds[-99:], seconds]
        self._images = [*self._images[-99:], self.trainer.last_batch_size]
        speed = sum(self._images) / sum(self._step_seconds)
        storage.put_scalar("images_per_second", speed, smoothing_hint=False)
        storage.put_scalar("memory_mb", peak_memory_mb(), smoothing_hint=False)
        due = is_due(self.trainer.iter, self._period, self.trainer.max_iter)
        if self._bar is not None:
            self._bar.update()
            if due:
                self._bar.set_postfix_str(self._numbers(speed))
        if due and comm.is_main_process():
            done, end = self.trainer.iter + 1, self.trainer.max_iter
            left = (end - done) * sum(self._step_seconds) / len(self._step_seconds)
            logger.log(
                logging.INFO if self._bar is None else logging.DEBUG,
                f"iteration {done}/{end}  epoch {done / self._per_epoch:.2f}  "
                f"eta {format_seconds(left)}  {self._numbers(speed)}",
            )

    def _numbers(self, speed: float) -> str:
        storage = get_event_storage()
        names = [n for n in storage.histories() if "loss" in n and "/" not in n]
        medians = {name: storage.history(name).median(20) for name in names}
        losses = [f"loss {medians.pop('total_loss'):.4f}"]
        losses += [f"{name} {value:.4f}" for name, value in medians.items()]
        rate = storage.history("lr").latest()
        return (
            f"{'  '.join(losses)}  lr {rate:.3g}  {speed:.1f} images/s  "
            f"{storage.history('memory_mb').latest():.0f} MB"
        )

    def after_train(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


class Writers(HookBase):
    """Feeds Detectron2's event writers every ``period`` iterations (main process)."""

    def __init__(self, writers: Sequence[EventWriter], period: int) -> None:
        """Feed ``writers``."""
        self._writers = writers
        self._period = period

    def after_step(self) -> None:
        """Write what is due; evaluations write their numbers at once, too."""
        storage = get_event_storage()
        evaluated = any(
            i == self.trainer.iter and "/" in n for n, (_, i) in storage.latest().items()
        )
        if evaluated or is_due(self.trainer.iter, self._period, self.trainer.max_iter):
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        """Close the files."""
        for writer in self._writers:
            writer.close()


class Evaluation(HookBase):
    """Evaluates every ``period`` iterations and after the last; averaged weights if there are."""

    def __init__(self, evaluate: Callable[[], dict[str, Any]], period: int) -> None:
        """``evaluate`` gives Detectron2's nested results (on the main process)."""
        self._evaluate = evaluate
        self._period = period
        self.latest: dict[str, Any] = {}

    def after_step(self) -> None:
        """Evaluate if it is time; the numbers go to the writers as ``bbox/AP`` and so on."""
        if self.trainer.stop_signal or not is_due(
            self.trainer.iter, self._period, self.trainer.max_iter
        ):
            return
        self.trainer.share_buffers()
        ema = self.trainer.ema
        if ema is None:
            self.latest = self._evaluate()
        else:
            with ema.applied():
                self.latest = self._evaluate()
        for task, metrics in self.latest.items():
            for name, value in metrics.items():
                if value is not None:
                    get_event_storage().put_scalar(f"{task}/{name}", value, smoothing_hint=False)
        self.trainer.plain_model.train()
        comm.synchronize()


class Signals(HookBase):
    """Turns Ctrl-C and SIGTERM into a stop after the iteration; a second one stops at once."""

    def before_train(self) -> None:
        """Install the handlers."""
        self._received_at = 0.0
        self._previous = {
            s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)
        }

    def after_train(self) -> None:
        """Put the former handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        # The terminal and a launcher may both send one: only a later second one is impatience.
        if self.trainer.received_signal and now - self._received_at > 2:
            raise KeyboardInterrupt
        if not self.trainer.received_signal:
            self._received_at = now
            self.trainer.received_signal = number


def peak_memory_mb() -> float:
    """Peak memory of this process, MB: the GPU's where one is used, resident otherwise."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB on Linux
    return peak / 1024


def format_seconds(seconds: float) -> str:
    """``h:mm:ss``."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def truncate_metrics(file: Path, start_iter: int) -> None:
    """Take the lines of iterations that will be done again out of ``metrics.json``, atomically."""
    if not file.is_file():
        return
    kept = list(_lines_before(file.read_text(encoding="utf-8").splitlines(), start_iter))
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    os.replace(temporary, file)


def _lines_before(lines: Iterable[str], start_iter: int) -> Iterable[str]:
    for line in lines:
        try:
            iteration = json.loads(line)["iteration"]
        except (ValueError, KeyError, TypeError):
            continue  # cut off by a kill
        if iteration < start_iter:
            yield line
