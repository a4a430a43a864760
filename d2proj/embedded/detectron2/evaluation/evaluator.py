"""The loop over a data set, and what evaluators have in common."""

import contextlib
import datetime
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from detectron2.utils import comm
from detectron2.utils.logger import log_every_n_seconds

__all__ = [
    "DatasetEvaluator",
    "DatasetEvaluators",
    "inference_context",
    "inference_on_dataset",
]

_logger = logging.getLogger(__name__)

_WARMUP_BATCHES = 5
_LOG_SECONDS = 5


class DatasetEvaluator:
    """Judges a model: sees each batch and what the model made of it, and sums up in the end."""

    def reset(self) -> None:
        """Forget everything; called before a round."""

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """See the model's inputs and outputs of one batch, image by image."""

    def evaluate(self) -> dict | None:
        """Return ``{task: {metric: score}}``; on other processes than the main one, maybe None."""


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one.

    Args:
        evaluators: Their results must have different tasks.
    """

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        super().__init__()
        self._evaluators = list(evaluators)

    def reset(self) -> None:
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> OrderedDict:
        joined: OrderedDict = OrderedDict()
        for evaluator in self._evaluators:
            results = evaluator.evaluate()
            if comm.is_main_process() and results is not None:
                for task, scores in results.items():
                    assert task not in joined, (
                        f"Different evaluators produce results with the same key {task}"
                    )
                    joined[task] = scores
        return joined


class _Stopwatch:
    """Seconds spent on parts of the loop, from after the first batches on."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.warmup = min(_WARMUP_BATCHES, total - 1)
        self.start = time.perf_counter()
        self.seconds = dict.fromkeys(("dataloading", "inference", "eval"), 0.0)
        self._mark = self.start

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] += now - self._mark
        self._mark = now

    def after_batch(self, index: int) -> None:
        if index + 1 == self.warmup:
            self.start = time.perf_counter()
            self.seconds = dict.fromkeys(self.seconds, 0.0)
            return
        measured = index + 1 - self.warmup
        if measured <= 0:
            return
        per_batch = {part: seconds / measured for part, seconds in self.seconds.items()}
        whole = (time.perf_counter() - self.start) / measured
        if index >= self.warmup * 2 or per_batch["inference"] > _LOG_SECONDS:
            left = datetime.timedelta(seconds=int(whole * (self.total - index - 1)))
            log_every_n_seconds(
                logging.INFO,
                f"Inference done {index + 1}/{self.total}. "
                f"Dataloading: {per_batch['dataloading']:.4f} s/iter. "
                f"Inference: {per_batch['inference']:.4f} s/iter. "
                f"Eval: {per_batch['eval']:.4f} s/iter. "
                f"Total: {whole:.4f} s/iter. ETA={left}",
                n=_LOG_SECONDS,
            )

    def summarise(self) -> None:
        measured = max(self.total - self.warmup, 1)
        devices = comm.get_world_size()
        for name, seconds in (
            ("inference time", time.perf_counter() - self.start),
            ("inference pure compute time", self.seconds["inference"]),
        ):
            _logger.info(
                f"Total {name}: {datetime.timedelta(seconds=int(seconds))} "
                f"({seconds / measured:.6f} s / iter per device, on {devices} devices)"
            )


def inference_on_dataset(
    model: Callable[[Any], Any],
    data_loader: Iterable,
    evaluator: DatasetEvaluator | Sequence[DatasetEvaluator] | None,
    callbacks: Mapping[str, Callable[[], None]] | None = None,
) -> Any:
    """Run a model over a loader, in eval mode and without gradients, and evaluate it.

    Args:
        model: Takes what the loader gives; a module is back in its mode afterwards.
        data_loader: Iterable with a length.
        evaluator: One or several; None only measures time.
        callbacks: What to call "on_start", "before_inference" and "after_inference" of each batch,
            and "on_end".

    Returns:
        What the evaluator returns; an empty dict for None.
    """
    total = len(data_loader)  # type: ignore[arg-type]  # documented
    _logger.info(f"Start inference on {total} batches")
    if evaluator is None or isinstance(evaluator, Sequence):
        evaluator = DatasetEvaluators(evaluator or [])
    evaluator.reset()
    callbacks = callbacks or {}

    def call(moment: str) -> None:
        if moment in callbacks:
            callbacks[moment]()

    with contextlib.ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())
        watch = _Stopwatch(total)
        call("on_start")
        for index, inputs in enumerate(data_loader):
            watch.lap("dataloading")
            call("before_inference")
            outputs = model(inputs)
            call("after_inference")
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            watch.lap("inference")
            evaluator.process(inputs, outputs)
            watch.lap("eval")
            watch.after_batch(index)
        call("on_end")
    watch.summarise()
    results = evaluator.evaluate()
    # None from an evaluator that left the work to the main process.
    return {} if results is None else results


@contextlib.contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and back into its mode at the end."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
