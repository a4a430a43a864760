"""Learning-rate schedules: the factor of iteration ``i`` of ``n``, a pure function of the two.

Nothing has to be saved or restored: a resumed run asks for the same iterations.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence


class Schedule(ABC):
    """A factor for the base learning rate, with a warm-up before it."""

    def __init__(
        self, *, warmup_iters: int = 0, warmup_factor: float = 0.001, warmup_power: float = 1.0
    ) -> None:
        """Make a schedule.

        Args:
            warmup_iters: iterations of warm-up; at most half of the run is spent on it.
            warmup_factor: the factor of the first iteration.
            warmup_power: of the growth from there to 1: 1 is linear, 4 with a ``warmup_factor`` of
                0 is darknet's ``burn_in``.
        """
        if warmup_iters < 0 or not 0 <= warmup_factor <= 1:
            raise ValueError(
                f"warmup_iters must be >= 0 and warmup_factor in [0, 1], "
                f"not {warmup_iters} and {warmup_factor}"
            )
        self.warmup_iters = warmup_iters
        self.warmup_factor = warmup_factor
        self.warmup_power = warmup_power

    def factor(self, iteration: int, max_iter: int) -> float:
        """The factor of iteration ``iteration`` (from 0) in a run of ``max_iter`` iterations."""
        factor = self.decay(min(iteration / max(max_iter, 1), 1.0))
        warmup = min(self.warmup_iters, max_iter // 2)
        if iteration < warmup:
            alpha = (iteration / warmup) ** self.warmup_power
            factor *= self.warmup_factor * (1 - alpha) + alpha
        return factor

    @abstractmethod
    def decay(self, progress: float) -> float:
        """The factor at ``progress`` (0 to 1) of the run, warm-up aside."""


class MultiStepSchedule(Schedule):
    """The factor drops by ``gamma`` at each milestone, a fraction of the run."""

    def __init__(
        self,
        *,
        milestones: Sequence[float],
        gamma: float = 0.1,
        warmup_iters: int = 0,
        warmup_factor: float = 0.001,
        warmup_power: float = 1.0,
    ) -> None:
        """Make a schedule that drops at ``milestones``, each in 0..1, ascending."""
        super().__init__(
            warmup_iters=warmup_iters, warmup_factor=warmup_factor, warmup_power=warmup_power
        )
        self.milestones = [float(m) for m in milestones]
        self.gamma = gamma
        if self.milestones != sorted(self.milestones) or any(
            not 0 <= m <= 1 for m in self.milestones
        ):
            raise ValueError(
                f"milestones must be ascending fractions of the run (0 to 1), not {self.milestones}"
            )

    def decay(self, progress: float) -> float:
        """The factor at ``progress`` of the run."""
        return self.gamma ** sum(progress >= m for m in self.milestones)


class CosineSchedule(Schedule):
    """Half a cosine from 1 to ``final_factor`` (Loshchilov and Hutter, arXiv:1608.03983, eq. 5)."""

    def __init__(
        self,
        *,
        final_factor: float = 0.0,
        flat_fraction: float = 0.0,
        warmup_iters: int = 0,
        warmup_factor: float = 0.001,
        warmup_power: float = 1.0,
    ) -> None:
        """Make a schedule.

        Args:
            final_factor: the factor at the end.
            flat_fraction: the fraction of the run before the cosine starts.
            warmup_iters: see :class:`Schedule`.
            warmup_factor: see :class:`Schedule`.
            warmup_power: see :class:`Schedule`.
        """
        super().__init__(
            warmup_iters=warmup_iters, warmup_factor=warmup_factor, warmup_power=warmup_power
        )
        if not 0 <= flat_fraction < 1:
            raise ValueError(f"flat_fraction must be in [0, 1), not {flat_fraction}")
        self.final_factor = final_factor
        self.flat_fraction = flat_fraction

    def decay(self, progress: float) -> float:
        """The factor at ``progress`` of the run."""
        position = max(0.0, progress - self.flat_fraction) / (1 - self.flat_fraction)
        return self.final_factor + (1 - self.final_factor) * (1 + math.cos(math.pi * position)) / 2


class ConstantSchedule(Schedule):
    """The base learning rate throughout, after the warm-up."""

    def decay(self, progress: float) -> float:
        """1."""
        return 1.0
