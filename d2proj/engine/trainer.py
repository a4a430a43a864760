"""The training loop: one optimiser step an iteration, everything else in hooks."""

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from d2proj.engine.ema import ModelEma
from d2proj.engine.precision import Precision
from d2proj.engine.seeding import seed_iteration
from d2proj.errors import InputError

Batch = list[dict[str, Any]]


class NonFiniteLossError(InputError):
    """A loss or the gradient became NaN or infinite; the optimiser step was not taken."""


class Interrupted(Exception):
    """The run was asked to stop by a signal; its state has been saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number


class Trainer(TrainerBase):
    """Trains a Detectron2-style model (a dict of losses for a batch of dicts).

    Attributes:
        iter: the iteration being done, from 0; after its hooks ran, it is complete.
        received_signal: set by a signal handler in whatever process it reached.
        stop_signal: the same, agreed between the processes: all stop after the same iteration.
        last_batch_size: images of the last iteration, over all processes.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[int], Iterator[Batch]],
        optimizer: torch.optim.Optimizer,
        *,
        precision: Precision,
        seed: int,
        output_dir: Path,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        ema: ModelEma | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            model: as it is called, that is wrapped for several processes.
            batches: gives the batches from an iteration on.
            optimizer: over the model's parameters.
            precision: autocast and loss scaling.
            seed: of the run; see :func:`seed_iteration`.
            output_dir: where a non-finite loss leaves its report.
            max_norm: clip the gradient to this norm; None: not clipped.
            norm_type: 2 for the Euclidean norm.
            ema: moving average to keep.
        """
        super().__init__()
        self.model = model
        self.optimizer = optimizer
        self.precision = precision
        self.ema = ema
        self.received_signal = 0
        self.stop_signal = 0
        self.last_batch_size = 0
        self._batches = batches
        self._iterator: Iterator[Batch] = iter(())
        self._seed = seed
        self._output_dir = output_dir
        self._max_norm = float("inf") if max_norm is None else max_norm
        self._norm_type = norm_type
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._kept_buffers: list[Tensor] | None = None

    @property
    def plain_model(self) -> nn.Module:
        """The model without the wrapper for several processes."""
        model = self.model
        if isinstance(model, nn.parallel.DistributedDataParallel):
            inner: nn.Module = model.module
            return inner
        return model

    def share_buffers(self) -> None:
        """Give all processes the main process's running statistics: they evaluate one model."""
        if comm.get_world_size() > 1:
            for buffer in self.plain_model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def restart_ema(self) -> None:
        """Start the average at the model's present weights (they were just loaded)."""
        if self.ema is not None:
            self.ema.restart()

    def train(self, start_iter: int, max_iter: int) -> None:
        """Do the iterations from ``start_iter`` to ``max_iter``.

        Raises:
            NonFiniteLossError: a loss or gradient is NaN or infinite.
            Interrupted: after a signal.
        """
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        self._iterator = self._batches(start_iter)
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    if self.stop_signal:
                        raise Interrupted(self.stop_signal)
            finally:
                self.after_train()
                self._iterator = iter(())  # ends the loader's processes

    def run_step(self) -> None:
        """One forward pass, backward pass and optimiser step."""
        start = time.perf_counter()
        batch = next(self._iterator)
        data_time = time.perf_counter() - start
        seed_iteration(self._seed, comm.get_rank(), self.iter)
        self._keep_buffers()
        with self.precision.autocast():
            losses = self.model(batch)
        total = sum(losses.values())
        scaler = self.precision.scaler
        self.optimizer.zero_grad(set_to_none=True)
        scaler.scale(total).backward()
        scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, self._max_norm, self._norm_type)
        self._record(losses, norm, batch, data_time)
        scaler.step(self.optimizer)
        scaler.update()
        if self.ema is not None:
            self.ema.update()

    def _record(
        self, losses: Mapping[str, Tensor], norm: Tensor, batch: Batch, data_time: float
    ) -> None:
        """Share the numbers of this iteration (one synchronisation), check them, store them."""
        numbers = [loss.detach().float().reshape(()) for loss in losses.values()]
        extras = torch.tensor(
            [len(batch), data_time, float(self.received_signal)], device=numbers[0].device
        )
        vector = torch.stack([*numbers, norm.detach().float().reshape(()), *extras])
        # The sum over processes is not finite as soon as one addend is not: all notice together.
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(vector)
        values = vector.tolist()
        world = comm.get_world_size()
        shared = [value / world for value in values[: len(numbers)]]
        grad_norm, images, data_seconds, stop = values[len(numbers) :]
        grad_norm /= world
        # A loss scale that is too large overflows the gradient; the scaler skips and halves.
        checked = shared if self.precision.scaler.is_enabled() else [*shared, grad_norm]
        if not all(map(_is_finite, checked)):
            self._fail(dict(zip(losses, numbers, strict=True)), norm, batch)
        if stop:
            self.stop_signal = self.received_signal or signal.SIGTERM
        self.last_batch_size = int(images)
        self.storage.put_scalars(
            smoothing_hint=False, **dict(zip(losses, shared, strict=True)), total_loss=sum(shared)
        )
        self.storage.put_scalars(
            smoothing_hint=False, grad_norm=grad_norm, data_time=data_seconds / world
        )

    def _keep_buffers(self) -> None:
        """Remember the buffers: a forward pass that fails must not leave NaN in them."""
        buffers = list(self.plain_model.buffers())
        if self._kept_buffers is None or len(self._kept_buffers) != len(buffers):
            self._kept_buffers = [buffer.detach().clone() for buffer in buffers]
        elif buffers:
            torch._foreach_copy_(self._kept_buffers, buffers)

    def _fail(self, losses: Mapping[str, Tensor], norm: Tensor, batch: Batch) -> None:
        for kept, buffer in zip(self._kept_buffers or [], self.plain_model.buffers(), strict=True):
            buffer.copy_(kept)
        mine = {
            "rank": comm.get_rank(),
            "losses": {name: loss.item() for name, loss in losses.items()},
            "gradient_norm": norm.item(),
            "images": [str(x.get("file_name", x.get("image_id", "?"))) for x in batch],
        }
        reports = comm.all_gather(mine)
        learning_rate = self.optimizer.param_groups[0]["lr"]
        file = self._output_dir / f"nonfinite_{self.iter:07d}.json"
        if comm.is_main_process():
            report = {"iteration": self.iter, "lr": learning_rate, "processes": reports}
            file.write_text(json.dumps(report, indent=2) + "\n")
        blamed = next((r for r in reports if not _all_finite(r)), mine)
        names = [n for n, value in blamed["losses"].items() if not _is_finite(value)]
        what = ", ".join(f"{n} = {blamed['losses'][n]}" for n in names)
        what = what or f"the norm of the gradient = {blamed['gradient_norm']}"
        raise NonFiniteLossError(
            f"Training stopped at iteration {self.iter}: {what} "
            f"(learning rate {learning_rate:.3g}, images {', '.join(blamed['images'])}); the state "
            f"before this iteration is saved, the details are in {file}."
        )


def _all_finite(report: Mapping[str, Any]) -> bool:
    return all(map(_is_finite, [*report["losses"].values(), report["gradient_norm"]]))


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")
