"""What ``[net]`` says about training: learning rate, momentum, decay, and how the rate changes."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from d2proj.darknet.cfg import Section, read_cfg
from d2proj.engine.schedule import Schedule
from d2proj.errors import InputError

_MOST = 1 << 31
_POLICIES = ("constant", "step", "steps", "exp", "poly", "sigmoid", "sgdr")


class DarknetSchedule(Schedule):
    """The learning-rate curve of a cfg file (darknet's ``get_current_rate``).

    A run of ``max_batches`` iterations has darknet's rates exactly. Of another length it has the
    same curve, stretched or pressed; ``burn_in`` stays what it is in iterations, but is at most
    half of the run.

    Args:
        cfg_file: the file.

    Raises:
        InputError: the policy is unknown, or a number of it makes no sense.
    """

    def __init__(self, *, cfg_file: str | Path | None) -> None:
        net = self._net = _net(cfg_file)
        self.policy = net.text("policy", "constant")
        if self.policy not in _POLICIES:
            net.fail(
                f"policy must be one of {', '.join(_POLICIES)}, got {self.policy[:40]}", "policy"
            )
        self.power = _at_least(net, "power", 4.0, 0.0)
        super().__init__(warmup_iters=net.integer("burn_in", 0, low=0, high=_MOST))
        self.max_batches = net.integer("max_batches", 0, low=0, high=_MOST)
        self.learning_rate = _learning_rate(net)
        self.learning_rate_min = _at_least(net, "learning_rate_min", 1e-5, 0.0)
        self.step = net.integer("step", 1, low=1, high=_MOST)
        self.scale = _at_least(net, "scale", 1.0, 0.0)
        self.gamma = _at_least(net, "gamma", 1.0, 0.0)
        self.steps = net.integers("steps") if self.policy == "steps" else []
        self.scales = net.numbers("scales") if self.policy == "steps" else []
        if self.policy == "steps" and (not self.steps or len(self.scales) < len(self.steps)):
            net.fail(
                f"policy=steps needs as many scales as steps, got {len(self.steps)} steps and "
                f"{len(self.scales)} scales",
                "steps",
            )
        if self.policy == "poly" and not self.max_batches:
            net.fail("policy=poly needs max_batches", "policy")
        self.cycle = net.integer("sgdr_cycle", self.max_batches, low=1, high=_MOST)
        self.cycle_growth = net.integer("sgdr_mult", 2, low=1, high=_MOST)
        if self.policy == "sgdr" and not self.cycle:
            net.fail("policy=sgdr needs sgdr_cycle or max_batches", "policy")

    def factor(self, iteration: int, max_iter: int) -> float:
        """See :class:`~d2proj.engine.schedule.Schedule`."""
        batch = iteration + 1  # darknet counts a batch before it learns from it
        burn_in = min(self.warmup_iters, max_iter // 2)
        if batch < burn_in:
            return float((batch / burn_in) ** self.power)
        return self.decay(min(batch / max(max_iter, 1), 1.0))

    def decay(self, progress: float) -> float:
        """The factor at ``progress`` of the run, after the burn-in."""
        # Rounded: a run of max_batches asks for whole batches, which a fraction may miss by an ulp.
        batch = round(progress * self.max_batches, 6)
        try:
            factor = self._decay(batch)
        except OverflowError:
            factor = math.inf
        if not math.isfinite(factor):
            self._net.fail("the learning rate becomes infinite", "policy")
        return factor

    def _decay(self, batch: float) -> float:
        if self.policy == "step":
            return float(self.scale ** (batch // self.step))
        if self.policy == "steps":
            factor = 1.0
            for step, scale in zip(self.steps, self.scales, strict=False):
                if step > batch:
                    break
                factor *= scale
            return factor
        if self.policy == "exp":
            return float(self.gamma**batch)
        if self.policy == "poly":
            return float((1 - batch / self.max_batches) ** self.power)
        if self.policy == "sigmoid":
            return 1 / (1 + math.exp(min(self.gamma * (batch - self.step), 700.0)))
        if self.policy == "sgdr":
            position = self._in_cycle(batch)
            lowest = self.learning_rate_min / self.learning_rate
            return lowest + (1 - lowest) * (1 + math.cos(math.pi * position)) / 2
        return 1.0

    def _in_cycle(self, batch: float) -> float:
        """Where a batch stands in its cycle of warm restarts, 0 to 1."""
        if self.cycle_growth == 1:
            before = max(0, math.ceil(batch / self.cycle) - 1)
            return batch / self.cycle - before
        start, cycle = 0, self.cycle
        while start + cycle < batch:
            start += cycle
            cycle *= self.cycle_growth
        return (batch - start) / cycle


class DarknetSGD(torch.optim.SGD):
    """Stochastic gradient descent with a cfg file's numbers.

    darknet's step is torch's, its losses being means over the images of a batch.

    Args:
        params: as any optimiser of torch takes them.
        cfg_file: the file.
        batch_size: images an iteration: for fewer than the file's ``batch`` its rate is lowered
            linearly; for more it is not raised, since published files are often left with
            ``batch=1``, for detecting.
        lr: taken as it is; None: the file's ``learning_rate``.
        momentum, weight_decay: None: the file's ``momentum`` and ``decay``.

    Raises:
        InputError: the file wants Adam, or a number of it makes no sense.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        cfg_file: str | Path | None,
        batch_size: int,
        lr: float | None = None,
        momentum: float | None = None,
        weight_decay: float | None = None,
    ) -> None:
        net = _net(cfg_file)
        if net.flag("adam"):
            net.fail("adam=1 is not taken from the file: choose another optimizer", "adam")
        batch = net.integer("batch", 1, low=1, high=1 << 20)
        if lr is None:
            lr = _learning_rate(net) * min(1.0, batch_size / batch)
        super().__init__(
            params,
            lr=lr,
            momentum=_at_least(net, "momentum", 0.9, 0.0) if momentum is None else momentum,
            weight_decay=_at_least(net, "decay", 1e-4, 0.0)
            if weight_decay is None
            else weight_decay,
        )


def _net(cfg_file: str | Path | None) -> Section:
    if cfg_file is None:
        raise InputError("model.cfg_file must be the path of a darknet cfg file, got null")
    return read_cfg(cfg_file)[0]


def _learning_rate(net: Section) -> float:
    rate = net.number("learning_rate", 1e-3)
    if rate <= 0:
        net.fail(f"learning_rate must be above 0, got {rate:g}", "learning_rate")
    return rate


def _at_least(net: Section, key: str, default: float, low: float) -> float:
    value = net.number(key, default)
    if value < low:
        net.fail(f"{key} must be at least {low:g}, got {value:g}", key)
    return value
