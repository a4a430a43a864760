"""Runs a model over a loader: detections to the evaluator, and how fast it was."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from d2proj.layers import fused_inference

logger = logging.getLogger(__name__)
_WARMUP_BATCHES = 3  # allocations and lazily chosen kernels


@dataclass(frozen=True)
class Speed:
    """How fast an evaluation went, over all processes.

    Attributes:
        images: number of images that were timed.
        model_images_per_second: counting the model alone (pre- and postprocessing in it included).
        total_images_per_second: with reading, resizing and collecting.
    """

    images: int
    model_images_per_second: float
    total_images_per_second: float

    def __str__(self) -> str:
        return (
            f"{self.model_images_per_second:.1f} images/s in the model, "
            f"{self.total_images_per_second:.1f} images/s with data ({self.images} images)"
        )


@contextmanager
def evaluating(model: nn.Module, *, fuse: bool = True) -> Iterator[None]:
    """Eval mode without gradients, and the former mode afterwards.

    With ``fuse``, convolutions on a CPU run fused (:func:`d2proj.layers.fused_inference`).

    Not ``inference_mode``: anchors that a model caches in there could not be used in training.
    """
    training = model.training
    # Layers drop their folded weights at every switch: none where there is nothing to switch.
    switches = any(module.training for module in model.modules())
    if switches:
        model.eval()
    try:
        with torch.no_grad(), fused_inference(fuse):
            yield
    finally:
        if switches:
            model.train(training)


def run_inference(
    model: nn.Module,
    batches: Iterable[list[dict[str, Any]]],
    evaluator: DatasetEvaluator,
    *,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    max_batches: int | None = None,
    fuse: bool = True,
) -> Speed:
    """Feed every batch to the model and its outputs to ``evaluator.process``.

    ``fuse`` is that of :func:`evaluating`.
    """
    evaluator.reset()
    images = timed = 0
    model_seconds = total_seconds = 0.0
    last_log = time.perf_counter()
    with evaluating(model, fuse=fuse):
        mark = time.perf_counter()
        for index, batch in enumerate(batches):
            if max_batches is not None and index >= max_batches:
                break
            start = time.perf_counter()
            with autocast():
                outputs = model(batch)
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            end = time.perf_counter()
            evaluator.process(batch, outputs)
            now = time.perf_counter()
            images += len(batch)
            if index >= _WARMUP_BATCHES or index == 0:
                # The first batch counts only as long as there is no other.
                fresh = index == _WARMUP_BATCHES
                timed = len(batch) + (0 if fresh else timed)
                model_seconds = end - start + (0 if fresh else model_seconds)
                total_seconds = now - mark + (0 if fresh else total_seconds)
            mark = now
            if now - last_log > 30:
                logger.info(f"evaluated {images} images of this process")
                last_log = now
    counts = comm.all_gather((timed, model_seconds, total_seconds))
    model_speed = sum(n / seconds for n, seconds, _ in counts if n)
    total_speed = sum(n / seconds for n, _, seconds in counts if n)
    return Speed(sum(n for n, _, _ in counts), model_speed, total_speed)
