"""Learning rates as a function of the progress of training."""

from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["LRMultiplier", "LRScheduler", "WarmupParamScheduler"]


class WarmupParamScheduler(CompositeParamScheduler):
    """A warm-up before another schedule."""

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ) -> None:
        """Put a warm-up in front.

        Args:
            scheduler: what follows the warm-up.
            warmup_factor: where the warm-up begins, as a fraction of the schedule's first value.
            warmup_length: length of the warm-up, as a fraction of the training.
            warmup_method: ``"linear"`` rises to the value at which the schedule takes over;
                ``"constant"`` stays at the beginning.
            rescale_interval: False: the warm-up covers the schedule's beginning. True: the whole
                schedule comes after the warm-up, compressed.

        Raises:
            ValueError: unknown method.
        """
        begin = warmup_factor * scheduler(0.0)
        end = scheduler(0.0 if rescale_interval else warmup_length)
        warmup: ParamScheduler
        if warmup_method == "linear":
            warmup = LinearParamScheduler(begin, end)
        elif warmup_method == "constant":
            warmup = ConstantParamScheduler(begin)
        else:
            raise ValueError(f"warmup_method is 'linear' or 'constant', got {warmup_method!r}")
        super().__init__(
            [warmup, scheduler],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
            lengths=[warmup_length, 1 - warmup_length],
        )


class LRMultiplier(LRScheduler):
    """Multiplies every group's initial learning rate by a function of the training's progress."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        multiplier: ParamScheduler,
        max_iter: int,
        last_iter: int = -1,
    ) -> None:
        """Attach to an optimizer and set its first learning rates.

        Args:
            optimizer: whose groups are changed.
            multiplier: maps progress in [0, 1) to a factor.
            max_iter: number of iterations of the training.
            last_iter: the last iteration done, -1 at the beginning.

        Raises:
            ValueError: the multiplier is no ``ParamScheduler``.
        """
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(f"multiplier must be a fvcore ParamScheduler, got {multiplier!r}")
        # The base class asks for the learning rates while it is constructed.
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict[str, Any]:
        """The progress and the initial rates; the schedule itself belongs to the configuration."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float | torch.Tensor]:
        """Learning rates of the groups at the current iteration."""
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * factor for base_lr in self.base_lrs]
