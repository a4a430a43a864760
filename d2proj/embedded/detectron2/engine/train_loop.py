"""The training loop and the hooks that everything but the step itself goes into."""

import collections
import concurrent.futures
import logging
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage

__all__ = ["AMPTrainer", "HookBase", "SimpleTrainer", "TrainerBase"]

_logger = logging.getLogger(__name__)


class HookBase:
    """Something to do at set moments of training.

    A trainer calls ``before_train``; for every iteration ``before_step``, ``after_backward`` (if
    its step has such a moment) and ``after_step``; in the end, even after an error,
    ``after_train``. ``before_step`` should take no time, so that timers may begin there.

    Attributes:
        trainer: The trainer (a weak reference), once registered.
    """

    trainer: "TrainerBase" = None  # type: ignore[assignment]  # set when registered

    def before_train(self) -> None:
        """Called before the first iteration."""

    def after_train(self) -> None:
        """Called after the last iteration."""

    def before_step(self) -> None:
        """Called before each iteration."""

    def after_backward(self) -> None:
        """Called when the gradients of an iteration are there."""

    def after_step(self) -> None:
        """Called after each iteration."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep; a hook with state also defines ``load_state_dict``."""
        return {}


class TrainerBase:
    """A loop of steps with hooks around them.

    Attributes:
        iter: The current iteration; after the last one, their number.
        start_iter, max_iter: The iterations run over ``range(start_iter, max_iter)``.
        storage: The :class:`EventStorage` of the running training.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter = 0
        self.start_iter = 0
        self.max_iter = 0
        self.storage: EventStorage

    def register_hooks(self, hooks: Sequence[HookBase | None]) -> None:
        """Add hooks, which run in this order; None stands for no hook."""
        present = [hook for hook in hooks if hook is not None]
        for hook in present:
            assert isinstance(hook, HookBase), hook
            # Weak, lest trainer and hook keep each other and all of the model alive.
            hook.trainer = weakref.proxy(self)
        self._hooks.extend(present)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run iterations ``start_iter`` to ``max_iter - 1``."""
        _logger.info(f"Starting training from iteration {start_iter}")
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                # Tells after_train that training came to its end, and is not cut short.
                self.iter += 1
            except Exception:
                _logger.exception("Exception during training:")
                raise
            finally:
                self.after_train()

    def before_train(self) -> None:
        """Call the hooks' ``before_train``."""
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        """Call the hooks' ``after_train``."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        """Call the hooks' ``before_step``."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        """Call the hooks' ``after_backward``."""
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        """Call the hooks' ``after_step``."""
        for hook in self._hooks:
            hook.after_step()

    def run_step(self) -> None:
        """Run one iteration; a subclass says how."""
        raise NotImplementedError(f"{type(self).__name__} does not define run_step")

    def state_dict(self) -> dict[str, Any]:
        """The iteration and the state of the hooks that have one, by class name."""
        hooks: dict[str, Any] = {}
        for hook in self._hooks:
            state = hook.state_dict()
            name = type(hook).__qualname__
            if state and name not in hooks:  # of several hooks of a class the first counts
                hooks[name] = state
        return {"iteration": self.iter, **({"hooks": hooks} if hooks else {})}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; a hook that is not there any more is logged."""
        self.iter = state_dict["iteration"]
        for name, state in state_dict.get("hooks", {}).items():
            for hook in self._hooks:
                if type(hook).__qualname__ == name:
                    hook.load_state_dict(state)  # type: ignore[attr-defined]  # has state
                    break
            else:
                _logger.warning(f"Cannot find the hook '{name}', its state_dict is ignored.")


class SimpleTrainer(TrainerBase):
    """One model, one optimizer, one source of data; a step is forward, backward, update.

    Args:
        model: Takes what the loader gives and returns a dict of losses, or one loss.
        data_loader: Iterable of batches.
        optimizer: Its parameters are the model's.
        gather_metric_period: Gather the metrics from all processes every so many iterations.
        zero_grad_before_forward: Clear the gradients before the forward pass, rather than after.
        async_write_metrics: Read the losses back in another thread, so that the step need not wait
            for the device.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        super().__init__()
        # A hook or an evaluation may have left the model in the other mode; steps train it.
        model.train()
        self.model = model
        self.data_loader = data_loader
        self._data_loader_iter_obj: Iterator | None = None
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self.async_write_metrics = async_write_metrics
        # One thread, so that metrics are written in order; it starts with the first of them.
        self._executor = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._being_written: collections.deque[concurrent.futures.Future] = collections.deque()

    def run_step(self) -> None:
        """Take a batch, compute the losses and their gradients, update the model."""
        assert self.model.training, "[SimpleTrainer] model was changed to eval mode!"
        data, data_time = self._next_batch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        loss_dict, losses = self._sum_losses(self.model(data))
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        losses.backward()
        self.after_backward()
        self._write_metrics(loss_dict, data_time)
        self.optimizer.step()

    def _next_batch(self) -> tuple[Any, float]:
        """The next batch and the seconds it took."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        return data, time.perf_counter() - start

    @staticmethod
    def _sum_losses(
        output: torch.Tensor | dict[str, torch.Tensor],
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        if isinstance(output, torch.Tensor):
            return {"total_loss": output}, output
        return output, sum(output.values())  # type: ignore[return-value]  # of tensors

    @property
    def _data_loader_iter(self) -> Iterator:
        # Made on first use: this starts the loader's workers.
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = iter(self.data_loader)
        return self._data_loader_iter_obj

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable]) -> None:
        """Replace the loader by what ``data_loader_builder`` makes, after freeing the old one."""
        self.data_loader = None  # type: ignore[assignment]  # lets its workers go
        self._data_loader_iter_obj = None
        self.data_loader = data_loader_builder()

    def _write_metrics(
        self,
        loss_dict: Mapping[str, torch.Tensor],
        data_time: float,
        prefix: str = "",
        iter: int | None = None,
    ) -> None:
        """Put the losses into the event storage, every ``gather_metric_period`` iterations."""
        iteration = self.iter if iter is None else iter
        if (iteration + 1) % self.gather_metric_period != 0:
            return
        if not self.async_write_metrics:
            self.write_metrics(loss_dict, data_time, iteration, prefix)
            return
        while self._being_written and self._being_written[0].done():
            self._being_written.popleft().result()  # raises, e.g. if a loss was infinite
        detached = {name: loss.detach() for name, loss in loss_dict.items()}
        self._being_written.append(
            self._executor.submit(
                _write_metrics, self.storage, detached, data_time, iteration, prefix
            )
        )

    @staticmethod
    def write_metrics(
        loss_dict: Mapping[str, torch.Tensor], data_time: float, cur_iter: int, prefix: str = ""
    ) -> None:
        """Average scalar losses over the processes and put them into the current event storage.

        Args:
            loss_dict: Scalar losses by name.
            data_time: Seconds that this process waited for data; the slowest counts.
            cur_iter: The iteration that they are of.
            prefix: Put before the names.

        Raises:
            FloatingPointError: the sum of the losses is infinite or NaN.
        """
        _write_metrics(get_event_storage(), loss_dict, data_time, cur_iter, prefix)

    def after_train(self) -> None:
        """Wait for the metrics that are being written, then call the hooks."""
        concurrent.futures.wait(self._being_written)
        super().after_train()
        while self._being_written:
            self._being_written.popleft().result()

    def state_dict(self) -> dict[str, Any]:
        """As the base's, with the optimizer's state."""
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As the base's, with the optimizer's state."""
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


def _write_metrics(
    storage: EventStorage,
    loss_dict: Mapping[str, torch.Tensor],
    data_time: float,
    cur_iter: int,
    prefix: str = "",
) -> None:
    metrics = {name: loss.detach().cpu().item() for name, loss in loss_dict.items()}
    # This process' own, before the slowest one's takes the name.
    storage.put_scalar("rank_data_time", data_time, cur_iter=cur_iter)
    everyone = comm.gather({**metrics, "data_time": data_time})
    if not comm.is_main_process():
        return
    slowest = max(process.pop("data_time") for process in everyone)
    storage.put_scalar("data_time", slowest, cur_iter=cur_iter)
    means = {name: float(np.mean([process[name] for process in everyone])) for name in metrics}
    total = sum(means.values())
    if not np.isfinite(total):
        raise FloatingPointError(
            f"Loss became infinite or NaN at iteration={cur_iter}!\nloss_dict = {means}"
        )
    storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
    if len(means) > 1:
        storage.put_scalars(cur_iter=cur_iter, **means)


class AMPTrainer(SimpleTrainer):
    """A :class:`SimpleTrainer` whose forward pass runs in mixed precision.

    Args:
        model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward: As there.
        grad_scaler: Scales the losses, so that small gradients do not vanish; made if None.
        precision: The type that autocast computes in.
        log_grad_scaler: Put the scale into the event storage.
        async_write_metrics: As there.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        grad_scaler: Any = None,
        precision: torch.dtype = torch.float16,
        log_grad_scaler: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        if isinstance(model, DistributedDataParallel):
            single_device = not model.device_ids or len(model.device_ids) == 1
            assert single_device, "[AMPTrainer] one process must drive one device"
        assert not isinstance(model, DataParallel), "[AMPTrainer] DataParallel is not supported"
        super().__init__(
            model,
            data_loader,
            optimizer,
            gather_metric_period,
            zero_grad_before_forward,
            async_write_metrics,
        )
        self.grad_scaler = torch.amp.GradScaler("cuda") if grad_scaler is None else grad_scaler
        self.precision = precision
        self.log_grad_scaler = log_grad_scaler

    def run_step(self) -> None:
        """A step as the base's, with autocast and scaled gradients."""
        assert self.model.training, "[AMPTrainer] model was changed to eval mode!"
        assert torch.cuda.is_available(), "[AMPTrainer] CUDA is required for AMP training!"
        data, data_time = self._next_batch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        with torch.autocast("cuda", dtype=self.precision):
            loss_dict, losses = self._sum_losses(self.model(data))
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        if self.log_grad_scaler:
            self.storage.put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())
        self.after_backward()
        self._write_metrics(loss_dict, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """As the base's, with the scaler's state."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As the base's, with the scaler's state."""
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
