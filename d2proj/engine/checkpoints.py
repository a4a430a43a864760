"""When checkpoints are written: periodically, at the best evaluation, at the end, on trouble."""

import logging
from collections.abc import Mapping
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from d2proj.checkpoint import TrainingCheckpointer
from d2proj.engine.hooks import is_due
from d2proj.engine.trainer import Interrupted, NonFiniteLossError, Trainer

logger = logging.getLogger(__name__)


class Checkpoints(HookBase):
    """Saves and resumes; must be the last hook, so that it saves what the others have done."""

    def __init__(
        self,
        checkpointer: TrainingCheckpointer,
        trainer: Trainer,
        *,
        period: int,
        best_metric: str | None,
        extra: Mapping[str, Any],
    ) -> None:
        """Save every ``period`` iterations (0: at the end only), and when ``best_metric`` rises."""
        self._checkpointer = checkpointer
        self._trainer = trainer
        self._period = period
        self._best_metric = best_metric
        self._extra = dict(extra)
        self._best: dict[str, Any] = {"value": None, "iteration": None}

    def resume(self) -> int:
        """Load the last checkpoint; gives the iteration to go on with (0: there was none)."""
        found = self._checkpointer.resume()
        if found is None:
            logger.info("--resume: no checkpoint yet, starting from the beginning")
            return 0
        self._best = dict(found.get("best") or self._best)
        start_iter = int(found["iteration"]) + 1
        logger.info(f"resuming after iteration {start_iter - 1}")
        return start_iter

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the trainer; save its state if a signal or a non-finite loss stops it."""
        try:
            self._trainer.train(start_iter, max_iter)
        except Interrupted:
            self._save(f"model_{self._trainer.iter:07d}", self._trainer.iter)
            logger.info(
                f"stopped after iteration {self._trainer.iter}; the state is saved: continue with "
                "the same command and --resume"
            )
            comm.synchronize()
            raise
        except NonFiniteLossError:
            completed = self._trainer.iter - 1
            if completed >= 0:
                self._save(f"model_{completed:07d}", completed)
            comm.synchronize()
            raise

    def after_step(self) -> None:
        """Save what is due."""
        iteration = self._trainer.iter
        if self._is_best(iteration):
            self._save("model_best", iteration)
        if iteration + 1 == self._trainer.max_iter:
            self._save("model_final", iteration)
        elif is_due(iteration, self._period, self._trainer.max_iter):
            self._save(f"model_{iteration:07d}", iteration)

    def _is_best(self, iteration: int) -> bool:
        value, when = get_event_storage().latest().get(self._best_metric or "", (None, -1))
        if value is None or when != iteration:
            return False
        if self._best["value"] is not None and value <= self._best["value"]:
            return False
        self._best = {"value": float(value), "iteration": iteration}
        logger.info(f"best {self._best_metric} so far: {value:.2f}")
        return True

    def _save(self, name: str, iteration: int) -> None:
        self._checkpointer.save(name, iteration=iteration, best=self._best, **self._extra)
        comm.synchronize()
