"""Hooks: timing, writing events, checkpoints, learning rate, evaluation, memory."""

import datetime
import logging
import math
import operator
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.common.timer import Timer

from detectron2.evaluation.testing import flatten_results_dict
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from .train_loop import HookBase, TrainerBase

__all__ = [
    "BestCheckpointer",
    "CallbackHook",
    "EvalHook",
    "IterationTimer",
    "LRScheduler",
    "PeriodicCheckpointer",
    "PeriodicWriter",
    "TorchMemoryStats",
]

_logger = logging.getLogger(__name__)


class CallbackHook(HookBase):
    """A hook made of functions, each of which takes the trainer."""

    def __init__(
        self,
        *,
        before_train: Callable[[TrainerBase], None] | None = None,
        after_train: Callable[[TrainerBase], None] | None = None,
        before_step: Callable[[TrainerBase], None] | None = None,
        after_step: Callable[[TrainerBase], None] | None = None,
    ) -> None:
        self._before_train = before_train
        self._before_step = before_step
        self._after_step = after_step
        self._after_train = after_train

    def before_train(self) -> None:
        if self._before_train:
            self._before_train(self.trainer)

    def after_train(self) -> None:
        if self._after_train:
            self._after_train(self.trainer)
        # They may hold the trainer, which they would keep alive.
        del self._before_train, self._after_train
        del self._before_step, self._after_step

    def before_step(self) -> None:
        if self._before_step:
            self._before_step(self.trainer)

    def after_step(self) -> None:
        if self._after_step:
            self._after_step(self.trainer)


class IterationTimer(HookBase):
    """Measures the iterations (the scalar ``time``) and logs a summary in the end.

    Args:
        warmup_iter: First iterations to leave out, as they are slower.
    """

    def __init__(self, warmup_iter: int = 3) -> None:
        self._warmup_iter = warmup_iter
        self._step_timer = Timer()
        self._start_time = time.perf_counter()
        self._total_timer = Timer()

    def before_train(self) -> None:
        self._start_time = time.perf_counter()
        self._total_timer.reset()
        self._total_timer.pause()

    def after_train(self) -> None:
        total_time = time.perf_counter() - self._start_time
        step_time = self._total_timer.seconds()
        measured = self.trainer.storage.iter + 1 - self.trainer.start_iter - self._warmup_iter
        if measured > 0 and step_time > 0:
            duration = datetime.timedelta(seconds=int(step_time))
            _logger.info(
                f"Overall training speed: {measured} iterations in {duration} "
                f"({step_time / measured:.4f} s / it)"
            )
        on_hooks = datetime.timedelta(seconds=int(total_time - step_time))
        total = datetime.timedelta(seconds=int(total_time))
        _logger.info(f"Total training time: {total} ({on_hooks} on hooks)")

    def before_step(self) -> None:
        self._step_timer.reset()
        self._total_timer.resume()

    def after_step(self) -> None:
        done = self.trainer.storage.iter - self.trainer.start_iter + 1
        if done >= self._warmup_iter:
            self.trainer.storage.put_scalars(time=self._step_timer.seconds())
        else:
            self._start_time = time.perf_counter()
            self._total_timer.reset()
        self._total_timer.pause()


class PeriodicWriter(HookBase):
    """Has writers write every ``period`` iterations and in the end.

    Args:
        writers: What to write with; closed in the end.
        period: Iterations between.
    """

    def __init__(self, writers: Sequence[EventWriter], period: int = 20) -> None:
        self._writers = list(writers)
        for writer in self._writers:
            assert isinstance(writer, EventWriter), writer
        self._period = period

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        if next_iter % self._period == 0 or next_iter == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        for writer in self._writers:
            # Once more, for what hooks before this one did after the last step.
            writer.write()
            writer.close()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's periodic checkpointer as a hook: every ``period`` iterations and in the end."""

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        self.step(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Saves the model whenever a metric is better than ever; comes after the hook that makes it.

    Args:
        eval_period: The period of the evaluation.
        checkpointer: Saves.
        val_metric: Name of the metric among the scalars, such as "bbox/AP".
        mode: "max" if larger is better, "min" if smaller is.
        file_prefix: Name of the checkpoint, without its ending.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ) -> None:
        assert mode in ("max", "min"), (
            f"Mode \"{mode}\" to `BestCheckpointer` is unknown. It should be one of ('max', 'min')."
        )
        self._period = eval_period
        self._checkpointer = checkpointer
        self._val_metric = val_metric
        self._is_better = operator.gt if mode == "max" else operator.lt
        self._file_prefix = file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        if (
            self._period > 0
            and next_iter % self._period == 0
            and next_iter != self.trainer.max_iter
        ):
            self._check()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:  # not after an error
            self._check()

    def _check(self) -> None:
        latest = self.trainer.storage.latest().get(self._val_metric)
        if latest is None:
            _logger.warning(
                f"Given val metric {self._val_metric} does not seem to be computed/stored. "
                "Will not be checkpointing based on it."
            )
            return
        value, iteration = latest
        if not math.isfinite(value):
            return
        if self.best_metric is None or self._is_better(value, self.best_metric):
            self._checkpointer.save(self._file_prefix, iteration=iteration)
            if self.best_metric is None:
                _logger.info(f"Saved first model at {value:.5f} @ {iteration} steps")
            else:
                _logger.info(
                    f"Saved best model as latest eval score for {self._val_metric} is {value:.5f}, "
                    f"better than last best score {self.best_metric:.5f} @ iteration "
                    f"{self.best_iter}."
                )
            self.best_metric, self.best_iter = value, iteration
        else:
            _logger.info(
                f"Not saving as latest eval score for {self._val_metric} is {value:.5f}, not "
                f"better than best score {self.best_metric:.5f} @ iteration {self.best_iter}."
            )


class LRScheduler(HookBase):
    """Steps a learning rate scheduler after every iteration and records ``lr``.

    Args:
        optimizer: By default the trainer's.
        scheduler: torch's scheduler, or an fvcore ``ParamScheduler`` that gives the multiplier of
            the optimizer's rates; by default the trainer's.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: Any = None,
    ) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._best_param_group_id = 0

    def before_train(self) -> None:
        if self._optimizer is None:
            self._optimizer = self.trainer.optimizer  # type: ignore[attr-defined]  # documented
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer,
                self.scheduler,
                self.trainer.max_iter,
                last_iter=self.trainer.iter - 1,
            )
        self._best_param_group_id = self.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """The group whose rate stands for all: the largest, or if all are of one, the commonest."""
        groups = optimizer.param_groups
        sizes = [len(group["params"]) for group in groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in groups]
        return rates.index(Counter(rates).most_common(1)[0][0])

    def after_step(self) -> None:
        assert self._optimizer is not None  # since before_train
        rate = self._optimizer.param_groups[self._best_param_group_id]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.scheduler.step()

    @property
    def scheduler(self) -> Any:
        """The scheduler given, or the trainer's."""
        if self._scheduler is not None:
            return self._scheduler
        return self.trainer.scheduler  # type: ignore[attr-defined]  # documented

    def state_dict(self) -> dict[str, Any]:
        if isinstance(self.scheduler, torch.optim.lr_scheduler.LRScheduler):
            return self.scheduler.state_dict()
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the scheduler."""
        if isinstance(self.scheduler, torch.optim.lr_scheduler.LRScheduler):
            _logger.info("Loading scheduler from state_dict ...")
            self.scheduler.load_state_dict(dict(state_dict))


class EvalHook(HookBase):
    """Evaluates every ``eval_period`` iterations and in the end, and records the results.

    It must be there in all processes or in none, as they wait for each other.

    Args:
        eval_period: Iterations between; 0: only in the end.
        eval_function: Takes nothing and returns a nested dict of numbers, or nothing.
        eval_after_train: Whether to evaluate in the end.
    """

    def __init__(
        self,
        eval_period: int,
        eval_function: Callable[[], Mapping[str, Any] | None],
        eval_after_train: bool = True,
    ) -> None:
        self._period = eval_period
        self._func = eval_function
        self._eval_after_train = eval_after_train

    def _do_eval(self) -> None:
        results = self._func()
        if results:
            assert isinstance(results, dict), (
                f"Eval function must return a dict. Got {results} instead."
            )
            flat = flatten_results_dict(results)
            for name, value in flat.items():
                try:
                    flat[name] = float(value)
                except (TypeError, ValueError) as error:
                    raise ValueError(
                        "[EvalHook] eval_function should return a nested dict of float. "
                        f"Got '{name}: {value}' instead."
                    ) from error
            self.trainer.storage.put_scalars(**flat, smoothing_hint=False)
        # Evaluation may take the processes different times; what follows assumes them together.
        comm.synchronize()

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        # The last iteration is left to after_train.
        if (
            self._period > 0
            and next_iter % self._period == 0
            and next_iter != self.trainer.max_iter
        ):
            self._do_eval()

    def after_train(self) -> None:
        if self._eval_after_train and self.trainer.iter + 1 >= self.trainer.max_iter:
            self._do_eval()
        # It likely holds the trainer, which it would keep alive.
        del self._func


class TorchMemoryStats(HookBase):
    """Logs the CUDA memory every ``period`` iterations, at most ``max_runs`` times."""

    def __init__(self, period: int = 20, max_runs: int = 10) -> None:
        self._period = period
        self._max_runs = max_runs
        self._runs = 0

    def after_step(self) -> None:
        if self._runs >= self._max_runs:
            return
        next_iter = self.trainer.iter + 1
        if next_iter % self._period and next_iter != self.trainer.max_iter:
            return
        if not torch.cuda.is_available():
            return
        mebibyte = 1024.0**2
        amounts = {
            "max_reserved_mem": torch.cuda.max_memory_reserved(),
            "reserved_mem": torch.cuda.memory_reserved(),
            "max_allocated_mem": torch.cuda.max_memory_allocated(),
            "allocated_mem": torch.cuda.memory_allocated(),
        }
        listed = " ".join(f"{name}: {b / mebibyte:.0f}MB" for name, b in amounts.items())
        _logger.info(f" iter: {self.trainer.iter}  {listed}")
        self._runs += 1
        if self._runs == self._max_runs:
            _logger.info("\n" + torch.cuda.memory_summary())
        torch.cuda.reset_peak_memory_stats()
