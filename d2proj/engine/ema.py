"""Exponential moving average of a model's weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class ModelEma:
    """Averages the parameters of a model; buffers (running statistics) are copied as they are.

    The decay rises as (1 + n) / (warmup + n) up to ``decay``, so that the average forgets the
    initial weights (the rule of TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, model: nn.Module, *, decay: float, warmup_iters: int) -> None:
        """Start the average at the model's present weights."""
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), not {decay}")
        self.decay = decay
        self.warmup_iters = warmup_iters
        self.updates = 0
        self._model = model
        self._averaged = [p for p in model.parameters() if p.requires_grad]
        self._shadow = [p.detach().clone() for p in self._averaged]

    @torch.no_grad()
    def restart(self) -> None:
        """Start anew at the model's present weights."""
        self.updates = 0
        for shadow, parameter in zip(self._shadow, self._averaged, strict=True):
            shadow.copy_(parameter)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's weights after an optimiser step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (self.warmup_iters + self.updates))
        torch._foreach_lerp_(self._shadow, [p.detach() for p in self._averaged], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model have the averaged weights for the duration of a ``with`` block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, shadow in zip(self._averaged, self._shadow, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(shadow)
            shadow.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """The average as a whole state dict of the model, and how many updates it has seen."""
        with self.applied():
            state = {name: value.clone() for name, value in self._model.state_dict().items()}
        return {"state_dict": state, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue an average from :meth:`state_dict`."""
        self.updates = int(state["updates"])
        names = [name for name, p in self._model.named_parameters() if p.requires_grad]
        with torch.no_grad():
            for name, shadow in zip(names, self._shadow, strict=True):
                shadow.copy_(state["state_dict"][name])
