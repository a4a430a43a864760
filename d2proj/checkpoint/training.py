"""Training checkpoints in Detectron2's format, written so that none is ever lost or half there."""

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from d2proj.checkpoint.atomic import Writable, remove_partial_files, write_atomically
from d2proj.checkpoint.files import check_integrity, read_file
from d2proj.checkpoint.state import strip_wrappers
from d2proj.errors import InputError

_PERIODIC = re.compile(r"model_(\d{7,})\.pth")
_LAST = "last_checkpoint"
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


class CheckpointWriteError(InputError):
    """A checkpoint could not be written (disk full, folder gone); the older ones are untouched."""


class TrainingCheckpointer(Checkpointer):
    """Saves and resumes a training; works wherever fvcore's ``Checkpointer`` does.

    A checkpoint is ``<save_dir>/<name>.pth``: a dictionary with ``model``, the state of every
    checkpointable by its name (``optimizer``, ``scheduler``, ``ema``, ...) and what ``save`` is
    given besides (``iteration``). ``<save_dir>/last_checkpoint`` names the one to resume from. Both
    are Detectron2's formats, so its ``DetectionCheckpointer`` and tools read them.

    What it adds: every file appears whole or not at all; the newest ``keep`` periodic checkpoints
    stay, and always the best, the final and the last; saving the best does not make it the one to
    resume from; files are read with ``weights_only``; a damaged last checkpoint is passed over for
    the newest sound one; resuming into another model is an error. Only the main process writes.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str | Path,
        *,
        keep: int | None = None,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        """Prepare for saving; removes what an interrupted write left in ``save_dir``.

        Args:
            model: may be wrapped in DistributedDataParallel.
            save_dir: folder of the checkpoints; made when the first is saved.
            keep: how many periodic checkpoints (``model_0000999.pth``) stay; None for all.
            save_to_disk: None for "in the main process only".
            **checkpointables: objects with ``state_dict()`` of tensors and plain containers, and
                ``load_state_dict()``.

        Raises:
            ValueError: ``keep`` is less than 1.
        """
        if keep is not None and keep < 1:
            raise ValueError(f"keep must be at least 1 or None, got {keep}")
        to_disk = comm.is_main_process() if save_to_disk is None else save_to_disk
        super().__init__(model, str(save_dir), save_to_disk=to_disk, **checkpointables)
        self.logger = logging.getLogger(__name__)
        self.keep = keep
        self.folder = Path(save_dir)
        if to_disk and self.folder.is_dir():
            for leftover in remove_partial_files(self.folder):
                self.logger.warning("removed %s, left by an interrupted write", leftover)

    def save(self, name: str, *, tag_last: bool | None = None, **extra: Any) -> None:
        """Write ``<name>.pth``, then name it in ``last_checkpoint``, then prune old ones.

        Args:
            name: without ending: "model_0000999", "model_best", "model_final".
            tag_last: whether to resume from it; None for all but names that say "best".
            **extra: further plain values, such as ``iteration``.

        Raises:
            CheckpointWriteError: it cannot be written; older checkpoints are as they were.
            TypeError: some state is neither a tensor nor a plain container, and so could not be
                read back without executing code.
        """
        data: dict[str, Any] = {"model": self.model.state_dict()}
        data.update({key: part.state_dict() for key, part in self.checkpointables.items()})
        data.update(extra)
        if not self.save_to_disk:
            return
        path = self.folder / f"{name}.pth"
        data = {key: _plain(value, key) for key, value in data.items()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file: _save(data, file))
            if tag_last if tag_last is not None else "best" not in name:
                self.tag_last_checkpoint(path.name)
        except OSError as error:
            raise CheckpointWriteError(
                f"cannot write {path}: {error.strerror or error}; "
                "the older checkpoints are untouched"
            ) from error
        self.logger.info("saved %s", path)
        self._prune()

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the checkpoint to resume from (a file of ``save_dir``), atomically."""
        content = last_filename_basename.encode()
        write_atomically(self.folder / _LAST, lambda file: file.write(content))

    def has_checkpoint(self) -> bool:
        """Whether there is anything to resume from."""
        return any(True for _ in self._candidates())

    def get_checkpoint_file(self) -> str:
        """Give the path of the checkpoint to resume from: the last one, or the newest sound one.

        Returns:
            The path, or "" if there is no checkpoint at all.

        Raises:
            InputError: there are checkpoints but none can be read.
        """
        tagged = self._tagged()
        candidates = list(self._candidates())
        if tagged is None and not candidates:
            return ""
        reasons: list[str] = []
        if tagged is not None and (reason := _unsound(tagged)) is None:
            return str(tagged)
        if tagged is not None:
            reasons.append(str(reason))
        sound: list[tuple[int, float, Path]] = []
        for path in candidates:
            if path != tagged and (reason := _unsound(path)) is None:
                sound.append((_iteration(path), path.stat().st_mtime, path))
            elif path != tagged:
                reasons.append(str(reason))
        if not sound:
            raise InputError(f"no checkpoint in {self.folder} can be read: {'; '.join(reasons)}")
        newest = max(sound)[2]
        why = "; ".join(reasons) if reasons else f"{self.folder / _LAST} is missing"
        self.logger.warning("resuming from %s, the newest sound checkpoint: %s", newest, why)
        return str(newest)

    def resume(self) -> dict[str, Any] | None:
        """Load the checkpoint to resume from into the model and the checkpointables.

        Returns:
            What else it holds (``iteration``, ...), or None if there is no checkpoint.

        Raises:
            InputError: none can be read, or the one found is of another model or training.
        """
        path = self.get_checkpoint_file()
        return self.load(path) if path else None

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume if asked for and possible, else load the model alone from ``path``."""
        if resume and self.has_checkpoint():
            return self.resume() or {}
        return self.load(path, checkpointables=[])

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a training checkpoint.

        Args:
            path: a file written by :meth:`save` or by Detectron2's checkpointer; "" loads nothing.
            checkpointables: which of them to load; None for all.

        Returns:
            What the file holds besides the model and the checkpointables that were loaded.

        Raises:
            InputError: unreadable, no training checkpoint, or of another model or training.
        """
        if not path:
            return {}
        content = read_file(path, mmap=False).content
        if not isinstance(content, Mapping) or not isinstance(content.get("model"), Mapping):
            raise InputError(f'{path} is not a training checkpoint: it has no "model"')
        rest = dict(content)
        self._load_exactly(path, rest.pop("model"))
        wanted = self.checkpointables if checkpointables is None else checkpointables
        for key in wanted:
            if key not in rest:
                raise InputError(
                    f"{path} cannot be resumed from: it has no {key} state (it has "
                    f"{', '.join(sorted(content))})"
                )
            try:
                self.checkpointables[key].load_state_dict(rest.pop(key))
            except (ValueError, KeyError, RuntimeError, TypeError) as error:
                reason = str(error).strip().split("\n")[0]
                raise InputError(
                    f"the {key} state in {path} does not fit this training: {reason}"
                ) from error
        return rest

    def _load_exactly(self, path: str, state: Mapping[str, Any]) -> None:
        """Load the model's state, which must be of this very model."""
        theirs = strip_wrappers(state)
        ours = self.model.state_dict()
        for name in [*ours, *theirs]:
            if name not in theirs or name not in ours:
                where = "the model" if name in ours else "the checkpoint"
                raise InputError(f"{path} is of another model: only {where} has {name}")
            shapes = [tuple(getattr(node[name], "shape", ())) for node in (theirs, ours)]
            if shapes[0] != shapes[1]:
                raise InputError(
                    f"{path} is of another model: {name} has shape {shapes[0]} there and "
                    f"{shapes[1]} in the model"
                )
        self.model.load_state_dict(theirs)

    def _tagged(self) -> Path | None:
        """Give the file that last_checkpoint names, which may not exist."""
        try:
            name = (self.folder / _LAST).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
        return self.folder / Path(name).name if name else None

    def _candidates(self) -> Iterator[Path]:
        if self.folder.is_dir():
            yield from sorted(self.folder.glob("*.pth"))

    def _prune(self) -> None:
        """Remove all but the newest periodic checkpoints; never the one to resume from."""
        if self.keep is None:
            return
        periodic = [p for p in self._candidates() if _PERIODIC.fullmatch(p.name)]
        periodic.sort(key=_number, reverse=True)
        tagged = self._tagged()
        for path in periodic[self.keep :]:
            if path != tagged:
                path.unlink(missing_ok=True)


def _save(data: dict[str, Any], file: Writable) -> None:
    torch.save(data, cast(IO[bytes], file))  # it uses write() and flush()


def _number(path: Path) -> int:
    match = _PERIODIC.fullmatch(path.name)
    return int(match[1]) if match else -1


def _unsound(path: Path) -> str | None:
    """Say why a checkpoint cannot be resumed from, None if it can."""
    try:
        check_integrity(path)
        content = read_file(path).content
    except InputError as error:
        return str(error)
    if not isinstance(content, Mapping) or "model" not in content:
        return f'{path} has no "model"'
    return None


def _iteration(path: Path) -> int:
    iteration = read_file(path).content.get("iteration")
    return iteration if isinstance(iteration, int) else _number(path)


def _plain(value: Any, where: str) -> Any:
    """Check that a state can be read back with ``weights_only``; numpy numbers become Python's."""
    if isinstance(value, torch.Tensor) or type(value) in _PLAIN:
        return value
    if isinstance(value, np.generic) and value.dtype.kind in "biufU":
        return value.item()
    if isinstance(value, Mapping):
        return {
            _plain(k, f"{where} (a key)"): _plain(v, f"{where}[{k!r}]") for k, v in value.items()
        }
    if isinstance(value, list | tuple) and type(value) in (list, tuple, torch.Size):
        items = [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    raise TypeError(
        f"the checkpoint's {where} is a {type(value).__module__}.{type(value).__qualname__}: "
        "only tensors, numbers, strings and plain containers can be saved"
    )
